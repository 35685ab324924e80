"""The command line of every program here: flags from a settings class, one clear line for errors."""

import argparse
import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import tyro

from hogwild_rl import UserError

_Config = TypeVar("_Config")

# Flags that other flags' defaults depend on: they are looked at first.
_DEFAULTS_DEPEND_ON = {"env": str, "resume": str, "workers": int}


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
    names = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in names & _DEFAULTS_DEPEND_ON.keys():
        peek.add_argument(f"--{name}", type=_DEFAULTS_DEPEND_ON[name], default=argparse.SUPPRESS)
    complaint = io.StringIO()
    try:
        given = {}
        with contextlib.suppress(argparse.ArgumentError):  # tyro says it better, below
            given = vars(peek.parse_known_args(arguments)[0])
        default = config(**given)
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                config,
                prog=f"python -m hogwild_rl.{program}",
                description=description,
                args=arguments,
                default=default,
            )
    except SystemExit as ending:
        if not complaint.getvalue():
            raise
        raise UserError(_one_line(complaint.getvalue())) from ending


def _one_line(box: str) -> str:
    """The message out of the frame that tyro draws."""
    lines = [line.strip("│ ") for line in box.splitlines() if line.startswith("│")]
    sections = re.split(r"─{8,}", " ".join(lines))
    message = re.sub(r"^Error parsing \w+: ", "", sections[0].strip())
    similar = re.findall(r"Perhaps you meant:\s+(--[\w-]+)", " ".join(sections[1:]))
    return message + (f"; did you mean {similar[0]}?" if similar else "")


class WorkersFailed(RuntimeError):
    """A run ended because workers failed; the message holds their tracebacks."""


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a program and ends the process with its exit code: 0, 1 failed, 2 bad input, 130 Ctrl-C."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except WorkersFailed as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
