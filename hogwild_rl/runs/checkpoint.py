"""Everything a run needs to go on, in one file that is either whole or not there."""

import contextlib
import dataclasses
import io
import pathlib
from collections.abc import Iterator
from typing import Any, get_type_hints

import gymnasium
import torch
from torch import Tensor

from hogwild_rl import UserError
from hogwild_rl.envs import complaints, plainspaces
from hogwild_rl.runs import files, kinds

FORMAT = "hogwild_rl-5"
CHECKPOINT_FILE, PREVIOUS_FILE, BEST_FILE = "checkpoint.pt", "checkpoint.previous.pt", "best.pt"


@dataclasses.dataclass(frozen=True)
class Counters:
    """How far a run has come, over all its lives.

    Attributes:
        steps: transitions that counted.
        updates: gradients applied.
        episodes: episodes finished.
        dropped: gradients that were not finite.
        elapsed_s: seconds trained.
        best_return: highest mean over 100 episodes, or None before there were 100.
        lives: how often the run was started or resumed.
        recent_returns, recent_lengths: of the last 100 episodes at most, oldest first.
    """

    steps: int = 0
    updates: int = 0
    episodes: int = 0
    dropped: int = 0
    elapsed_s: float = 0.0
    best_return: float | None = None
    lives: int = 0
    recent_returns: tuple[float, ...] = ()
    recent_lengths: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A run at one moment.

    Attributes:
        algorithm: name of the module that made it.
        settings: of the run, plain values.
        observation_space, action_space: of one environment.
        parameters: of the model, by name.
        optimizer: its state_dict.
        normalization: running moments by name.
        counters: how far the run had come.
        recall: what its only worker was in the middle of; None where there were others, or it was.
    """

    algorithm: str
    settings: dict[str, Any]
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    parameters: dict[str, Tensor]
    optimizer: dict[str, Any]
    normalization: dict[str, Any]
    counters: Counters
    recall: dict[str, Any] | None = None

    def save(self, path: pathlib.Path, previous: pathlib.Path | None = None) -> None:
        """Writes the file; it is there whole, or as before.

        Args:
            path: of the file.
            previous: where what was there is kept.

        Raises:
            OSError: it cannot be written.
        """
        document = {
            "format": FORMAT,
            "algorithm": self.algorithm,
            "settings": self.settings,
            "observation_space": plainspaces.describe(self.observation_space),
            "action_space": plainspaces.describe(self.action_space),
            "parameters": self.parameters,
            "optimizer": self.optimizer,
            "normalization": self.normalization,
            "counters": dataclasses.asdict(self.counters),
            "recall": self.recall,
        }
        stream = io.BytesIO()
        torch.save(document, stream)
        files.write_sealed(path, stream.getbuffer(), previous)

    @classmethod
    def load(cls, path: pathlib.Path) -> "Checkpoint":
        """Reads a checkpoint; nothing in the file can run code.

        Raises:
            UserError: there is none, it is torn, or it is not one of ours.
        """
        foreign = f"{path} is not a checkpoint of hogwild_rl, or it is damaged: give another"
        try:
            content = io.BytesIO(files.read_sealed(path))
            document = torch.load(content, weights_only=True, map_location="cpu")
        except FileNotFoundError as error:
            raise UserError(f"{path} does not exist: give a run or a saved agent") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from error
        except Exception as error:  # a foreign file can make the unpickler raise anything
            raise UserError(foreign) from error
        if not isinstance(document, dict):
            raise UserError(foreign)
        _check_format(path, document.get("format"), foreign)
        try:
            loaded = cls(
                algorithm=document["algorithm"],
                settings=document["settings"],
                observation_space=plainspaces.made(document["observation_space"]),
                action_space=plainspaces.made(document["action_space"]),
                parameters=document["parameters"],
                optimizer=document["optimizer"],
                normalization=document["normalization"],
                counters=Counters(**document["counters"]),
                recall=document["recall"],
            )
            loaded._check_kinds()
            return loaded
        except Exception as error:  # the seal tells that it is whole, not that it means anything
            raise UserError(foreign) from error

    def _check_kinds(self) -> None:
        for thing in (self, self.counters):
            for name, hint in get_type_hints(type(thing)).items():
                kinds.fitting(name, getattr(thing, name), hint)

    @contextlib.contextmanager
    def fitting(self) -> Iterator[None]:
        """Around what puts its parts to use: where that fails, they do not fit each other.

        Raises:
            UserError: it failed.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # whatever torch makes of it
            told = complaints.short(f"{type(error).__name__}: {error}")
            raise UserError(
                f"the checkpoint's parameters do not fit its settings ({told}): give another"
            ) from error


def _check_format(path: pathlib.Path, found: Any, foreign: str) -> None:
    if found == FORMAT:
        return
    family = FORMAT.rpartition("-")[0]
    if isinstance(found, str) and found.startswith(f"{family}-"):
        raise UserError(
            f"{path} has format {found!r}, this version reads {FORMAT}: read it with the version "
            "that wrote it"
        )
    raise UserError(foreign)


def newest(folder: pathlib.Path) -> tuple[Checkpoint, pathlib.Path]:
    """The newest whole checkpoint in a run's folder, and its file.

    Raises:
        UserError: there is none.
    """
    paths = [folder / name for name in (CHECKPOINT_FILE, PREVIOUS_FILE)]
    there = [path for path in paths if path.exists()]
    if not there:
        raise UserError(f"{folder} holds no checkpoint: give the folder of a run, or a saved agent")
    for path in there[:-1]:
        with contextlib.suppress(UserError):
            return Checkpoint.load(path), path
    try:
        return Checkpoint.load(there[-1]), there[-1]
    except UserError:
        return Checkpoint.load(there[0]), there[0]  # to complain of the newest


def forget_torn(folder: pathlib.Path) -> None:
    """Removes the newest checkpoint where it is not whole and the one before it is.

    The next one to be saved would put it in that one's place, and leave no whole one for a moment.
    """
    if newest(folder)[1].name == PREVIOUS_FILE:
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)


def copied(value: Any) -> Any:
    """The same nest of dicts and lists with tensors copied, out of shared memory or a device."""
    if isinstance(value, torch.Tensor):
        return value.to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value
