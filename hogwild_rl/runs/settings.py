"""What a run is told: settings that every algorithm shares, and where unset ones come from."""

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

from hogwild_rl import UserError
from hogwild_rl.envs import vector
from hogwild_rl.runs import files, kinds, presets, trust

SETTINGS_FILE = "settings.json"

# On the command line an environment is named by its id.
ENV_FLAG = tyro.constructors.PrimitiveConstructorSpec[vector.EnvSource](
    nargs=1,
    metavar="ID",
    instance_from_str=lambda words: words[0],
    is_instance=lambda value: isinstance(value, str) or callable(value),
    str_from_instance=lambda env: [vector.name_of(env)],
)

# Said anew at every start, and never by a file.
_OF_THIS_START = {"run_dir", "resume", "allow_import"}

_Config = TypeVar("_Config", bound="RunSettings")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What every run is told, whatever its algorithm."""

    env: Annotated[vector.EnvSource, ENV_FLAG] = "CartPole-v1"
    """Environment: a registered id, module:Id, or from Python a picklable callable."""
    total_timesteps: int = 1_000_000
    """Agent decisions to train for, over all workers and environments."""
    seed: int = 0
    """Seed of the initial weights, the environments and the sampled actions."""
    target_return: float | None = None
    """Mean return at which it counts as solved; by default what is registered for env."""
    stop_when_solved: bool = False
    """End when the mean of the last 100 episodes reaches that."""
    run_dir: str | None = None
    """Folder of this run; by default runs/ALGORITHM_ENV_TIME."""
    resume: str | None = None
    """Folder of an earlier run to go on with: its settings hold but for flags given here."""
    allow_import: bool = False
    """Let the run to resume name an env module:Id, whose module can run anything."""
    checkpoint_every: float = 60.0
    """Seconds between checkpoints."""
    max_bad_updates: int = 100
    """How many updates of a worker in a row may be dropped as not finite before the run ends."""
    tensorboard: bool = False
    """Write TensorBoard events into the run's folder too."""
    quiet: bool = False
    """Show nothing on the terminal; the run's folder has it all."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            object.__setattr__(self, name, kinds.fitting(name, getattr(self, name), hint))
        at_least("total_timesteps", self.total_timesteps, 1)
        between("seed", self.seed, 0, 2**63 - 1)
        above("checkpoint_every", self.checkpoint_every, 0)
        at_least("max_bad_updates", self.max_bad_updates, 1)
        if self.resume is not None and self.run_dir is not None:
            raise UserError("resume goes on in the run's own folder: leave out run_dir")

    def to_json(self) -> dict[str, Any]:
        """Plain values, as kept in settings.json and checkpoints; a callable env by its name."""
        plain = dataclasses.asdict(dataclasses.replace(self, env=vector.name_of(self.env)))
        return {name: value for name, value in plain.items() if name not in _OF_THIS_START}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrewSettings(RunSettings):
    """When processes are replaced: workers, or environments that have processes of their own."""

    max_restarts: int = 100
    """How often in an hour a process that fails or hangs is replaced; 0 ends the run instead.
    What runs in the program's own process, a single learner from a replay or environments that step
    in turn with A2C, has nobody who could."""
    step_timeout: float = 60.0
    """Seconds without a sign of life after which a process hangs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("max_restarts", self.max_restarts, 0)
        above("step_timeout", self.step_timeout, 0)


def completed(algorithm: str) -> Callable[[type[_Config]], type[_Config]]:
    """A class decorator: settings not given by hand come from the resumed run, or from a preset.

    The order is: given by hand, the resumed run's settings, the environment's preset, the default.
    A module that only a resumed run names is not imported, unless that is allowed.
    """

    def decorate(config: type[_Config]) -> type[_Config]:
        plain_init = config.__init__

        @functools.wraps(plain_init)
        def init(self: _Config, **given: Any) -> None:
            resume = given.get("resume")
            if resume is not None:
                base = saved(pathlib.Path(resume), algorithm)
                if "env" not in given:
                    allowed = bool(given.get("allow_import"))
                    trust.check_import(base.get("env", config.env), f"run {resume}", allowed)
                unknown = base.keys() - {field.name for field in dataclasses.fields(self)}
                if unknown:
                    raise UserError(f"{resume}/{SETTINGS_FILE} has unknown {sorted(unknown)}")
            else:
                env = vector.name_of(given.get("env", config.env))
                base = presets.settings(algorithm, env, {"workers": usable_cores(), **given})
            plain_init(self, **{**base, **given})

        config.__init__ = init  # type: ignore[method-assign, assignment]
        return config

    return decorate


def saved(run: pathlib.Path, algorithm: str) -> dict[str, Any]:
    """The settings a run of this algorithm was started with.

    Raises:
        UserError: there is no such run, its settings cannot be read, or another algorithm made it.
    """
    made_by, values = read(run)
    if made_by != algorithm:
        raise UserError(f"{run} is a run of {made_by}: resume it with hogwild_rl.{made_by}")
    return values


def read(run: pathlib.Path) -> tuple[str, dict[str, Any]]:
    """The algorithm that made a run, and the settings it was started with.

    Raises:
        UserError: there is no such run, or its settings cannot be read.
    """
    if not run.is_dir():
        raise UserError(f"run {run} does not exist: give the folder of an earlier run")
    try:
        document = json.loads((run / SETTINGS_FILE).read_text())
        made_by, values = document["algorithm"], dict(document["settings"])
    except FileNotFoundError as error:
        raise UserError(f"{run} holds no run: it has no {SETTINGS_FILE}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{run / SETTINGS_FILE} cannot be read ({error}): repair it") from error
    plain = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return made_by, {name: v for name, v in plain.items() if name not in _OF_THIS_START}


def write(folder: pathlib.Path, algorithm: str, settings: Mapping[str, Any]) -> None:
    """Writes settings.json, for people and for --resume."""
    document = {"algorithm": algorithm, "settings": settings}
    files.write_text(folder / SETTINGS_FILE, json.dumps(document, indent=2) + "\n")


def usable_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def at_least(name: str, value: float, least: float) -> None:
    """Raises UserError unless value ≥ least."""
    if not value >= least:
        raise UserError(f"{name} must be at least {least:g}, got {value}")


def above(name: str, value: float, bound: float) -> None:
    """Raises UserError unless value > bound and finite."""
    if not (value > bound and math.isfinite(value)):
        raise UserError(f"{name} must be above {bound:g}, got {value}")


def between(name: str, value: float, least: float, most: float) -> None:
    """Raises UserError unless least ≤ value ≤ most."""
    if not least <= value <= most:
        raise UserError(f"{name} must lie between {least:g} and {most:g}, got {value}")
