"""gym-aloha's tasks as a family (docs/aloha.md). Kept light: simulator processes import this."""
