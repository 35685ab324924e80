"""Small MDP with known episodes, probabilities, values V and objective J."""

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
# p(s'|s, a) and r(s, a, s'), [S, A, S']; the last s' is terminal.
NEXT_PROBS = np.array([[[0.6, 0.4, 0.0], [0.0, 0.7, 0.3]], [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]])
REWARDS = np.array([[[1.0, 2.0, 0.0], [0.0, 4.0, 6.0]], [[3.0, 0.0, 2.0], [0.0, 5.0, 0.0]]])


class Small(gymnasium.Env[Any, Any]):
    """The MDP as an environment: starts in state 0, truncated after three steps.

    Observations are one-hot of (t, s), so that V is linear in them; zeros at the end of an episode.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 1, (HORIZON * STATES,), np.float32)
        self.action_space = spaces.Discrete(ACTIONS)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._t = self._state = 0
        return observe(0, 0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        following = int(self.np_random.choice(STATES + 1, p=NEXT_PROBS[self._state, action]))
        reward = float(REWARDS[self._state, action, following])
        self._t, self._state = self._t + 1, following
        terminated = following == END
        truncated = self._t == HORIZON and not terminated
        return observe(self._t, following), reward, terminated, truncated, {}


@dataclasses.dataclass(frozen=True)
class Episode:
    """Episode: `states` has one element more than `actions` and `rewards`."""

    states: tuple[int, ...]
    actions: tuple[int, ...]
    rewards: tuple[float, ...]


def observe(t: int, state: int) -> NDArray[np.float32]:
    """Observation of state s at time t."""
    observation = np.zeros((HORIZON, STATES), np.float32)
    if t < HORIZON and state != END:
        observation[t, state] = 1
    return observation.ravel()


def episodes() -> list[Episode]:
    """All possible episodes."""

    def continuations(t: int, state: int) -> list[Episode]:
        if t == HORIZON or state == END:
            return [Episode((state,), (), ())]
        return [
            Episode(
                (state, *rest.states),
                (a, *rest.actions),
                (float(REWARDS[state, a, following]), *rest.rewards),
            )
            for a, following in itertools.product(range(ACTIONS), range(STATES + 1))
            if NEXT_PROBS[state, a, following] > 0
            for rest in continuations(t + 1, following)
        ]

    return continuations(0, 0)


def policy_of(weight: Floats, bias: Floats) -> Floats:
    """π(a|t, s), [T, S, A], of a linear layer's weights [A, T S] and biases [A] in float64."""
    logits = weight.T.reshape(HORIZON, STATES, ACTIONS) + bias
    exponentials: Floats = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def probability(episode: Episode, policy: Floats) -> float:
    """P(τ) = Π π(a_t|t, s_t) p(s_{t+1}|s_t, a_t)."""
    factors = [
        policy[t, s, a] * NEXT_PROBS[s, a, following]
        for t, ((s, following), a) in enumerate(
            zip(itertools.pairwise(episode.states), episode.actions, strict=True)
        )
    ]
    return float(np.prod(factors))


def values(policy: Floats, gamma: float) -> Floats:
    """V_t(s) by backward induction, [T, S]; J = V_0(0)."""
    V = np.zeros((HORIZON + 1, STATES + 1))
    for t in reversed(range(HORIZON)):
        Q = (NEXT_PROBS * (REWARDS + gamma * V[t + 1])).sum(-1)
        V[t, :STATES] = (policy[t] * Q).sum(-1)
    return V[:HORIZON, :STATES]


def gradient(weight: Floats, bias: Floats, gamma: float) -> Floats:
    """∇J with respect to weights and biases, by central differences of J = V_0(0)."""
    theta, step = np.concatenate([weight.ravel(), bias]), 1e-5

    def objective(parameters: Floats) -> float:
        policy = policy_of(parameters[: weight.size].reshape(weight.shape), parameters[-ACTIONS:])
        return float(values(policy, gamma)[0, 0])

    return np.array(
        [
            (objective(theta + e) - objective(theta - e)) / (2 * step)
            for e in step * np.eye(theta.size)
        ]
    )


def model(gamma: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float64) -> ActorCritic:
    """Linear policy that is far from uniform, with a value head that returns its exact V."""
    env = Small()
    actor_critic = ActorCritic(env.observation_space, env.action_space, Architecture(hidden=()))
    weight, bias = parameters_of(actor_critic)
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(0, 0.7, weight.shape), rng.normal(0, 0.3, bias.shape)
    head = actor_critic.policy_head.logits
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias))
        V = values(policy_of(*parameters_of(actor_critic)), gamma)
        actor_critic = actor_critic.to(dtype)
        actor_critic.value_head.weight.copy_(torch.from_numpy(V.reshape(1, -1)))
        actor_critic.value_head.bias.zero_()
    return actor_critic


def parameters_of(model: ActorCritic) -> tuple[Floats, Floats]:
    """Weights and biases of the policy in float64."""
    head = model.policy_head.logits
    return head.weight.detach().double().numpy(), head.bias.detach().double().numpy()


def rollout(columns: Sequence[Episode], dtype: torch.dtype = torch.float64) -> Rollout:
    """Rollout with one episode per column; the rows after its end are not valid."""
    T, B = max(len(each.actions) for each in columns), len(columns)
    observations = np.tile(observe(0, 0), (T + 1, B, 1))
    actions, rewards = np.ones((T, B), np.int64), np.zeros((T, B))
    terminated, truncated, valid = (np.zeros((T, B), np.bool_) for _ in range(3))
    for b, each in enumerate(columns):
        n = len(each.actions)
        observations[: n + 1, b] = [observe(t, s) for t, s in enumerate(each.states)]
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
