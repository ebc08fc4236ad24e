"""The commands of `wmpo`, one dataclass of options each. Heavy imports wait until a command runs: `--help` is quick."""
