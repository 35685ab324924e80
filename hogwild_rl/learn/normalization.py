"""Normalization of observations and rewards by running moments that all workers share.

Every worker adds its samples to its own row and reads the merged moments of all rows.
"""

import math
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from hogwild_rl.collect.rollout import Rollout
from hogwild_rl.envs.codecs import ObservationCodec
from hogwild_rl.hogwild.running_moments import RunningMoments
from hogwild_rl.models.actor_critic import ActorCritic
from hogwild_rl.models.deterministic import DeterministicActorCritic
from hogwild_rl.models.layers import MeanImageNorm

Array = np.ndarray[Any, Any]
Clip: TypeAlias = Literal["none", "sign"] | float

_LARGEST = 10.0  # in units of σ, which is 0 before the first reward: that one would be huge
_EPSILON = 1e-8  # a constant value has variance 0
_BYTES = 4.0  # variance of pixel noise, as the first images of a game are all equal
_PICTURES = 8  # images per rollout that enter the moments


class Normalization:
    """Running moments of observations and discounted returns of a run.

    Args:
        workers, codec: number of workers that add samples, and codec of the observations.
        observations, rewards: True to record the moments of observations, of discounted returns.
    """

    def __init__(
        self, workers: int, codec: ObservationCodec, *, observations: bool, rewards: bool
    ) -> None:
        self._vector = codec.vector
        self.moments: dict[str, RunningMoments] = {}
        if observations:
            self.moments["observations"] = RunningMoments(
                workers, codec.vector or math.prod(codec.shape)
            )
        if rewards:
            self.moments["returns"] = RunningMoments(workers, 1)

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""
        return {name: moments.state() for name, moments in self.moments.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a saved `state`, with any number of workers."""
        for name, moments in self.moments.items():
            if name in state:
                moments.restore(state[name])

    @torch.no_grad()
    def write_to(self, model: ActorCritic | DeterministicActorCritic) -> None:
        """Copies the current moments of observations into a model."""
        if "observations" not in self.moments or model.standardize is None:
            return
        merged = self.moments["observations"].merged()
        if not merged.count:
            return
        variance = merged.variance
        if isinstance(model.standardize, MeanImageNorm):  # one σ for all pixels
            variance = variance.mean(keepdims=True) + _BYTES
        model.standardize.mean.copy_(torch.from_numpy(merged.mean))
        model.standardize.scale.copy_(torch.from_numpy(_scale(variance)))

    def rows(self, rollout: Rollout) -> Array:
        """Returns the observations of a rollout that enter the moments, [N, size].

        These are the observations of valid steps. Images are large and similar, so only a few of
        the first row are used.
        """
        if self._vector:
            rows = rollout.observations[:-1, :, : self._vector][rollout.valid]
        else:
            rows = rollout.observations[0, :_PICTURES][rollout.valid[0, :_PICTURES]].flatten(1)
        return rows.numpy()


class Normalizer:
    """Normalizer of one worker.

    Attributes:
        discounted: current return R_t of each environment, [B]; None before the first rollout.

    Args:
        normalization, worker: shared moments of the run, and index of the worker.
        gamma: discount γ of the returns.
        clip: "none", "sign", or the bound of |r|; applied first.
        factor: reward scale c, applied last.
    """

    def __init__(
        self, normalization: Normalization, worker: int, gamma: float, clip: Clip, factor: float
    ) -> None:
        self._writers = {
            name: moments.writer(worker) for name, moments in normalization.moments.items()
        }
        self._normalization = normalization
        self._gamma, self._clip, self._factor = gamma, clip, factor
        self.discounted: Array | None = None

    def add(self, rollout: Rollout) -> None:
        """Adds the observations of a rollout in host memory to the moments."""
        if "observations" in self._writers:
            rows = self._normalization.rows(rollout)
            # A non-finite value would make the moments non-finite permanently.
            self._writers["observations"].add(rows[np.isfinite(rows).all(axis=1)])

    @property
    def transforms_rewards(self) -> bool:
        """False if `transform_rewards` would change nothing."""
        return self._clip != "none" or self._factor != 1 or "returns" in self._writers

    def transform_rewards(self, rewards: Array, ended: Array, valid: Array) -> None:
        """Transforms rewards of the environments into rewards for the learner, in place.

            r' = c · clip(clip(r) / σ(R), −10, 10)        R_t = clip(r_t) + γ R_{t−1}

        Args:
            rewards: [T, B]; 0 where not valid.
            ended: [T, B] bool, an episode ended with this step.
            valid: [T, B] bool.

        Source: Engstrom et al. 2020 (arXiv:2005.12729), section 3: R_t sums from the first step of
        the episode.
        """
        if self._clip == "sign":
            np.sign(rewards, out=rewards)
        elif not isinstance(self._clip, str):
            np.clip(rewards, -self._clip, self._clip, out=rewards)
        if "returns" in self._writers:
            returns = self._discounted(rewards, ended)[valid]
            self._writers["returns"].add(returns[np.isfinite(returns), None])
            merged = self._normalization.moments["returns"].merged()
            rewards *= _scale(merged.variance)
            np.clip(rewards, -_LARGEST, _LARGEST, out=rewards)
        rewards *= self._factor

    def _discounted(self, rewards: Array, ended: Array) -> Array:
        returns = np.zeros(rewards.shape)
        running = np.zeros(rewards.shape[1]) if self.discounted is None else self.discounted
        for t, reward in enumerate(rewards):
            returns[t] = running = reward + self._gamma * running
            running = np.where(ended[t], 0.0, running)  # also where it is not finite
        self.discounted = running
        return returns


def _scale(variance: Array) -> Array:
    return 1 / np.sqrt(variance + _EPSILON)
