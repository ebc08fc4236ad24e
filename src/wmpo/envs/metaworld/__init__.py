"""MetaWorld's tasks as a family (docs/metaworld.md). Kept light: simulator processes import this."""
