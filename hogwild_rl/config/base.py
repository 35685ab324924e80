"""Settings that every algorithm shares, their files and their defaults."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_type_hints

import torch
import tyro

from hogwild_rl.config import presets, validation
from hogwild_rl.config.validation import above, at_least, between
from hogwild_rl.envs import make
from hogwild_rl.errors import UserError


def require_import_allowed(env: Any, source: str, allowed: bool) -> None:
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


SETTINGS_FILE = "settings.json"

# On the command line an environment is named by its id.
ENV_FLAG = tyro.constructors.PrimitiveConstructorSpec[make.EnvSource](
    nargs=1,
    metavar="ID",
    instance_from_str=lambda words: words[0],
    is_instance=lambda value: isinstance(value, str) or callable(value),
    str_from_instance=lambda env: [make.name_of(env)],
)

_RENAMED = {"life_loss": "terminal_on_life_loss"}  # settings of version 0.1

# Said anew at every start, and never by a file.
_OF_THIS_START = {"run_dir", "resume", "allow_import"}

_Config = TypeVar("_Config", bound="RunConfig")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run is printed, whatever its algorithm."""

    env: Annotated[make.EnvSource, ENV_FLAG] = "CartPole-v1"
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
            object.__setattr__(self, name, validation.check_type(name, getattr(self, name), hint))
        at_least("total_timesteps", self.total_timesteps, 1)
        between("seed", self.seed, 0, 2**63 - 1)
        above("checkpoint_every", self.checkpoint_every, 0)
        at_least("max_bad_updates", self.max_bad_updates, 1)
        if self.resume is not None and self.run_dir is not None:
            raise UserError("resume goes on in the run's own folder: leave out run_dir")

    def to_json(self) -> dict[str, Any]:
        """Plain values, as kept in settings.json and checkpoints; a callable env by its name."""
        plain = dataclasses.asdict(dataclasses.replace(self, env=make.name_of(self.env)))
        return {name: value for name, value in plain.items() if name not in _OF_THIS_START}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaultToleranceConfig(RunConfig):
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


def with_presets(algorithm: str) -> Callable[[type[_Config]], type[_Config]]:
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
                base = load_settings(pathlib.Path(resume), algorithm)
                if "env" not in given:
                    allowed = bool(given.get("allow_import"))
                    require_import_allowed(base.get("env", config.env), f"run {resume}", allowed)
                unknown = base.keys() - {field.name for field in dataclasses.fields(self)}
                if unknown:
                    raise UserError(f"{resume}/{SETTINGS_FILE} has unknown {sorted(unknown)}")
            else:
                env = make.name_of(given.get("env", config.env))
                base = presets.settings(algorithm, env, {"workers": usable_cores(), **given})
            plain_init(self, **{**base, **given})

        config.__init__ = init  # type: ignore[method-assign, assignment]
        return config

    return decorate


def load_settings(run: pathlib.Path, algorithm: str) -> dict[str, Any]:
    """The settings a run of this algorithm was started with.

    Raises:
        UserError: there is no such run, its settings cannot be read, or another algorithm made it.
    """
    made_by, values = read_settings(run)
    if made_by != algorithm:
        raise UserError(f"{run} is a run of {made_by}: resume it with hogwild_rl.{made_by}")
    return values


def read_settings(run: pathlib.Path) -> tuple[str, dict[str, Any]]:
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
    return made_by, {n: v for n, v in renamed(plain).items() if n not in _OF_THIS_START}


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an older version under the names of today."""
    return {_RENAMED.get(name, name): value for name, value in settings.items()}


def usable_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


DeviceName: TypeAlias = Literal["auto", "cpu", "cuda"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceConfig(FaultToleranceConfig):
    """Where a learner computes."""

    device: DeviceName = "auto"
    """Device for acting and learning."""
    compile: Literal["auto"] | bool = "auto"
    """Record acting and updates as CUDA graphs; auto does so on a GPU."""

    def compiles(self, device: torch.device) -> bool:
        """Whether work on this device is recorded; UserError if asked to on the CPU."""
        if self.compile is True and device.type == "cpu":
            raise UserError("compile records CUDA graphs, and this run is on the CPU: leave it out")
        return device.type == "cuda" if self.compile == "auto" else self.compile
