"""Training machinery that knows no network: one fit loop, checkpoints, the run's log."""
