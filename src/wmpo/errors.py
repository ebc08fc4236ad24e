"""The one exception that a user should ever see."""


class UserError(Exception):
    """Bad input, told in one sentence: what was wrong, where, and what to do. The command line exits with 2."""
