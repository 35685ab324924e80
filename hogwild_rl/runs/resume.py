"""Resuming a run: its folder, its newest checkpoint, and the settings that cannot change."""

import itertools
import os
import pathlib
import sys
import time
from typing import Any

from hogwild_rl.config import base
from hogwild_rl.envs import make
from hogwild_rl.envs.codecs import one_line
from hogwild_rl.errors import UserError
from hogwild_rl.runs import checkpoint, files, logger
from hogwild_rl.runs.checkpoint import BEST_FILE, PREVIOUS_FILE, Checkpoint, load_newest
from hogwild_rl.runs.logger import Progress


def prepare_folder(algorithm: str, config: base.RunConfig, env: str) -> pathlib.Path:
    """The run's folder, made if it is new, and known to be writable. It never holds another run.

    Args:
        algorithm: its module's name, "a3c".
        config: names the folder, or the run to resume.
        env: name of the environment, for the default name.

    Raises:
        UserError: it cannot be written, or holds something already.
    """
    try:
        if config.resume is not None:
            folder = pathlib.Path(config.resume)
            files.remove_temporaries(folder)
            checkpoint.remove_torn(folder)
        elif config.run_dir is not None:
            folder = pathlib.Path(config.run_dir)
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise UserError(
                    f"run_dir {folder} is not empty: name a new folder, or --resume {folder}"
                )
        else:
            folder = _fresh(algorithm, env)
        probe = folder / f".probe.{os.getpid()}"
        probe.touch(exist_ok=False)  # a link that lies in a folder of another's is not followed
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"run folder {error.filename} cannot be written ({error.strerror})"
        ) from error
    return folder


def _fresh(algorithm: str, env: str) -> pathlib.Path:
    """A folder under runs/ that nobody else has, also not one started in the same second."""
    plain = "".join(c if c.isalnum() or c in "-." else "-" for c in env)
    stem = f"{algorithm}_{plain}_{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        folder = pathlib.Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("counting never ends")


# Settings that say what the saved parameters mean: a resumed run cannot change them.
_FIXED = {
    "env",
    "network",
    "hidden",
    "activation",
    "shared_trunk",
    "lstm",
    "critics",
    "normalize_observations",
    "state_dependent_std",
    "rescale_actions",
}


def checkpoint_to_resume(config: base.RunConfig, env_info: make.EnvInfo) -> Checkpoint | None:
    """The newest checkpoint of the run to resume; None for a new run.

    Raises:
        UserError: there is none, or it cannot go on with these settings in this environment.
    """
    if config.resume is None:
        return None
    folder = pathlib.Path(config.resume)
    saved, path = load_newest(folder)
    logger.read_log(folder)  # now, when nothing has been changed yet
    if path.name == PREVIOUS_FILE and not config.quiet:
        print(f"the newest checkpoint is damaged or missing: going on from {path}", file=sys.stderr)
    wanted = config.to_json()
    for name in _FIXED & wanted.keys():
        before, now = (_plain(values.get(name)) for values in (saved.settings, wanted))
        if now != before:
            raise UserError(
                f"{name} of run {config.resume} is {before}, got {now}: leave it out, or start a "
                "new run"
            )
    for space in ("observation_space", "action_space"):
        if getattr(saved, space) != getattr(env_info, space):
            raise UserError(
                f"{space} of {env_info.name} is {one_line(getattr(env_info, space))}, but run "
                f"{config.resume} was trained with {one_line(getattr(saved, space))}"
            )
    if saved.counters.steps >= config.total_timesteps:
        raise UserError(
            f"run {config.resume} has taken {saved.counters.steps} of "
            f"{config.total_timesteps} steps: give a larger total_timesteps"
        )
    return saved


def state_to_resume(saved: Checkpoint | None, config: base.RunConfig) -> dict[str, Any] | None:
    """What the run's only worker was in the middle of, unless another seed is asked for."""
    if saved is None or saved.settings.get("seed") != config.seed:
        return None
    return saved.worker_state


def best_return(folder: pathlib.Path, before: Progress) -> float | None:
    """The best mean return on record; best.pt may be newer than the checkpoint that is resumed."""
    if not (folder / BEST_FILE).exists():
        return before.best_return
    saved = Checkpoint.load(folder / BEST_FILE).counters.best_return
    return max((best for best in (saved, before.best_return) if best is not None), default=None)


def _plain(value: Any) -> Any:
    """Sizes given as a list from Python are kept as one, and read back as a tuple."""
    return tuple(value) if isinstance(value, list) else value
