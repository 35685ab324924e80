"""Errors that users see."""


class UserError(ValueError):
    """Invalid user input.

    The message is one line: what was given, what is wanted, what to do. Commands print it and exit
    with code 2.
    """


class RunFailedError(RuntimeError):
    """Failed run; the message has the reason and the traceback of a failed worker."""
