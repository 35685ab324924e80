"""Checkpoints: files with a digest, written atomically; the previous one is kept."""

import contextlib
import dataclasses
import io
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any, get_type_hints

import gymnasium
import numpy as np
import torch
from torch import Tensor

from hogwild_rl.config import base, validation
from hogwild_rl.envs import checks, codecs
from hogwild_rl.envs.make import EnvInfo
from hogwild_rl.errors import UserError
from hogwild_rl.runs import files, space_dicts
from hogwild_rl.runs.logger import Progress, Recent, Snapshot
from hogwild_rl.runs.state import TrainState

FORMAT, _OLDER_FORMATS = "hogwild_rl-7", ("hogwild_rl-6", "hogwild_rl-5")
_PLAIN = {type(None), bool, int, float, str}  # types of settings
_SPACES = ("observation_space", "action_space")
CHECKPOINT_FILE, PREVIOUS_FILE, BEST_FILE = "checkpoint.pt", "checkpoint.previous.pt", "best.pt"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """State of a run at one moment.

    Attributes:
        algorithm: module name of the algorithm.
        settings: settings of the run, plain values.
        observation_space, action_space: spaces of a single environment.
        parameters: model parameters by name.
        optimizer: state_dict of the optimizer.
        normalization: running moments by name.
        counters: progress of the run.
        worker_state: resumable state of a single worker; None with several workers.
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
        """Writes the checkpoint as in `files.atomic_write`."""
        document = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        document |= {"format": FORMAT, "counters": dataclasses.asdict(self.counters)}
        for name in _SPACES:
            document[name] = space_dicts.space_to_dict(document[name])
        for name, value in self.settings.items():
            values = value if isinstance(value, list | tuple) else [value]
            if not {type(each) for each in values} <= _PLAIN:
                raise TypeError(f"setting {name} is {value!r}, which no checkpoint can hold")
        stream = io.BytesIO()
        torch.save(document, stream)
        with stream.getbuffer() as content:  # released also if writing fails
            files.write_with_digest(path, content, previous)

    @classmethod
    def load(cls, path: pathlib.Path) -> "Checkpoint":
        """Reads a checkpoint; nothing in the file can run code.

        Raises:
            UserError: the file does not exist, is damaged, or is not a checkpoint.
        """
        invalid = f"{path} is not a checkpoint of hogwild_rl, or it is damaged: give another"
        try:
            content = io.BytesIO(files.read_with_digest(path))
            document = torch.load(content, weights_only=True, map_location="cpu")
        except FileNotFoundError as error:
            raise UserError(f"{path} does not exist: give a run or a saved agent") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from error
        except Exception as error:  # an invalid file can make the unpickler raise any exception
            raise UserError(invalid) from error
        if not isinstance(document, dict):
            raise UserError(invalid)
        _check_format(path, document.get("format"), invalid)
        try:
            if "recall" in document:
                _upgrade(document)
            values = {field.name: document[field.name] for field in dataclasses.fields(cls)}
            values["counters"] = Progress(**values["counters"])
            for name in _SPACES:
                values[name] = space_dicts.space_from_dict(values[name])
            loaded = cls(**values)
            loaded._check_types()
        except Exception as error:  # a valid digest does not mean valid content
            raise UserError(invalid) from error
        parts = codecs.leaves(loaded.observation_space)
        if document["format"] != FORMAT and any(map(_scaled_before, parts)):
            raise UserError(
                f"{path} has small images, which version 0.2 scaled and this one does not: read it "
                "with that version, or train again"
            )
        return loaded

    def _check_types(self) -> None:
        for instance in (self, self.counters):
            for name, hint in get_type_hints(type(instance)).items():
                validation.check_type(name, getattr(instance, name), hint)

    @contextlib.contextmanager
    def fitting(self) -> Iterator[None]:
        """Context that raises exceptions as a UserError: the checkpoint's parts do not fit."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # torch raises many types
            reason = checks.abbreviate(f"{type(error).__name__}: {error}")
            raise UserError(
                f"the checkpoint's parameters do not fit its settings ({reason}): give another"
            ) from error


def _scaled_before(space: gymnasium.Space[Any]) -> bool:
    """True for images that were scaled to 0..1 by version 0.2 and are not any more."""
    if not codecs.image_like(space) or space.dtype != np.uint8:
        return False
    return bool((space.high == 255).all()) and codecs.as_image(space) is None


def _upgrade(document: dict[str, Any]) -> None:
    """Renames the fields of a checkpoint of version 0.1 in place."""
    document["settings"] = base.renamed(document["settings"])
    document["counters"]["sessions"] = document["counters"].pop("lives")
    state = document["worker_state"] = document.pop("recall")
    if state is not None and "lacking" in state:
        state["unsaved_reason"] = state.pop("lacking")


