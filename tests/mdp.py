"""A small decision process with everything known: every episode, its probability, J and V."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from hogwild_rl.collect.rollout import Rollout
from hogwild_rl.models.actor_critic import ActorCritic, Architecture

Floats = NDArray[np.float64]

HORIZON, STATES, ACTIONS, END = 3, 2, 2, 2
# p(s'|s, a) and r(s, a, s'), [S, A, S']; the last s' is the end.
NEXT = np.array([[[0.6, 0.4, 0.0], [0.0, 0.7, 0.3]], [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]])
PAYS = np.array([[[1.0, 2.0, 0.0], [0.0, 4.0, 6.0]], [[3.0, 0.0, 2.0], [0.0, 5.0, 0.0]]])


class Small(gymnasium.Env[Any, Any]):
    """Starts in state 0; terminates at the end, and is truncated after three steps.

    Shows a one-hot of (t, s), so that V is linear in it, and zeros when an episode is over.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 1, (HORIZON * STATES,), np.float32)
        self.action_space = spaces.Discrete(ACTIONS)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._t = self._state = 0
        return shown(0, 0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        following = int(self.np_random.choice(STATES + 1, p=NEXT[self._state, action]))
        paid = float(PAYS[self._state, action, following])
        self._t, self._state = self._t + 1, following
        ends = following == END
        return shown(self._t, following), paid, ends, self._t == HORIZON and not ends, {}


@dataclasses.dataclass(frozen=True)
class Episode:
    """One that can happen: states has one more than the actions and rewards."""

    states: tuple[int, ...]
    actions: tuple[int, ...]
    rewards: tuple[float, ...]


def shown(t: int, state: int) -> NDArray[np.float32]:
    """The observation."""
    observation = np.zeros((HORIZON, STATES), np.float32)
    if t < HORIZON and state != END:
        observation[t, state] = 1
    return observation.ravel()


def episodes() -> list[Episode]:
    """All that can happen."""

    def ahead(t: int, state: int) -> list[Episode]:
        if t == HORIZON or state == END:
            return [Episode((state,), (), ())]
        return [
            Episode(
                (state, *rest.states),
                (a, *rest.actions),
                (float(PAYS[state, a, following]), *rest.rewards),
            )
            for a, following in itertools.product(range(ACTIONS), range(STATES + 1))
            if NEXT[state, a, following] > 0
            for rest in ahead(t + 1, following)
        ]

    return ahead(0, 0)


def policy_of(weight: Floats, bias: Floats) -> Floats:
    """π(a|t, s), [T, S, A], of a linear layer's weights [A, T S] and biases [A] in float64."""
    logits = weight.T.reshape(HORIZON, STATES, ACTIONS) + bias
    odds: Floats = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def probability(episode: Episode, policy: Floats) -> float:
    """P(τ) = Π π(a_t|t, s_t) p(s_{t+1}|s_t, a_t)."""
    factors = [
        policy[t, s, a] * NEXT[s, a, following]
        for t, ((s, following), a) in enumerate(
            zip(itertools.pairwise(episode.states), episode.actions, strict=True)
        )
    ]
    return float(np.prod(factors))


def values(policy: Floats, gamma: float) -> Floats:
    """V_t(s) by going backward from the horizon, [T, S]; J is V_0(0)."""
    V = np.zeros((HORIZON + 1, STATES + 1))
    for t in reversed(range(HORIZON)):
        Q = (NEXT * (PAYS + gamma * V[t + 1])).sum(-1)
        V[t, :STATES] = (policy[t] * Q).sum(-1)
    return V[:HORIZON, :STATES]


def gradient(weight: Floats, bias: Floats, gamma: float) -> Floats:
    """∇J by the layer's weights and biases, by central differences of V_0(0): no log π, no τ."""
    at, step = np.concatenate([weight.ravel(), bias]), 1e-5

    def value_of(parameters: Floats) -> float:
        policy = policy_of(parameters[: weight.size].reshape(weight.shape), parameters[-ACTIONS:])
        return float(values(policy, gamma)[0, 0])

    return np.array(
        [(value_of(at + e) - value_of(at - e)) / (2 * step) for e in step * np.eye(at.size)]
    )


def model(gamma: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float64) -> ActorCritic:
    """A linear policy that is far from uniform, and a value head that gives its exact V."""
    env = Small()
    made = ActorCritic(env.observation_space, env.action_space, Architecture(hidden=()))
    weight, bias = parameters_of(made)
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(0, 0.7, weight.shape), rng.normal(0, 0.3, bias.shape)
    head = made.policy_head.logits
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias))
        V = values(policy_of(*parameters_of(made)), gamma)
        made = made.to(dtype)
        made.value_head.weight.copy_(torch.from_numpy(V.reshape(1, -1)))
        made.value_head.bias.zero_()
    return made


def parameters_of(model: ActorCritic) -> tuple[Floats, Floats]:
    """Weights and biases of the policy in float64."""
    head = model.policy_head.logits
    return head.weight.detach().double().numpy(), head.bias.detach().double().numpy()


def rollout(played: Sequence[Episode], dtype: torch.dtype = torch.float64) -> Rollout:
    """These episodes side by side; after an episode's end there are rows of the next one."""
    T, B = max(len(each.actions) for each in played), len(played)
    observations = np.tile(shown(0, 0), (T + 1, B, 1))
    actions, rewards = np.ones((T, B), np.int64), np.zeros((T, B))
    terminated, truncated, valid = (np.zeros((T, B), np.bool_) for _ in range(3))
    for b, each in enumerate(played):
        n = len(each.actions)
        observations[: n + 1, b] = [shown(t, s) for t, s in enumerate(each.states)]
        actions[:n, b], rewards[:n, b], valid[:n, b] = each.actions, each.rewards, True
        terminated[n - 1, b] = each.states[-1] == END
        truncated[n - 1, b] = each.states[-1] != END
    return Rollout(
        observations=torch.from_numpy(observations).to(dtype),
        state=torch.zeros(2, B, 0),
        actions=torch.from_numpy(actions),
        rewards=torch.from_numpy(rewards).to(dtype),
        terminated=torch.from_numpy(terminated),
        truncated=torch.from_numpy(truncated),
        valid=torch.from_numpy(valid),
    )
