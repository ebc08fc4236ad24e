"""Episodes that others have recorded, made into an episode store: one module per format behind `source.Source`."""
