"""Any Gymnasium environment as a family (docs/gymnasium.md). Kept light: simulator processes import this."""
