"""The error a user can mend."""


class UsageError(ValueError):
    """Bad input: the message names the value, what was expected, what to do.

    The binaries print it as one line and exit with status 1.
    """
