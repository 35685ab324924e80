"""Writes a run's checkpoints; where it cannot, that is told, and training goes on."""

import math
import pathlib
import time
from typing import Any, Protocol

import torch

from hogwild_rl.envs.vector import EnvFacts
from hogwild_rl.models.actor_critic import ActorCritic
from hogwild_rl.models.deterministic import DeterministicActorCritic
from hogwild_rl.runs import files
from hogwild_rl.runs.checkpoint import (
    BEST_FILE,
    CHECKPOINT_FILE,
    PREVIOUS_FILE,
    Checkpoint,
    Counters,
    copied,
)
from hogwild_rl.runs.metrics import Recent, Snapshot
from hogwild_rl.runs.normalize import Normalization


class Stateful(Protocol):
    """What a checkpoint keeps the state of."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""


class Keeper:
    """What a run is made of, and the files it is kept in.

    Args:
        algorithm: name of the module that trains.
        settings: of the run, plain values.
        facts: of the environment.
        model, optimizer, normalization: as they are at any moment.
        life: number of this life of the run, from 1.

    Attributes:
        best: highest mean return so far, or None.
    """

    def __init__(
        self,
        algorithm: str,
        settings: dict[str, Any],
        facts: EnvFacts,
        model: ActorCritic | DeterministicActorCritic,
        optimizer: Stateful,
        normalization: Normalization,
        life: int,
    ) -> None:
        self._algorithm, self._settings, self._facts = algorithm, settings, facts
        self._model, self._optimizer, self._normalization = model, optimizer, normalization
        self._life = life
        self.best: float | None = None
        self._good: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._attempts = files.Attempts()
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
        self, snapshot: Snapshot, episodes: Recent, recall: dict[str, Any] | None = None
    ) -> Checkpoint:
        """The run at this moment, and what its only worker is in the middle of."""
        self._normalization.freeze(self._model)
        return Checkpoint(
            algorithm=self._algorithm,
            settings=self._settings,
            observation_space=self._facts.observation_space,
            action_space=self._facts.action_space,
            parameters=copied(dict(self._model.state_dict())),
            optimizer=copied(self._optimizer.state_dict()),
            normalization=self._normalization.state(),
            counters=Counters(
                steps=snapshot.steps,
                updates=snapshot.updates,
                episodes=snapshot.episodes,
                dropped=snapshot.dropped,
                elapsed_s=snapshot.time_s,
                best_return=self.best,
                lives=self._life,
                recent_returns=episodes.returns,
                recent_lengths=episodes.lengths,
            ),
            recall=recall,
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
        recall: dict[str, Any] | None,
    ) -> None:
        """Keeps the run as it is; what was the newest stays beside it."""
        self._saved_s = time.monotonic()
        newest, previous = folder / CHECKPOINT_FILE, folder / PREVIOUS_FILE
        with self._attempts.at(newest):
            self.checkpoint(snapshot, episodes, recall).save(newest, previous)
