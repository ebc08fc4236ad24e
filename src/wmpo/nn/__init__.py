"""Network pieces that several models share."""
