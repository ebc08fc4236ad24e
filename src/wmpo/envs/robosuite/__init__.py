"""robosuite's tasks as a family (docs/robosuite.md). Kept light: simulator processes import this."""
