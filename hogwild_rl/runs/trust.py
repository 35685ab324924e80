"""What may be done because a person says so, and not because a file does."""

from typing import Any

from hogwild_rl import UserError


def check_import(env: Any, source: str, allowed: bool) -> None:
    """Makes sure that no module is imported because a file names it.

    Args:
        env: an environment's id, as the file has it.
        source: the file or folder, for the message.
        allowed: whether a person trusts it.

    Raises:
        UserError: the id is of the form module:Id, and that is not allowed.
    """
    if not isinstance(env, str):
        raise UserError(f"{source} names no environment, but {env!r}: give env")
    module = env.rpartition(":")[0]
    if module and not allowed:
        raise UserError(
            f"{source} names env {env!r}, for which module {module!r} would be imported and could "
            "run anything: if you trust it, give --allow-import (allow_import=True in Python), or "
            "give env yourself"
        )
