"""Run folders, and resuming: the newest checkpoint and the settings that cannot change."""

import contextlib
import itertools
import pathlib
import time
from typing import Any

from hogwild_rl.config import base
from hogwild_rl.config.cli import print_line
from hogwild_rl.envs import make
from hogwild_rl.envs.codecs import one_line
from hogwild_rl.errors import UserError
from hogwild_rl.runs import files, logger
from hogwild_rl.runs.checkpoint import (
    BEST_FILE,
    CHECKPOINT_FILE,
    PREVIOUS_FILE,
    Checkpoint,
    load_newest,
)
from hogwild_rl.runs.logger import Progress


def prepare_folder(
    algorithm: str, config: base.RunConfig, env: str, stack: contextlib.ExitStack
) -> pathlib.Path:
    """Creates or reuses the run's folder, checks that it is usable, and locks it on the stack.

    Raises:
        UserError: the folder cannot be written, another process uses it, or a new run's folder is
            not empty.
    """
    try:
        if config.resume is not None:
            folder = pathlib.Path(config.resume)
            stack.enter_context(files.lock(folder))
            files.remove_temporaries(folder)
            if load_newest(folder)[1].name == PREVIOUS_FILE:
                # The next save must not replace the previous checkpoint by a damaged one.
                (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
        elif config.run_dir is not None:
            folder = pathlib.Path(config.run_dir)
            folder.mkdir(parents=True, exist_ok=True)
            if {path.name for path in folder.iterdir()} - {files.LOCK_FILE}:
                raise UserError(
                    f"run_dir {folder} is not empty: name a new folder, or --resume {folder}"
                )
            stack.enter_context(files.lock(folder))
        else:
            folder = _new_folder(algorithm, env)
            stack.enter_context(files.lock(folder))
    except OSError as error:
        raise UserError(
            f"run folder {error.filename} cannot be written ({error.strerror})"
        ) from error
    return folder


def _new_folder(algorithm: str, env: str) -> pathlib.Path:
    """Creates a unique folder under runs/, also for runs started in the same second."""
    plain = "".join(c if c.isalnum() or c in "-." else "-" for c in env)
    stem = f"{algorithm}_{plain}_{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        folder = pathlib.Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not folder.exists():  # runs is a link to nothing, or a file
                raise
            continue
        return folder
    raise AssertionError("unreachable")


# Settings that define the saved parameters: a resumed run cannot change them.
_FIXED = {
    *("env", "network", "hidden", "activation", "shared_trunk", "lstm", "critics"),
    *("normalize_observations", "state_dependent_std", "rescale_actions"),
}


def checkpoint_to_resume(config: base.RunConfig, env_info: make.EnvInfo) -> Checkpoint | None:
    """Returns the newest checkpoint of the run to resume, or None for a new run.

    Raises:
        UserError: there is none, or it does not fit these settings or this environment.
    """
    if config.resume is None:
        return None
    folder = pathlib.Path(config.resume)
    saved, path = load_newest(folder)
    logger.read_log(folder)  # raises before anything is changed
    if path.name == PREVIOUS_FILE and not config.quiet:
        print_line(f"the newest checkpoint is damaged or missing: resuming from {path}", error=True)
    wanted = config.to_json()
    for name in _FIXED & wanted.keys():
        values = (saved.settings.get(name), wanted[name])  # lists are read back as tuples
        before, now = (tuple(v) if isinstance(v, list) else v for v in values)
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
    """Returns the saved state of a single worker, or None if the seed has changed."""
    if saved is None or saved.settings.get("seed") != config.seed:
        return None
    return saved.worker_state


def best_return(folder: pathlib.Path, before: Progress) -> float | None:
    """Highest mean return so far; best.pt may be newer than the resumed checkpoint."""
    if not (folder / BEST_FILE).exists():
        return before.best_return
    saved = Checkpoint.load(folder / BEST_FILE).counters.best_return
    return max((best for best in (saved, before.best_return) if best is not None), default=None)
