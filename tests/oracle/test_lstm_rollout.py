"""Tests of LSTM rollouts against each episode replayed from its start."""

import dataclasses
import functools
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from torch import Tensor

from hogwild_rl.collect.rollout import Collector, Rollout
from hogwild_rl.envs import make, vectorize
from hogwild_rl.envs.codecs import ActionCodec, EnvCodec, ObservationCodec
from hogwild_rl.models.actor_critic import ActorCritic, Architecture

H, B, T, ROLLOUTS, ACTIONS = 6, 3, 7, 14, 2


def short_cartpole() -> make.Env:
    """Returns CartPole with a time limit of 12 steps."""
    return TimeLimit(gymnasium.make("CartPole-v1").unwrapped, 12)


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of one environment."""

    seen: Tensor
    action: Tensor
    valid: bool
    log_probs: Tensor
    value: float


def model_of(space: spaces.Box) -> ActorCritic:
    """Returns a model whose policy depends on the recurrent state."""
    generator = torch.Generator().manual_seed(3)
    model = ActorCritic(space, spaces.Discrete(ACTIONS), Architecture(lstm=H), generator)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.5)
    return model


def collector_of(
    env: make.EnvSource, groups: int, device: torch.device | None
) -> tuple[Collector, ActorCritic]:
    envs = [vectorize.sequential(env, B) for _ in range(groups)]
    space: Any = envs[0].single_observation_space
    env_codec = EnvCodec(
        ObservationCodec.of(space), ActionCodec.of(spaces.Discrete(ACTIONS)), state_size=H
    )
    return Collector(envs, env_codec, T, 5, lambda *_: None, device), model_of(space)


def all_log_probs(policy: Any, shape: tuple[int, ...]) -> Tensor:
    """Returns the log-probabilities of all actions, [*shape, A]."""
    each = [torch.full(shape, action) for action in range(ACTIONS)]
    return torch.stack([policy.log_prob(actions) for actions in each], -1)


@torch.no_grad()
def collect(groups: int, device: torch.device | None) -> tuple[list[list[Step]], ActorCritic, int]:
    """Returns the steps of each environment by `forward`, the model, and the number of ends."""
    collector, model = collector_of(short_cartpole, groups, device)
    generator = torch.Generator().manual_seed(9)
    act = functools.partial(model.act, generator=generator)
    columns: list[list[Step]] = [[] for _ in range(groups * B)]
    for _ in range(ROLLOUTS):
        rollout: Rollout = collector.collect(act)
        policy, values = model(rollout.observations, rollout.state, rollout.valid)
        log_probs = all_log_probs(policy, rollout.actions.shape)
        for t, b in np.ndindex(T, groups * B):
            seen, action = rollout.observations[t, b].clone(), rollout.actions[t, b].clone()
            valid, value = bool(rollout.valid[t, b]), values[t, b].item()
            columns[b].append(Step(seen, action, valid, log_probs[t, b], value))
    ends = sum(not step.valid for column in columns for step in column)
    return columns, model, ends


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("device", [None, torch.device("cpu")], ids=["in place", "staged"])
@torch.no_grad()
def test_every_step_equals_that_of_its_replayed_episode(
    groups: int, device: torch.device | None
) -> None:
    """Replays with `policy` one step at a time, from the initial state at each episode's start."""
    columns, model, ends = collect(groups, device)
    assert ends > 5 * groups * B  # most episodes cross the boundary of a rollout
    difference = 0.0
    for column in columns:
        state = None
        for previous, step in zip([None, *column], column, strict=False):
            if previous is not None and not previous.valid:
                state = None
            policy, state = model.policy(step.seen[None], state)
            expected = all_log_probs(policy, (1,))[0]
            torch.testing.assert_close(step.log_probs, expected, rtol=1e-4, atol=1e-5)
            assert state is not None
            value = model.value_head(state[0, 0]).item()
            assert step.value == pytest.approx(value, 1e-4, 1e-5)
            stateless, _ = model.policy(step.seen[None])
            difference += float((all_log_probs(stateless, (1,))[0] - expected).abs().max())
    assert difference / sum(map(len, columns)) > 0.1  # the policy depends on the state


@torch.no_grad()
def test_actions_are_sampled_from_the_recomputed_distributions() -> None:
    """A nearly deterministic policy takes its mode, so acting used the same recurrent state."""
    collector, model = collector_of(short_cartpole, 1, None)
    rollout, logits = collector.collect(model.act), model.policy_head.logits
    policy, _ = model(rollout.observations, rollout.state, rollout.valid)
    logits.bias.sub_(all_log_probs(policy, (T, B)).mean((0, 1)))  # so that both actions occur
    logits.weight.mul_(1e5)
    logits.bias.mul_(1e5)
    act = functools.partial(model.act, generator=torch.Generator().manual_seed(1))
    taken = set()
    for _ in range(ROLLOUTS):
        rollout = collector.collect(act)
        policy, _ = model(rollout.observations, rollout.state, rollout.valid)
        certain = policy.entropy() < 1e-3
        assert certain.float().mean() > 0.9
        assert torch.equal(rollout.actions[certain], policy.mode()[certain])
        taken |= set(rollout.actions[certain].tolist())
    assert taken == {0, 1}


class NaNInFirstEpisode(gymnasium.Env[Any, Any]):
    """Observes NaN once, in its first episode of four steps."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(ACTIONS)
        self._episode = 0

    def _observe(self) -> Any:
        nonfinite = (self._episode, self._step) == (1, 2)
        return np.full(2, np.nan if nonfinite else 0.5, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._episode += 1
        self._step = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step += 1
        return self._observe(), 1.0, self._step == 4, False, {}


@torch.no_grad()
def test_a_non_finite_observation_affects_one_episode_only() -> None:
    collector, model = collector_of(NaNInFirstEpisode, 1, None)
    finite = []
    for _ in range(3):
        rollout = collector.collect(model.act)
        _, values = model(rollout.observations, rollout.state, rollout.valid)
        finite += values[:-1].isfinite().all(dim=1).tolist()
    assert finite == [True] * 2 + [False] * 3 + [True] * (3 * T - 5)
