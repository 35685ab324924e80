"""DDPG and TD3 written anew from their papers, in NumPy and float64, each derivative by hand."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Layers = list[Floats]  # weight [in, out] and bias [out] of each layer in turn


class Transitions(NamedTuple):
    """N of them: s [N, O], a [N, A], r [N], s' [N, O] and whether s' is an end [N]."""

    states: Floats
    actions: Floats
    rewards: Floats
    next_states: Floats
    terminated: NDArray[np.bool_]


class Settings(NamedTuple):
    """γ, τ, η of Adam, σ and c of the noise on ã, and updates of the critics for each of π."""

    gamma: float
    tau: float
    learning_rate: float
    noise: float
    clip: float
    delay: int


def forward(layers: Layers, x: Floats) -> list[Floats]:
    """What enters each layer, and last what leaves the last: ReLU between them."""
    entered = [x]
    for i in range(0, len(layers), 2):
        z = entered[-1] @ layers[i] + layers[i + 1]
        entered.append(np.maximum(z, 0) if i + 2 < len(layers) else z)
    return entered


def backward(layers: Layers, entered: list[Floats], delta: Floats) -> tuple[Layers, Floats]:
    """Gradients by the layers and by what entered the first, from delta, that by what left."""
    gradients: Layers = []
    for i in reversed(range(0, len(layers), 2)):
        below = entered[i // 2]
        gradients = [below.T @ delta, delta.sum(0), *gradients]
        delta = delta @ layers[i].T * (below > 0 if i > 0 else 1)
    return gradients, delta


def value(critic: Layers, states: Floats, actions: Floats) -> list[Floats]:
    """Q(s, a), last and [N, 1], behind what entered each layer."""
    return forward(critic, np.concatenate([states, actions], 1))


class Adam:
    """Layers that step: Kingma & Ba 2015, algorithm 1."""

    def __init__(self, layers: Layers, learning_rate: float) -> None:
        self.layers, self.learning_rate, self.t = layers, learning_rate, 0
        self.m = [np.zeros_like(each) for each in layers]
        self.v = [np.zeros_like(each) for each in layers]

    def step(self, gradients: Layers) -> None:
        self.t += 1
        self.m = [0.9 * m + 0.1 * g for m, g in zip(self.m, gradients, strict=True)]
        self.v = [0.999 * v + 0.001 * g**2 for v, g in zip(self.v, gradients, strict=True)]
        first, second = 1 - 0.9**self.t, 1 - 0.999**self.t
        self.layers = [
            theta - self.learning_rate * (m / first) / (np.sqrt(v / second) + 1e-8)
            for theta, m, v in zip(self.layers, self.m, self.v, strict=True)
        ]


class Paper:
    """Fujimoto et al. 2018, algorithm 1, and ã kept in the actions' range as in the authors' code.

    With one critic, no noise and no delay it is Lillicrap et al. 2016, algorithm 1.
    """

    def __init__(
        self,
        settings: Settings,
        actor: Layers,
        critics: list[Layers],
        actor_copy: Layers,
        critic_copies: list[Layers],
    ) -> None:
        self.settings, self.t = settings, 0
        self.actor = Adam(actor, settings.learning_rate)
        self.critics = [Adam(layers, settings.learning_rate) for layers in critics]
        self.actor_copy, self.critic_copies = actor_copy, critic_copies

    def targets(self, batch: Transitions, draws: Floats) -> Floats:
        """The targets y [N], with noise made of draws from N(0, 1), [N, A]."""
        clip = self.settings.clip
        self.smooth = np.clip(self.settings.noise * draws, -clip, clip)
        self.noisy = np.tanh(forward(self.actor_copy, batch.next_states)[-1]) + self.smooth
        actions = np.clip(self.noisy, -1, 1)
        valued = [value(copied, batch.next_states, actions)[-1] for copied in self.critic_copies]
        self.estimates = np.concatenate(valued, 1)  # [N, critics]
        future = np.where(batch.terminated, 0, self.estimates.min(1))
        return batch.rewards + self.settings.gamma * future

    def update(self, batch: Transitions, draws: Floats) -> tuple[Floats, float]:
        """One update; gives y and the sum of the critics' losses."""
        y, loss = self.targets(batch, draws), 0.0
        for critic in self.critics:
            entered = value(critic.layers, batch.states, batch.actions)
            errors = entered[-1] - y[:, None]
            critic.step(backward(critic.layers, entered, 2 * errors / len(y))[0])
            loss += float(np.mean(errors**2))
        self.t += 1
        if self.t % self.settings.delay == 0:
            self.climb(batch.states)
            self.actor_copy = self.nearer(self.actor_copy, self.actor)
            pairs = zip(self.critic_copies, self.critics, strict=True)
            self.critic_copies = [self.nearer(copied, critic) for copied, critic in pairs]
        return y, loss

    def climb(self, states: Floats) -> None:
        """∇J = mean ∇_a Q_1(s, a)|a=π(s) ∇π(s), uphill."""
        entered, first = forward(self.actor.layers, states), self.critics[0].layers
        actions = np.tanh(entered[-1])
        N, A = actions.shape
        _, by_inputs = backward(first, value(first, states, actions), np.full((N, 1), 1 / N))
        uphill = by_inputs[:, -A:] * (1 - actions**2)
        self.actor.step(backward(self.actor.layers, entered, -uphill)[0])

    def nearer(self, copied: Layers, followed: Adam) -> Layers:
        """θ' ← τ θ + (1 − τ) θ'."""
        tau, pairs = self.settings.tau, zip(copied, followed.layers, strict=True)
        return [tau * new + (1 - tau) * old for old, new in pairs]
