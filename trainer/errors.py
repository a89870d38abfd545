"""Defines the error that a user can mend."""


class UsageError(ValueError):
    """Says that input is bad: names the value, what was expected and what to do.

    The binaries print it as one line and exit with status 1.
    """
