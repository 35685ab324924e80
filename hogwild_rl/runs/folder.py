"""The folder that a run leaves behind: a new one for a new run, the same one for a resumed run."""

import itertools
import os
import pathlib
import time

from hogwild_rl import UserError
from hogwild_rl.runs import checkpoint, files, settings


def prepare(algorithm: str, config: settings.RunSettings, env: str) -> pathlib.Path:
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
            files.sweep(folder)
            checkpoint.forget_torn(folder)
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
