"""Command-line interface: flags from a settings class, errors in one line."""

import argparse
import contextlib
import dataclasses
import gc
import io
import itertools
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_type_hints

import tyro

from hogwild_rl.config import base
from hogwild_rl.errors import RunFailedError, UserError
from hogwild_rl.hogwild import shared_memory

_AUTO = Literal["auto"]
_Config = TypeVar("_Config")


def _number(word: str) -> int | None:
    return None if word == "auto" else int(word)


# Flags that the defaults of other flags depend on; they are parsed first.
_DEFAULTS_DEPEND_ON = {
    **dict.fromkeys(("env", "resume", "device"), str),
    **dict.fromkeys(("workers", "envs_per_worker", "num_envs"), _number),
    "allow_import": None,  # boolean flag
}


def parse(
    config: type[_Config], program: str, description: str, arguments: Sequence[str] | None = None
) -> _Config:
    """Parses the command line into a settings class.

    Args:
        config: dataclass of settings; its field docstrings are the help texts.
        program: module name, for the usage line.
        description: text above the flags.
        arguments: ``sys.argv[1:]`` by default.

    Raises:
        UserError: a flag or its value is invalid.
        SystemExit: help was requested and has been printed.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options: dict[str, Any] = {}
    if issubclass(config, base.RunConfig):
        options["default"] = config(**_peek(config, arguments))
    arguments = list(_switches(config, arguments))
    errors = io.StringIO()
    grouped = "default" in options and not {"-h", "--help"}.isdisjoint(arguments)
    try:
        with contextlib.redirect_stderr(errors), _grouped(grouped):
            parsed: _Config = tyro.cli(
                config,
                prog=f"python -m hogwild_rl.{program}",
                description=description,
                args=arguments,
                **options,
            )
            return parsed
    except SystemExit as error:
        if not errors.getvalue():
            raise
        raise UserError(_one_line(errors.getvalue())) from error


def _switches(config: type[Any], arguments: Sequence[str]) -> Iterator[str]:
    """Yields the arguments; of settings with True, False and auto, --x is True and --no-x False."""
    hints = get_type_hints(config).items()
    names = {n.replace("_", "-") for n, hint in hints if get_args(hint) == (_AUTO, bool)}
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        name = argument.removeprefix("--").removeprefix("no-")
        plain = name not in names or following in ("True", "False", "auto")
        yield argument if plain else f"--{name}"
        if not plain:
            yield str(argument == f"--{name}")


def _peek(config: type[base.RunConfig], arguments: Sequence[str]) -> dict[str, Any]:
    """Parses only the flags that the defaults of other flags depend on."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in {field.name for field in dataclasses.fields(config)} & _DEFAULTS_DEPEND_ON.keys():
        options: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if (type_ := _DEFAULTS_DEPEND_ON[name]) is not None:
            options = {"type": type_}
        parser.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, **options)
    try:
        parsed = vars(parser.parse_known_args(arguments)[0])
        return {name: value for name, value in parsed.items() if value is not None}
    except argparse.ArgumentError:
        return {}  # tyro reports the error


# Groups of flags in the help; names of flags without a group are printed with the run's.
_GROUPS = {
    "run": "",
    "environment": "env num_envs envs_per_worker episodes vectorization env_groups clip_rewards "
    "reward_scale normalize_observations normalize_rewards rescale_actions terminal_on_life_loss",
    "network": "network hidden activation shared_trunk lstm critics state_dependent_std "
    "log_std_init",
    "optimization": "learning_rate lr_schedule gamma n_steps gae_lambda vf_coef max_grad_norm "
    "optimizer rms_alpha rms_eps eps_inside_root momentum adam_eps epochs clip_range "
    "clip_value_range normalize_advantages target_kl returns baseline tau batch_size buffer_size "
    "train_every gradient_steps policy_delay target_noise target_noise_clip",
    "asynchrony": "staleness staleness_lambda staleness_bound accumulate artificial_delay",
    "exploration": "ent_coef learning_starts noise noise_std ou_theta ou_dt",
    "fault tolerance": "max_restarts step_timeout max_bad_updates",
}
_WIDTH, _INDENT = 80, 26


@contextlib.contextmanager
def _grouped(wanted: bool) -> Iterator[None]:
    """Context in which tyro's help is printed in `_GROUPS`, at 80 columns."""
    if not wanted:
        yield
        return
    output, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "200"  # tyro wraps help texts, but not flags
    try:
        with contextlib.redirect_stdout(output):
            yield
    finally:
        os.environ.pop("COLUMNS")
        os.environ |= {} if before is None else {"COLUMNS": before}
        intro, *flags = re.split(r"^  (?=-)", output.getvalue(), flags=re.MULTILINE)
        groups: dict[str, list[str]] = {title: [f"\n{title}:"] for title in _GROUPS}
        for flag, text in (re.split(r"\s{2,}", each.strip(), maxsplit=1) for each in flags):
            name = re.split("[ ,]", flag.partition("--")[2])[0].replace("-", "_")
            title = next((t for t, names in _GROUPS.items() if name in names.split()), "run")
            lines = textwrap.wrap(" ".join(text.split()), _WIDTH - _INDENT)
            first = lines.pop(0) if len(flag) + 4 <= _INDENT else ""
            groups[title].append(f"  {flag}".ljust(_INDENT) + first)
            groups[title] += [" " * _INDENT + line for line in lines]
        shown = [line for lines in groups.values() if len(lines) > 1 for line in lines]
        print_line("\n".join([intro.split("\n\n options")[0].strip(), *shown]))


def _one_line(box: str) -> str:
    """Extracts the message from tyro's box: title, rule, message, then more rules and hints.

    The title is in the upper edge of the frame, or without a frame above its own rule.
    """
    plain = re.sub(r"\x1b\[[\d;]*m", "", box)
    framed = plain.startswith("╭")
    lines = [line.strip("│ ") for line in plain.splitlines() if not line.startswith(("╭", "╰"))]
    sections = re.split(r"[─-]{8,}", " ".join(lines))[0 if framed else 1 :]
    message = re.sub(r"^Error parsing (\w+: )?", "", sections[0].strip())
    message = re.sub(r": invalid literal for int\(\).*: ", " must be an integer, got ", message)
    message = re.sub(r": could not convert string to float: ", " must be a number, got ", message)
    similar = re.findall(r"Perhaps you meant:\s+(--[\w-]+)", " ".join(sections[1:]))
    return message + (f"; did you mean {similar[0]}?" if similar else "")


def print_line(line: str, error: bool = False) -> None:
    """Prints a line to stdout or stderr, with ? for characters that its encoding lacks.

    Does nothing if the stream is closed.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # a program without a console
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    with contextlib.suppress(OSError, ValueError):
        print(line.encode(encoding, "replace").decode(encoding), file=stream, flush=True)


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a program and exits: code 0 success, 1 failed, 2 invalid input, 130 Ctrl-C."""
    code = 0
    try:
        main()
    except (UserError, shared_memory.NoSharedMemoryError) as error:
        print_line(f"error: {error}", error=True)
        code = 2
    except RunFailedError as error:
        print_line(str(error), error=True)
        code = 1
    except KeyboardInterrupt:
        code = 130
    gc.freeze()  # skips a garbage collection over all of torch at exit, 0.2 s
    sys.exit(code)
