"""Checkpoints: one file with a digest, written atomically, and its predecessor."""

import contextlib
import dataclasses
import io
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any, Protocol, get_type_hints

import gymnasium
import torch
from torch import Tensor

from hogwild_rl.config import base, validation
from hogwild_rl.envs import checks
from hogwild_rl.envs.make import EnvInfo
from hogwild_rl.errors import UserError
from hogwild_rl.learn.normalization import Normalization
from hogwild_rl.models.actor_critic import ActorCritic
from hogwild_rl.models.deterministic import DeterministicActorCritic
from hogwild_rl.runs import files, space_dicts
from hogwild_rl.runs.logger import Progress, Recent, Snapshot

FORMAT, _OLDER_FORMAT = "hogwild_rl-6", "hogwild_rl-5"
CHECKPOINT_FILE, PREVIOUS_FILE, BEST_FILE = "checkpoint.pt", "checkpoint.previous.pt", "best.pt"


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
        worker_state: resumable state of its only worker; None with several workers.
    """

    algorithm: str
    settings: dict[str, Any]
    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    parameters: dict[str, Tensor]
    optimizer: dict[str, Any]
    normalization: dict[str, Any]
    counters: Progress
    worker_state: dict[str, Any] | None = None

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
            "observation_space": space_dicts.space_to_dict(self.observation_space),
            "action_space": space_dicts.space_to_dict(self.action_space),
            "parameters": self.parameters,
            "optimizer": self.optimizer,
            "normalization": self.normalization,
            "counters": dataclasses.asdict(self.counters),
            "worker_state": self.worker_state,
        }
        stream = io.BytesIO()
        torch.save(document, stream)
        files.write_with_digest(path, stream.getbuffer(), previous)

    @classmethod
    def load(cls, path: pathlib.Path) -> "Checkpoint":
        """Reads a checkpoint; nothing in the file can run code.

        Raises:
            UserError: there is none, it is torn, or it is not one of ours.
        """
        foreign = f"{path} is not a checkpoint of hogwild_rl, or it is damaged: give another"
        try:
            content = io.BytesIO(files.read_with_digest(path))
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
            if document["format"] == _OLDER_FORMAT:
                _upgrade(document)
            loaded = cls(
                algorithm=document["algorithm"],
                settings=document["settings"],
                observation_space=space_dicts.space_from_dict(document["observation_space"]),
                action_space=space_dicts.space_from_dict(document["action_space"]),
                parameters=document["parameters"],
                optimizer=document["optimizer"],
                normalization=document["normalization"],
                counters=Progress(**document["counters"]),
                worker_state=document["worker_state"],
            )
            loaded._check_kinds()
            return loaded
        except Exception as error:  # the seal tells that it is whole, not that it means anything
            raise UserError(foreign) from error

    def _check_kinds(self) -> None:
        for thing in (self, self.counters):
            for name, hint in get_type_hints(type(thing)).items():
                validation.check_type(name, getattr(thing, name), hint)

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
            printed = checks.abbreviate(f"{type(error).__name__}: {error}")
            raise UserError(
                f"the checkpoint's parameters do not fit its settings ({printed}): give another"
            ) from error


def _upgrade(document: dict[str, Any]) -> None:
    """Gives a document of version 0.1 the names of today."""
    document["settings"] = base.renamed(document["settings"])
    document["counters"]["sessions"] = document["counters"].pop("lives")
    state = document["worker_state"] = document.pop("recall")
    if state is not None and "lacking" in state:
        state["unsaved_reason"] = state.pop("lacking")


def _check_format(path: pathlib.Path, found: Any, foreign: str) -> None:
    if found in (FORMAT, _OLDER_FORMAT):
        return
    family = FORMAT.rpartition("-")[0]
    if isinstance(found, str) and found.startswith(f"{family}-"):
        raise UserError(
            f"{path} has format {found!r}, this version reads {FORMAT}: read it with the version "
            "that wrote it"
        )
    raise UserError(foreign)


def load_newest(folder: pathlib.Path) -> tuple[Checkpoint, pathlib.Path]:
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


def remove_torn(folder: pathlib.Path) -> None:
    """Removes the newest checkpoint where it is not whole and the one before it is.

    The next one to be saved would put it in that one's place, and leave no whole one for a moment.
    """
    if load_newest(folder)[1].name == PREVIOUS_FILE:
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)


def copied(value: Any) -> Any:
    """The same nest of dicts and lists with tensors copied, out of shared memory or a device."""
    if isinstance(value, torch.Tensor):
        return value.to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


class Stateful(Protocol):
    """What a checkpoint keeps the state of."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""


