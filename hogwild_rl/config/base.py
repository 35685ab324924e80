"""Settings shared by all algorithms, their defaults and settings.json."""

import contextlib
import dataclasses
import functools
import json
import math
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
    """Raises UserError if env, read from a file, would import a module that is not allowed."""
    if not isinstance(env, str):
        raise UserError(f"env of {source} must be a string, got {env!r}: give env")
    modules = make.modules_of(env)
    if modules and not allowed:
        raise UserError(
            f"{source} names env {env!r}, for which module {min(modules)!r} would be imported and "
            "could run any code: if you trust it, give --allow-import (allow_import=True in "
            "Python), or give env yourself"
        )


SETTINGS_FILE = "settings.json"
_QUOTA = pathlib.Path("/sys/fs/cgroup/cpu.max")

# Command-line form of `env`: an environment id.
ENV_FLAG = tyro.constructors.PrimitiveConstructorSpec[make.EnvSource](
    nargs=1,
    metavar="ID",
    instance_from_str=lambda words: words[0],
    is_instance=lambda value: isinstance(value, str) or callable(value),
    str_from_instance=lambda env: [make.name_of(env)],
)

_RENAMED = {"life_loss": "terminal_on_life_loss"}  # settings of version 0.1

# Given at every start, never saved or read from a file.
_NOT_SAVED = {"run_dir", "resume", "allow_import"}

_Config = TypeVar("_Config", bound="RunConfig")


def usable_cores() -> int:
    """Number of CPU cores that this process may use, at most its CPU quota, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = cpu_quota()
    return cores or 1 if quota is None else max(1, min(cores or 1, math.ceil(quota)))


def cpu_quota() -> float | None:
    """Cores that the control group of this process may use, or None without a limit."""
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or "max": no limit
        quota, period = map(int, _QUOTA.read_text().split())
        return quota / period
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of every run."""

    env: Annotated[make.EnvSource, ENV_FLAG] = "CartPole-v1"
    """Environment: a registered id, module:Id or module:Class; from Python also a callable."""
    total_timesteps: int = 1_000_000
    """Agent decisions (steps) to train for, over all workers and environments."""
    seed: int = 0
    """Seed of initial weights, environments and sampled actions."""
    target_return: float | None = None
    """Mean return that counts as solved; default: the reward threshold registered for env."""
    stop_when_solved: bool = False
    """End the run when the mean return of the last 100 episodes reaches target_return."""
    run_dir: str | None = None
    """New folder for this run; default: runs/ALGORITHM_ENV_TIME."""
    resume: str | None = None
    """Folder of an earlier run to resume; its settings apply unless given here."""
    allow_import: bool = False
    """Let the resumed run name an env module:Id, whose module can run any code."""
    checkpoint_every: float = 60.0
    """Seconds between checkpoints."""
    max_bad_updates: int = 100
    """Consecutive non-finite updates of one worker after which the run ends; they are dropped."""
    tensorboard: bool = False
    """Also write TensorBoard events to the run folder."""
    quiet: bool = False
    """Print nothing to the terminal; the logs in the run folder are complete."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            object.__setattr__(self, name, validation.check_type(name, getattr(self, name), hint))
        at_least("total_timesteps", self.total_timesteps, 1)
        between("seed", self.seed, 0, 2**63 - 1)
        above("checkpoint_every", self.checkpoint_every, 0)
        at_least("max_bad_updates", self.max_bad_updates, 1)
        if self.resume is not None and self.run_dir is not None:
            raise UserError("resume continues in the run's own folder: leave out run_dir")

    def for_env(self, env_info: make.EnvInfo) -> "RunConfig":
        """Returns the settings with defaults that depend on the environment."""
        del env_info
        return self

    def to_json(self) -> dict[str, Any]:
        """Plain values for settings.json and checkpoints; a callable env by its name."""
        plain = dataclasses.asdict(dataclasses.replace(self, env=make.to_setting(self.env)))
        return {name: value for name, value in plain.items() if name not in _NOT_SAVED}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaultToleranceConfig(RunConfig):
    """Restarts of processes; a single off-policy worker and A2C's sync environments have none."""

    max_restarts: int = 100
    """Restarts per hour of a process that crashes or hangs; 0: end the run instead."""
    step_timeout: float = 60.0
    """Seconds without a heartbeat after which a process counts as hung."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("max_restarts", self.max_restarts, 0)
        above("step_timeout", self.step_timeout, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HogwildConfig(FaultToleranceConfig):
    """Settings of learners whose workers share one model without locks."""

    workers: int = dataclasses.field(default_factory=usable_cores)
    """Actor-learner processes; default: one per usable core."""
    envs_per_worker: int = 1
    """Environments each worker steps as a batch; 1 is the paper's A3C."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("workers", "envs_per_worker"):
            at_least(name, getattr(self, name), 1)


def with_presets(algorithm: str) -> Callable[[type[_Config]], type[_Config]]:
    """Class decorator: fills in settings of the resumed run, or of the environment's preset.

    Precedence: given by the user, resumed run or else preset, default. A module named only by the
    resumed run is imported only if allow_import is given.
    """

    def decorate(config: type[_Config]) -> type[_Config]:
        plain_init = config.__init__

        @functools.wraps(plain_init)
        def init(self: _Config, **given: Any) -> None:
            given = {name: validation.plain(value) for name, value in given.items()}
            for name in ("run_dir", "resume"):
                if isinstance(given.get(name), str):
                    given[name] = os.path.expanduser(given[name])  # noqa: PTH111
            resume = given.get("resume")
            if resume is not None:
                made_by, base = read_settings(pathlib.Path(resume))
                if made_by != algorithm:
                    raise UserError(
                        f"{resume} is a run of {made_by}: resume it with hogwild_rl.{made_by}"
                    )
                if "env" not in given:
                    allowed = bool(given.get("allow_import"))
                    require_import_allowed(base.get("env", config.env), f"run {resume}", allowed)
                unknown = sorted(base.keys() - {field.name for field in dataclasses.fields(self)})
                if unknown:
                    raise UserError(f"{resume}/{SETTINGS_FILE} has unknown settings {unknown}")
            else:
                env = make.name_of(given.get("env", config.env))
                base = presets.settings(algorithm, env, {"workers": usable_cores(), **given})
            plain_init(self, **{**base, **given})

        config.__init__ = init  # type: ignore[method-assign, assignment]
        return config

    return decorate


def read_settings(run: pathlib.Path) -> tuple[str, dict[str, Any]]:
    """Returns a run's algorithm and its settings.

    Raises:
        UserError: the run does not exist, or its settings cannot be read.
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
    return made_by, {n: v for n, v in renamed(plain).items() if n not in _NOT_SAVED}


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings of an older version under their current names."""
    return {_RENAMED.get(name, name): value for name, value in settings.items()}


DeviceName: TypeAlias = Literal["auto", "cpu", "cuda"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceConfig(FaultToleranceConfig):
    """Device settings."""

    device: DeviceName = "auto"
    """Device for acting and learning; auto: a GPU where it is faster."""
    compile: Literal["auto"] | bool = "auto"
    """Capture acting and updates as CUDA graphs; auto: on a GPU only."""

    def compiles(self, device: torch.device) -> bool:
        """True if CUDA graphs are captured on this device; UserError if requested on the CPU."""
        if self.compile is True and device.type == "cpu":
            raise UserError("compile needs a GPU, this run is on the CPU: leave it out")
        return device.type == "cuda" if self.compile == "auto" else self.compile
