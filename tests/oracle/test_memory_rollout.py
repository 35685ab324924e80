"""A policy with a memory in real environments, against every episode replayed from its start."""

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
    """Cut off after 12 steps, unless the pole falls before."""
    return TimeLimit(gymnasium.make("CartPole-v1").unwrapped, 12)


@dataclasses.dataclass(frozen=True)
class Step:
    """One environment at one moment."""

    seen: Tensor
    action: Tensor
    valid: bool
    log_probs: Tensor
    value: float


def model_of(space: spaces.Box) -> ActorCritic:
    """Whose policies depend on what they remember."""
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
    made = [vectorize.sync_vector_env(env, B) for _ in range(groups)]
    space: Any = made[0].single_observation_space
    env_codec = EnvCodec(
        ObservationCodec.of(space), ActionCodec.of(spaces.Discrete(ACTIONS)), state_size=H
    )
    return Collector(made, env_codec, T, 5, lambda phase: None, device), model_of(space)


def all_log_probs(policy: Any, shape: tuple[int, ...]) -> Tensor:
    """[*shape, A]."""
    each = [torch.full(shape, action) for action in range(ACTIONS)]
    return torch.stack([policy.log_prob(actions) for actions in each], -1)


@torch.no_grad()
def lived(groups: int, device: torch.device | None) -> tuple[list[list[Step]], ActorCritic, int]:
    """Each environment's steps, as `forward` saw them over all rollouts, and how many ended."""
    collector, model = collector_of(short_cartpole, groups, device)
    generator = torch.Generator().manual_seed(9)
    act = functools.partial(model.act, generator=generator)
    lives: list[list[Step]] = [[] for _ in range(groups * B)]
    for _ in range(ROLLOUTS):
        rollout: Rollout = collector.collect(act)
        policy, values = model(rollout.observations, rollout.state, rollout.valid)
        log_probs = all_log_probs(policy, rollout.actions.shape)
        for t, b in np.ndindex(T, groups * B):
            seen, action = rollout.observations[t, b].clone(), rollout.actions[t, b].clone()
            valid, value = bool(rollout.valid[t, b]), values[t, b].item()
            lives[b].append(Step(seen, action, valid, log_probs[t, b], value))
    ends = sum(not step.valid for life in lives for step in life)
    return lives, model, ends


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("device", [None, torch.device("cpu")], ids=["in place", "staged"])
@torch.no_grad()
def test_every_step_is_that_of_its_episode_replayed(
    groups: int, device: torch.device | None
) -> None:
    """By `policy`, one environment and one step at a time, from nothing at each episode's start."""
    lives, model, ends = lived(groups, device)
    assert ends > 5 * groups * B  # most episodes began within a rollout, and crossed into the next
    forgetful = 0.0
    for life in lives:
        state = None
        for before, step in zip([None, *life], life, strict=False):
            if before is not None and not before.valid:
                state = None
            policy, state = model.policy(step.seen[None], state)
            expected = all_log_probs(policy, (1,))[0]
            torch.testing.assert_close(step.log_probs, expected, rtol=1e-4, atol=1e-5)
            assert state is not None
            value = model.value_head(state[0, 0]).item()
            assert step.value == pytest.approx(value, 1e-4, 1e-5)
            without, _ = model.policy(step.seen[None])
            forgetful += float((all_log_probs(without, (1,))[0] - expected).abs().max())
    assert forgetful / sum(map(len, lives)) > 0.1  # a policy that forgot would be another


@torch.no_grad()
def test_actions_are_drawn_from_these_distributions() -> None:
    """A policy that is all but sure of each action takes it: acting used the same state."""
    collector, model = collector_of(short_cartpole, 1, None)
    rollout, logits = collector.collect(model.act), model.policy_head.logits
    policy, _ = model(rollout.observations, rollout.state, rollout.valid)
    logits.bias.sub_(all_log_probs(policy, (T, B)).mean((0, 1)))  # or it were sure of one action
    logits.weight.mul_(1e5)
    logits.bias.mul_(1e5)
    act = functools.partial(model.act, generator=torch.Generator().manual_seed(1))
    taken = set()
    for _ in range(ROLLOUTS):
        rollout = collector.collect(act)
        policy, _ = model(rollout.observations, rollout.state, rollout.valid)
        sure = policy.entropy() < 1e-3
        assert sure.float().mean() > 0.9
        assert torch.equal(rollout.actions[sure], policy.mode()[sure])
        taken |= set(rollout.actions[sure].tolist())
    assert taken == {0, 1}


class OnceInfinite(gymnasium.Env[Any, Any]):
    """Shows a number that is not finite once, in its first episode of four steps."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(ACTIONS)
        self._episode = 0

    def _observe(self) -> Any:
        broken = (self._episode, self._step) == (1, 2)
        return np.full(2, np.nan if broken else 0.5, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._episode += 1
        self._step = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step += 1
        return self._observe(), 1.0, self._step == 4, False, {}


@torch.no_grad()
def test_a_number_that_is_not_finite_spoils_one_episode_only() -> None:
    collector, model = collector_of(OnceInfinite, 1, None)
    fine = []
    for _ in range(3):
        rollout = collector.collect(model.act)
        _, values = model(rollout.observations, rollout.state, rollout.valid)
        fine += values[:-1].isfinite().all(dim=1).tolist()
    assert fine == [True] * 2 + [False] * 3 + [True] * (3 * T - 5)
