"""LIBERO's tasks as a family (docs/libero.md). Kept light: simulator processes import this."""
