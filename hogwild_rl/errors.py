"""Errors that users see."""


class UserError(ValueError):
    """Invalid user input.

    The message is one line: what was given, what is wanted, what to do. Commands print it and exit
    with code 2.
    """


class RunFailedError(RuntimeError):
    """A run was given up; the message has the reason, and a failed worker's traceback."""
