"""The command line of every program here: flags from a settings class, one line for errors."""

import argparse
import contextlib
import dataclasses
import gc
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import tyro

from hogwild_rl.config import base
from hogwild_rl.errors import RunFailedError, UserError
from hogwild_rl.hogwild import shared_memory

_Config = TypeVar("_Config")

# Flags that other flags' defaults depend on: they are looked at first.
_DEFAULTS_DEPEND_ON = {
    "env": str,
    "resume": str,
    "workers": int,
    "envs_per_worker": int,
    "num_envs": int,
    "device": str,
    "allow_import": None,  # a switch
}


def parse(
    config: type[_Config], program: str, description: str, arguments: Sequence[str] | None = None
) -> _Config:
    """Reads a settings class from the command line.

    Args:
        config: a dataclass; its field docstrings are the help.
        program: module name, for the usage line.
        description: shown above the flags.
        arguments: ``sys.argv[1:]`` by default.

    Raises:
        UserError: a flag or its value is wrong.
        SystemExit: help was asked for and has been printed.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options: dict[str, Any] = {}
    if issubclass(config, base.RunConfig):
        options["default"] = config(**_peek(config, arguments))
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            read: _Config = tyro.cli(
                config,
                prog=f"python -m hogwild_rl.{program}",
                description=description,
                args=arguments,
                **options,
            )
            return read
    except SystemExit as ending:
        if not complaint.getvalue():
            raise
        raise UserError(_one_line(complaint.getvalue())) from ending


def _peek(config: type[base.RunConfig], arguments: Sequence[str]) -> dict[str, Any]:
    """Those flags among the arguments that the defaults of others depend on."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in {field.name for field in dataclasses.fields(config)} & _DEFAULTS_DEPEND_ON.keys():
        flag = f"--{name.replace('_', '-')}"
        kind = _DEFAULTS_DEPEND_ON[name]
        how: dict[str, Any] = {"type": kind} if kind else {"action": argparse.BooleanOptionalAction}
        peek.add_argument(flag, default=argparse.SUPPRESS, **how)
    try:
        return vars(peek.parse_known_args(arguments)[0])
    except argparse.ArgumentError:
        return {}  # tyro says what is wrong with it


def _one_line(box: str) -> str:
    """The message out of tyro's picture: a title, a rule, the message, more rules and hints.

    The title stands in a frame's upper edge, or without a frame above a rule of its own.
    """
    plain = re.sub(r"\x1b\[[\d;]*m", "", box)
    framed = plain.startswith("╭")
    lines = [line.strip("│ ") for line in plain.splitlines() if not line.startswith(("╭", "╰"))]
    sections = re.split(r"[─-]{8,}", " ".join(lines))[0 if framed else 1 :]
    message = re.sub(r"^Error parsing (\w+: )?", "", sections[0].strip())
    message = re.sub(r": invalid literal for int\(\).*: ", " wants a whole number, got ", message)
    message = re.sub(r": could not convert string to float: ", " wants a number, got ", message)
    similar = re.findall(r"Perhaps you meant:\s+(--[\w-]+)", " ".join(sections[1:]))
    return message + (f"; did you mean {similar[0]}?" if similar else "")


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a program and ends the process: exit code 0, 1 failed, 2 bad input, 130 Ctrl-C."""
    code = 0
    try:
        main()
    except (UserError, shared_memory.NoSharedMemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except RunFailedError as error:
        print(error, file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    gc.freeze()  # or the interpreter's end looks through all of torch for garbage, for 0.2 s
    sys.exit(code)
