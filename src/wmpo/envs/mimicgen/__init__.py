"""MimicGen's tasks, from a checkout of the user's own, as a family (docs/mimicgen.md). Kept light: simulator processes
import this."""
