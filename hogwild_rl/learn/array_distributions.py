"""Action distributions in NumPy: samples, log-probabilities, and derivatives of a loss.

The derivatives continue from c = ∂L/∂log π(a_t|s_t) and e = ∂L/∂H(π(·|s_t)), [N, 1] each, to the
outputs of the policy head.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from torch import nn

from hogwild_rl.models.distributions import (
    LOG_STD_MAX,
    LOG_STD_MIN,
    Bernoulli,
    Categorical,
    GaussianHead,
    LogitsHead,
)

Array: TypeAlias = Any  # np.ndarray; its operators also return NumPy's scalars


class Categoricals:
    """Independent categorical distributions, as `Categorical` and `MultiCategorical`.

    log π(a) = Σ_i [x_i,a_i − log Σ_b exp(x_i,b)]        H = −Σ_i Σ_b p_i,b log p_i,b
    ∂L/∂x_b = c ([b = a] − p_b) − e p_b (log p_b + H)    in each component i
    """

    def __init__(self, head: LogitsHead) -> None:
        ends = np.cumsum(head.sizes).tolist()
        self._parts = [slice(end - n, end) for end, n in zip(ends, head.sizes, strict=True)]
        self._single = head.distribution is Categorical

    def sample(self, generator: np.random.Generator, logits: Array) -> Array:
        """Samples actions by the Gumbel-max trick, see `Categorical.sample`."""
        scores = generator.standard_exponential(logits.shape, np.float32)
        np.log(scores, out=scores)
        np.subtract(logits, scores, out=scores)
        if self._single:
            return scores.argmax(-1)
        return np.stack([scores[..., part].argmax(-1) for part in self._parts], -1)

    def log_prob(self, actions: Array, logits: Array) -> Array:
        """Log-probability log π(a), [N, 1]."""
        rows, total = np.arange(len(logits)), np.zeros(len(logits), np.float32)
        for i, part in enumerate(self._parts):
            x = logits[:, part] - np.maximum.reduce(logits[:, part], 1, keepdims=True)
            total += x[rows, actions[:, i]] - np.log(np.add.reduce(np.exp(x), 1))
        return total[:, None]

    def gradient(self, c: Array, e: Array, actions: Array, logits: Array) -> Sequence[Array]:
        """∂L/∂logits, [N, A]."""
        d = np.empty_like(logits)
        rows = np.arange(len(logits))
        for i, part in enumerate(self._parts):
            x = logits[:, part]
            log_p = x - np.maximum.reduce(x, 1, keepdims=True)
            p = np.exp(log_p)
            total = np.add.reduce(p, 1, keepdims=True)
            p /= total
            log_p -= np.log(total)
            by_x = d[:, part]
            entropy = -np.add.reduce(p * log_p, 1, keepdims=True)
            np.multiply(-p, c + e * (log_p + entropy), out=by_x)
            by_x[rows, actions[:, i]] += c[:, 0]
        return [d]


class Bernoullis:
    """Independent Bernoulli distributions, as `Bernoulli`; p = σ(x) = (1 + tanh(x/2)) / 2.

    log π(a) = Σ_i log σ(±x_i)        ∂L/∂x_i = c (a_i − p_i) − e x_i p_i (1 − p_i)
    """

    def sample(self, generator: np.random.Generator, logits: Array) -> Array:
        """Samples actions, [N, A]."""
        uniform = generator.random(logits.shape, np.float32)
        return (uniform < _sigmoid(logits)).astype(np.int64)

    def log_prob(self, actions: Array, logits: Array) -> Array:
        """Log-probability log π(a), [N, 1]."""
        signed = np.where(actions, -logits, logits)  # log σ(x) = −log(1 + exp(−x))
        return -np.add.reduce(np.logaddexp(0, signed), 1, keepdims=True)

    def gradient(self, c: Array, e: Array, actions: Array, logits: Array) -> Sequence[Array]:
        """∂L/∂logits, [N, A]."""
        p = _sigmoid(logits)
        return [c * (actions.astype(np.float32) - p) - e * logits * p * (1 - p)]


class Gaussians:
    """Diagonal Gaussian distribution, as `Gaussian`, of μ and log σ; z = (a − μ) / σ.

        log π(a) = −Σ_i (z_i² / 2 + log σ_i) + constant        H = Σ_i log σ_i + constant
        ∂L/∂μ_i = c z_i / σ_i        ∂L/∂log σ_i = c (z_i² − 1) + e

    A state-dependent log σ is clamped; its derivative is 0 where it is.
    """

    def __init__(self, head: GaussianHead) -> None:
        self._clamped = isinstance(head.log_std, nn.Linear)

    def sample(self, generator: np.random.Generator, mean: Array, log_std: Array) -> Array:
        """Samples actions, [N, A]."""
        noise = generator.standard_normal(mean.shape, np.float32)
        return mean + np.exp(self._clamp(log_std)) * noise

    def log_prob(self, actions: Array, mean: Array, log_std: Array) -> Array:
        """Log-probability log π(a), [N, 1]."""
        clamped = self._clamp(log_std)
        z = (actions - mean) * np.exp(-clamped)
        constant = np.float32(0.5 * math.log(2 * math.pi) * mean.shape[1])
        return -np.add.reduce(0.5 * z * z + clamped, 1, keepdims=True) - constant

    def gradient(
        self, c: Array, e: Array, actions: Array, mean: Array, log_std: Array
    ) -> Sequence[Array]:
        """∂L/∂μ and ∂L/∂log σ, [N, A] each."""
        clamped = self._clamp(log_std)
        by_std = np.exp(-clamped)
        z = (actions - mean) * by_std
        return [c * z * by_std, (c * (z * z - 1) + e) * (clamped == log_std)]

    def _clamp(self, log_std: Array) -> Array:
        if not self._clamped:
            return log_std
        return np.minimum(np.maximum(log_std, LOG_STD_MIN), LOG_STD_MAX)


def _sigmoid(x: Array) -> Array:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def of_head(head: LogitsHead | GaussianHead) -> Categoricals | Bernoullis | Gaussians:
    """Distribution of the outputs of a policy head."""
    if isinstance(head, GaussianHead):
        return Gaussians(head)
    return Bernoullis() if head.distribution is Bernoulli else Categoricals(head)
