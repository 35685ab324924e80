"""Running moments of observations and of discounted returns, which all workers share.

Every worker adds what it saw to a row of its own, and takes the moments of all rows together.
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

_LARGEST = 10.0  # deviations: before there was a reward, σ is 0, and the first one would be huge
_EPSILON = 1e-8  # keeps what never varies from becoming infinite
_BYTES = 4.0  # a variance of pixels that is noise: the first pictures of a game are all the same
_PICTURES = 8  # of a rollout that count


class Normalization:
    """The moments of a run.

    Args:
        workers: how many add to them.
        codec: of the observations.
        observations: whether theirs are kept.
        rewards: whether those of discounted returns are.
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
        """For a checkpoint."""
        return {name: moments.state() for name, moments in self.moments.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave, with any number of workers."""
        for name, moments in self.moments.items():
            if name in state:
                moments.restore(state[name])

    @torch.no_grad()
    def write_to(self, model: ActorCritic | DeterministicActorCritic) -> None:
        """Gives a model the moments of observations as they are now."""
        if "observations" not in self.moments or model.standardize is None:
            return
        merged = self.moments["observations"].merged()
        if not merged.count:
            return
        variance = merged.variance
        if isinstance(model.standardize, MeanImageNorm):  # one deviation for all pixels
            variance = variance.mean(keepdims=True) + _BYTES
        model.standardize.mean.copy_(torch.from_numpy(merged.mean))
        model.standardize.scale.copy_(torch.from_numpy(_scale(variance)))

    def rows(self, rollout: Rollout) -> Array:
        """What of a rollout counts, [N, size].

        What the policy acted on in valid steps; of pictures, which are large and much alike, a few
        of the first.
        """
        if self._vector:
            seen = rollout.observations[:-1, :, : self._vector][rollout.valid]
        else:
            seen = rollout.observations[0, :_PICTURES][rollout.valid[0, :_PICTURES]].flatten(1)
        return seen.numpy()


class Normalizer:
    """One worker's part in the moments of a run.

    Attributes:
        discounted: return of every environment up to now, [B]; None before the first rollout.

    Args:
        normalization: of the run.
        worker: its number.
        gamma: discount of the returns.
        clip: what rewards are clipped to, before anything else.
        factor: on rewards, after all else.
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
        """Adds a rollout's observations; it lies in the host's memory."""
        if "observations" in self._writers:
            rows = self._normalization.rows(rollout)
            # What is not finite would stay in the moments for ever.
            self._writers["observations"].add(rows[np.isfinite(rows).all(axis=1)])

    def transform_rewards(self, rewards: Array, ended: Array, valid: Array) -> None:
        """Turns what the environment pays into what the learner is paid, in place.

            r' = c · clip(clip(r) / σ(R), −10, 10)        R_t = clip(r_t) + γ R_{t−1}

        Args:
            rewards: [T, B]; 0 where not valid.
            ended: [T, B] bool, an episode ended with this step.
            valid: [T, B] bool.

        Source: Engstrom et al. 2020 (arXiv:2005.12729), section 3: the returns sum from the
        episode's beginning.
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