def _check_format(path: pathlib.Path, found: Any, invalid: str) -> None:
    if found in (FORMAT, *_OLDER_FORMATS):
        return
    family = FORMAT.rpartition("-")[0]
    if isinstance(found, str) and found.startswith(f"{family}-"):
        raise UserError(
            f"{path} has format {found!r}, this version reads {FORMAT}: read it with the version "
            "that wrote it"
        )
    raise UserError(invalid)


def _with_groups_of(current: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """Saved statistics with the current hyperparameters: those are settings of this session."""
    if "param_groups" in saved:
        return {**saved, "param_groups": current["param_groups"]}
    return {name: _with_groups_of(current[name], part) for name, part in saved.items()}


def load_newest(folder: pathlib.Path) -> tuple[Checkpoint, pathlib.Path]:
    """Loads the newest undamaged checkpoint in a run folder, and returns it with its path.

    Raises:
        UserError: the folder has none.
    """
    paths = [folder / name for name in (CHECKPOINT_FILE, PREVIOUS_FILE)]
    existing = [path for path in paths if path.exists()]
    if not existing:
        raise UserError(f"{folder} holds no checkpoint: give the folder of a run, or a saved agent")
    for path in existing[:-1]:
        with contextlib.suppress(UserError):
            return Checkpoint.load(path), path
    try:
        return Checkpoint.load(existing[-1]), existing[-1]
    except UserError:
        return Checkpoint.load(existing[0]), existing[0]  # reports the error of the newest


def copied(value: Any) -> Any:
    """Copies nested dicts and lists, and their tensors to the CPU, out of shared memory."""
    if isinstance(value, torch.Tensor):
        return value.to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


class Checkpointer:
    """Writes the checkpoints of a run and restores its state from them.

    Args:
        algorithm, settings, env_info: as in `Checkpoint`.
        state: live training state of the run.
        session: number of this session of the run, from 1.

    Attributes:
        best: highest mean return so far, or None.
    """

    def __init__(
        self,
        algorithm: str,
        settings: dict[str, Any],
        env_info: EnvInfo,
        state: TrainState,
        session: int,
    ) -> None:
        self._algorithm, self._settings, self._env_info = algorithm, settings, env_info
        self._model, self._optimizer = state.model.module, state.optimizer
        self._normalization, self._session = state.normalization, session
        self.best: float | None = None
        self._good: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._writes = files.BestEffortWrites()
        self._saved_s = time.monotonic()

    def restore(self, saved: Checkpoint) -> None:
        """Loads the parameters, optimizer and moments of a checkpoint, in place.

        Raises:
            UserError: they do not fit the model.
        """
        with saved.fitting():
            self._model.load_state_dict(saved.parameters)
            self._optimizer.load_state_dict(
                _with_groups_of(self._optimizer.state_dict(), saved.optimizer)
            )
            self._normalization.restore(saved.normalization)

    def checkpoint(
        self, snapshot: Snapshot, episodes: Recent, worker_state: dict[str, Any] | None = None
    ) -> Checkpoint:
        """Returns the current state of the run, with the state of its single worker if given."""
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
        """Resets parameters that are not finite to those of the last finite check.

        Returns:
            True if the parameters were reset.
        """
        # isfinite reads each value twice: while workers write, it needs a copy.
        parameters = copied(self._model.state_dict())
        if all(tensor.isfinite().all() for tensor in parameters.values()):
            self._good = parameters, copied(self._optimizer.state_dict())
            return False
        if self._good is None:
            return False
        self._model.load_state_dict(self._good[0])
        self._optimizer.load_state_dict(self._good[1])
        return True

    def keep_best(self, folder: pathlib.Path, snapshot: Snapshot, episodes: Recent) -> None:
        """Saves best.pt if the mean return is the highest so far."""
        best = -math.inf if self.best is None else self.best
        if best < snapshot.return_mean < math.inf:
            self.best = snapshot.return_mean
            with self._writes.at(folder / BEST_FILE):
                self.checkpoint(snapshot, episodes).save(folder / BEST_FILE)

    @property
    def age_s(self) -> float:
        """Seconds since the newest checkpoint was saved."""
        return time.monotonic() - self._saved_s

    def keep_newest(
        self,
        folder: pathlib.Path,
        snapshot: Snapshot,
        episodes: Recent,
        worker_state: dict[str, Any] | None,
    ) -> None:
        """Saves the newest checkpoint and keeps the one before."""
        self._saved_s = time.monotonic()
        newest, previous = folder / CHECKPOINT_FILE, folder / PREVIOUS_FILE
        with self._writes.at(newest):
            self.checkpoint(snapshot, episodes, worker_state).save(newest, previous)