class Checkpointer:
    """What a run is made of, and the files it is kept in.

    Args:
        algorithm: name of the module that trains.
        settings: of the run, plain values.
        env_info: of the environment.
        model, optimizer, normalization: as they are at any moment.
        session: number of this session of the run, from 1.

    Attributes:
        best: highest mean return so far, or None.
    """

    def __init__(
        self,
        algorithm: str,
        settings: dict[str, Any],
        env_info: EnvInfo,
        model: ActorCritic | DeterministicActorCritic,
        optimizer: Stateful,
        normalization: Normalization,
        session: int,
    ) -> None:
        self._algorithm, self._settings, self._env_info = algorithm, settings, env_info
        self._model, self._optimizer, self._normalization = model, optimizer, normalization
        self._session = session
        self.best: float | None = None
        self._good: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._attempts = files.BestEffortWrites()
        self._saved_s = time.monotonic()

    def restore(self, saved: Checkpoint) -> None:
        """Goes on from a checkpoint: parameters and statistics, in place.

        Raises:
            UserError: they do not fit.
        """
        with saved.fitting():
            self._model.load_state_dict(saved.parameters)
            self._optimizer.load_state_dict(saved.optimizer)
            self._normalization.restore(saved.normalization)

    def checkpoint(
        self, snapshot: Snapshot, episodes: Recent, worker_state: dict[str, Any] | None = None
    ) -> Checkpoint:
        """The run at this moment, and what its only worker is in the middle of."""
        self._normalization.write_to(self._model)
        return Checkpoint(
            algorithm=self._algorithm,
            settings=self._settings,
            observation_space=self._env_info.observation_space,
            action_space=self._env_info.action_space,
            parameters=copied(dict(self._model.state_dict())),
            optimizer=copied(self._optimizer.state_dict()),
            normalization=self._normalization.state(),
            counters=Progress(
                steps=snapshot.steps,
                updates=snapshot.updates,
                episodes=snapshot.episodes,
                dropped=snapshot.dropped,
                elapsed_s=snapshot.time_s,
                best_return=self.best,
                sessions=self._session,
                recent_returns=episodes.returns,
                recent_lengths=episodes.lengths,
            ),
            worker_state=worker_state,
        )

    def guard(self) -> bool:
        """Puts parameters that are not finite back to what they were when last looked at.

        Returns:
            Whether that had to be done.
        """
        parameters = dict(self._model.state_dict())
        finite = torch.stack([tensor.isfinite().all() for tensor in parameters.values()])
        if finite.all():  # read once: on a GPU every answer is waited for
            self._good = copied(parameters), copied(self._optimizer.state_dict())
            return False
        if self._good is None:
            return False
        self._model.load_state_dict(self._good[0])
        self._optimizer.load_state_dict(self._good[1])
        return True

    def keep_best(self, folder: pathlib.Path, snapshot: Snapshot, episodes: Recent) -> None:
        """Keeps the run as the best so far, if it is."""
        best = -math.inf if self.best is None else self.best
        if best < snapshot.return_mean < math.inf:
            self.best = snapshot.return_mean
            with self._attempts.at(folder / BEST_FILE):
                self.checkpoint(snapshot, episodes).save(folder / BEST_FILE)

    @property
    def silent_s(self) -> float:
        """Seconds since the newest was kept."""
        return time.monotonic() - self._saved_s

    def keep_newest(
        self,
        folder: pathlib.Path,
        snapshot: Snapshot,
        episodes: Recent,
        worker_state: dict[str, Any] | None,
    ) -> None:
        """Keeps the run as it is; what was the newest stays beside it."""
        self._saved_s = time.monotonic()
        newest, previous = folder / CHECKPOINT_FILE, folder / PREVIOUS_FILE
        with self._attempts.at(newest):
            self.checkpoint(snapshot, episodes, worker_state).save(newest, previous)
