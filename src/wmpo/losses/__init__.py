"""The mathematics of the method as pure functions over tensors. Nothing here knows a class of the project."""
