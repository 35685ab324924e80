"""Reference DDPG and TD3 in NumPy and float64, with derivatives by hand."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Layers = list[Floats]  # weight [in, out], bias [out] of layer 1, of layer 2, ...


class Transitions(NamedTuple):
    """Minibatch: s [N, O], a [N, A], r [N], s' [N, O] and terminated [N]."""

    states: Floats
    actions: Floats
    rewards: Floats
    next_states: Floats
    terminated: NDArray[np.bool_]


class Settings(NamedTuple):
    """γ, τ, η of Adam, σ and c of the target noise, and critic updates per policy update."""

    gamma: float
    tau: float
    learning_rate: float
    noise: float
    clip: float
    delay: int


def forward(layers: Layers, x: Floats) -> list[Floats]:
    """Inputs of each layer of an MLP with ReLU, and its output as the last element."""
    activations = [x]
    for i in range(0, len(layers), 2):
        z = activations[-1] @ layers[i] + layers[i + 1]
        activations.append(np.maximum(z, 0) if i + 2 < len(layers) else z)
    return activations


def backward(layers: Layers, activations: list[Floats], delta: Floats) -> tuple[Layers, Floats]:
    """Gradients with respect to the layers and to the input, given that of the output, delta."""
    gradients: Layers = []
    for i in reversed(range(0, len(layers), 2)):
        x = activations[i // 2]
        gradients = [x.T @ delta, delta.sum(0), *gradients]
        delta = delta @ layers[i].T * (x > 0 if i > 0 else 1)
    return gradients, delta


def value(critic: Layers, states: Floats, actions: Floats) -> list[Floats]:
    """Activations of a critic; the last element is Q(s, a), [N, 1]."""
    return forward(critic, np.concatenate([states, actions], 1))


class Adam:
    """Layers with the Adam optimizer: Kingma & Ba 2015, algorithm 1."""

    def __init__(self, layers: Layers, learning_rate: float) -> None:
        self.layers, self.learning_rate, self.t = layers, learning_rate, 0
        self.m = [np.zeros_like(each) for each in layers]
        self.v = [np.zeros_like(each) for each in layers]

    def step(self, gradients: Layers) -> None:
        self.t += 1
        self.m = [0.9 * m + 0.1 * g for m, g in zip(self.m, gradients, strict=True)]
        self.v = [0.999 * v + 0.001 * g**2 for v, g in zip(self.v, gradients, strict=True)]
        m_bias, v_bias = 1 - 0.9**self.t, 1 - 0.999**self.t
        self.layers = [
            theta - self.learning_rate * (m / m_bias) / (np.sqrt(v / v_bias) + 1e-8)
            for theta, m, v in zip(self.layers, self.m, self.v, strict=True)
        ]


class NumpyTD3:
    """TD3: Fujimoto et al. 2018, algorithm 1; ã is clipped to [−1, 1] as in the authors' code.

    With one critic, no noise and no delay it is DDPG: Lillicrap et al. 2016, algorithm 1.
    """

    def __init__(
        self,
        settings: Settings,
        actor: Layers,
        critics: list[Layers],
        target_actor: Layers,
        target_critics: list[Layers],
    ) -> None:
        self.settings, self.t = settings, 0
        self.actor = Adam(actor, settings.learning_rate)
        self.critics = [Adam(layers, settings.learning_rate) for layers in critics]
        self.target_actor, self.target_critics = target_actor, target_critics

    def targets(self, batch: Transitions, epsilon: Floats) -> Floats:
        """TD targets y [N]; ε is standard normal, [N, A]."""
        clip = self.settings.clip
        self.noise = np.clip(self.settings.noise * epsilon, -clip, clip)
        means = np.tanh(forward(self.target_actor, batch.next_states)[-1])
        self.noisy_actions = means + self.noise
        actions = np.clip(self.noisy_actions, -1, 1)
        columns = [value(each, batch.next_states, actions)[-1] for each in self.target_critics]
        self.target_values = np.concatenate(columns, 1)  # [N, critics]
        next_values = np.where(batch.terminated, 0, self.target_values.min(1))
        return batch.rewards + self.settings.gamma * next_values

    def update(self, batch: Transitions, epsilon: Floats) -> tuple[Floats, float]:
        """Updates once and returns y and the sum of the critics' losses."""
        y, loss = self.targets(batch, epsilon), 0.0
        for critic in self.critics:
            activations = value(critic.layers, batch.states, batch.actions)
            errors = activations[-1] - y[:, None]
            critic.step(backward(critic.layers, activations, 2 * errors / len(y))[0])
            loss += float(np.mean(errors**2))
        self.t += 1
        if self.t % self.settings.delay == 0:
            self.update_actor(batch.states)
            self.target_actor = self.polyak(self.target_actor, self.actor)
            pairs = zip(self.target_critics, self.critics, strict=True)
            self.target_critics = [self.polyak(target, critic) for target, critic in pairs]
        return y, loss

    def update_actor(self, states: Floats) -> None:
        """Gradient ascent with ∇J = mean ∇_a Q_1(s, a)|a=π(s) ∇π(s)."""
        activations, q1 = forward(self.actor.layers, states), self.critics[0].layers
        actions = np.tanh(activations[-1])
        N, A = actions.shape
        _, by_inputs = backward(q1, value(q1, states, actions), np.full((N, 1), 1 / N))
        ascent = by_inputs[:, -A:] * (1 - actions**2)
        self.actor.step(backward(self.actor.layers, activations, -ascent)[0])

    def polyak(self, target: Layers, online: Adam) -> Layers:
        """θ' ← τ θ + (1 − τ) θ'."""
        tau, pairs = self.settings.tau, zip(target, online.layers, strict=True)
        return [tau * new + (1 - tau) * old for old, new in pairs]
