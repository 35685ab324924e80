"""Tests of EpisodeCollector against a loop over single environments."""

import dataclasses
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor

from hogwild_rl.collect.episodes import EpisodeCollector
from hogwild_rl.collect.rollout import Rollout
from hogwild_rl.envs import make
from hogwild_rl.envs.codecs import ActionCodec, EnvCodec, ObservationCodec
from hogwild_rl.models.actor_critic import ActorCritic, Architecture
from tests import envs
from tests.envs import make_vector_env

SEED = 11
ENVIRONMENTS = ("CartPole-v1", "tests.envs:Chain-v0", "tests.envs:Images-v0", "Pendulum-v1")


class RandomPolicy:
    """Samples random actions; asserts that observations are [B, *O]."""

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        self._shape = (envs.num_envs, *ObservationCodec.of(envs.single_observation_space).shape)
        self._space = envs.single_action_space
        self._generator = torch.Generator().manual_seed(SEED)

    def __call__(self, observations: Tensor, state: Tensor) -> tuple[Tensor, None]:
        """Actions, one per environment."""
        assert observations.shape == self._shape
        assert state.shape == (2, len(observations), 0)
        if isinstance(self._space, spaces.Discrete):
            return torch.randint(2, (len(observations),), generator=self._generator), None
        return torch.randn(len(observations), *self._space.shape, generator=self._generator), None


@dataclasses.dataclass(frozen=True)
class Collected:
    """Results of one `collect`."""

    rollout: Rollout
    episodes: list[tuple[float, int]]
    steps: int


def env_codec_of(envs: VectorEnv[Any, Any, Any], **options: Any) -> EnvCodec:
    """Codec of the environments' observations and actions."""
    return EnvCodec(
        ObservationCodec.of(envs.single_observation_space),
        ActionCodec.of(envs.single_action_space),
        **options,
    )


def collect(env: make.EnvSource, num_envs: int, times: int, **options: Any) -> list[Collected]:
    """Results of `times` successive batches."""
    envs = make_vector_env(env, num_envs)
    collector = EpisodeCollector(envs, env_codec_of(envs, **options), SEED, lambda *_: None)
    policy, collected = RandomPolicy(envs), []
    for _ in range(times):
        rollout = collector.collect(policy)
        collected.append(Collected(rollout, list(collector.episodes), collector.steps))
    return collected


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_episodes_equal_those_of_single_environments(env: str) -> None:
    """A single environment with the same seed and actions gives the same rows."""
    B = 3
    collected = collect(env, B, times=2 if env == "Pendulum-v1" else 6)
    lengths = set()
    for b in range(B):
        single = make.make_env(env)
        decode = ActionCodec.of(single.action_space).to_env
        seed: int | None = SEED + b
        for each in collected:
            r = each.rollout
            observation, _ = single.reset(seed=seed)
            seed, total, length, over, resets = None, 0.0, 0, False, False
            for t, actions in enumerate(r.actions):
                assert (r.observations[t, b].numpy() == observation).all()
                reward, terminated, truncated = 0.0, False, False
                if resets:
                    observation, _ = single.reset()
                    resets = False
                else:
                    action = decode(actions.numpy())[b]
                    observation, reward, terminated, truncated, _ = single.step(action)
                    resets = terminated or truncated
                assert r.valid[t, b] == (not over)
                if over:  # steps until the longest episode ends are ignored
                    reward, terminated, truncated = 0.0, False, False
                assert r.rewards[t, b] == np.float32(reward)
                assert (r.terminated[t, b], r.truncated[t, b]) == (terminated, truncated)
                total, length = total + reward, length + (not over)
                over = over or resets
            assert over
            assert (r.observations[-1, b].numpy() == observation).all()
            assert each.episodes[b] == (pytest.approx(total, abs=1e-9), length)
            lengths.add(length)
    assert len(lengths) > 1 or env == "Pendulum-v1"
    assert all(each.steps == int(each.rollout.valid.sum()) for each in collected)


def test_native_vector_environments_give_one_episode_per_column() -> None:
    """The rows of CartPole's own vector environment equal those of stepping it directly."""
    collected, envs = (
        collect("CartPole-v1", 8, times=5),
        make_vector_env("CartPole-v1", 8),
    )
    assert not isinstance(envs, gymnasium.vector.SyncVectorEnv)
    seed: int | None = SEED
    for each in collected:
        r, running = each.rollout, np.ones(8, dtype=bool)
        observation, _ = envs.reset(seed=seed)
        seed = None
        for t, actions in enumerate(r.actions):
            assert (r.observations[t].numpy() == observation).all()
            observation, reward, terminated, truncated, _ = envs.step(actions.numpy())
            assert (r.valid[t].numpy() == running).all()
            assert (r.rewards[t].numpy() == reward * running).all()
            assert (r.terminated[t].numpy() == terminated & running).all()
            running = running & ~(terminated | truncated)
        assert (r.observations[-1].numpy() == observation).all()
        assert not running.any()
        assert len({length for _, length in each.episodes}) > 1
        assert each.episodes == [(float(n), n) for n in r.valid.sum(0).tolist()]
    starts = torch.cat([each.rollout.observations[0] for each in collected])
    assert len(starts.unique(dim=0)) == 40  # no two initial states are equal


@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_batch_has_one_episode_per_column_and_the_length_of_the_longest(num_envs: int) -> None:
    """`valid` is a prefix of each column, up to the end of the episode."""
    for each in collect("CartPole-v1", num_envs, times=4):
        r, lengths = each.rollout, [length for _, length in each.episodes]
        T = max(lengths)
        assert r.valid.sum(0).tolist() == lengths
        assert r.valid.shape == (T, num_envs)
        assert torch.equal(r.valid, torch.arange(T)[:, None] < torch.tensor(lengths))
        ended = r.terminated | r.truncated
        assert [row.nonzero().flatten().tolist() for row in ended.T] == [[n - 1] for n in lengths]
        assert each.steps == sum(lengths)


@pytest.mark.parametrize("clock", [envs.truncated_clock, envs.terminated_clock])
def test_time_limit_truncates_and_terminal_state_terminates(clock: Any) -> None:
    """Episodes have ten steps; the last one has the flag."""
    for each in collect(clock, 2, times=2):
        r = each.rollout
        last = torch.arange(10)[:, None].expand(10, 2) == 9
        none = torch.zeros(10, 2, dtype=torch.bool)
        terminates = clock is envs.terminated_clock
        assert torch.equal(r.terminated, last if terminates else none)
        assert torch.equal(r.truncated, none if terminates else last)
        assert each.episodes == [(10.0, 10)] * 2
        assert bool(r.valid.all())


@pytest.mark.parametrize(
    ("env", "observations", "actions"),
    [
        ("CartPole-v1", ((4,), torch.float32), ((), torch.int64)),
        ("tests.envs:Images-v0", ((20, 20, 3), torch.uint8), ((), torch.int64)),
        ("Pendulum-v1", ((3,), torch.float32), ((1,), torch.float32)),
    ],
)
def test_shapes_and_types(env: str, observations: Any, actions: Any) -> None:
    """Axes are time and environment; images are stored as bytes."""
    rollout = collect(env, num_envs=3, times=1)[0].rollout
    T = len(rollout.valid)
    found = {name: (tuple(t.shape), t.dtype) for name, t in vars(rollout).items()}
    assert found == {
        "observations": ((T + 1, 3, *observations[0]), observations[1]),
        "state": ((2, 3, 0), torch.float32),
        "actions": ((T, 3, *actions[0]), actions[1]),
        "rewards": ((T, 3), torch.float32),
        "terminated": ((T, 3), torch.bool),
        "truncated": ((T, 3), torch.bool),
        "valid": ((T, 3), torch.bool),
    }


def test_continuous_actions_are_stored_unclipped() -> None:
    """Only the environment's action is clipped, as log π is that of the sample."""
    rollout = collect("MountainCarContinuous-v0", num_envs=1, times=1)[0].rollout
    assert rollout.actions.abs().max() > 1
    assert bool(rollout.truncated[-1]) or bool(rollout.terminated[-1])


def test_reward_transform_changes_rewards_but_not_returns() -> None:
    """The transform gets [T, B] once per batch and works in place."""
    calls = []

    def doubled(rewards: Any, ended: Any, valid: Any) -> None:
        calls.append((rewards.copy(), ended.copy(), valid.copy()))
        rewards *= 2

    transformed = collect("CartPole-v1", 3, times=3, rewards=doubled)
    plain = collect("CartPole-v1", 3, times=3)
    assert len(calls) == 3
    for (rewards, ended, valid), ours, theirs in zip(calls, transformed, plain, strict=True):
        r = theirs.rollout
        assert rewards.dtype == np.float32
        assert (rewards == r.rewards.numpy()).all()
        assert (ended == (r.terminated | r.truncated).numpy()).all()
        assert (valid == r.valid.numpy()).all()
        assert torch.equal(ours.rollout.rewards, 2 * r.rewards)
        assert ours.episodes == theirs.episodes


class LateNaN(envs.Chain):
    """Chain with NaN rewards after its first episode."""

    def __init__(self) -> None:
        super().__init__()
        self._resets = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._resets += 1
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> envs.Step:
        observation, reward, *rest = super().step(action)
        return observation, reward if self._resets == 1 else np.nan, *rest


def test_nan_rewards_after_the_end_of_an_episode_are_ignored() -> None:
    (each,) = collect(LateNaN, 8, times=1)
    assert not bool(each.rollout.valid.all())
    assert bool(each.rollout.rewards.isfinite().all())
    assert all(total in (0.1, 1.0) for total, _ in each.episodes)


def test_equal_seeds_give_equal_batches_and_batches_differ() -> None:
    first, second = (collect("CartPole-v1", 3, times=3) for _ in range(2))
    for ours, theirs in zip(first, second, strict=True):
        for name, tensor in vars(ours.rollout).items():
            assert torch.equal(tensor, getattr(theirs.rollout, name))
    starts = torch.cat([each.rollout.observations[0] for each in first])
    assert len(starts.unique(dim=0)) == 9


def test_batches_do_not_share_memory() -> None:
    envs = make_vector_env("tests.envs:Images-v0", 2)
    collector = EpisodeCollector(envs, env_codec_of(envs), SEED, lambda *_: None)
    policy = RandomPolicy(envs)
    rollout = collector.collect(policy)
    before = {name: tensor.clone() for name, tensor in vars(rollout).items()}
    collector.collect(policy)
    assert all(torch.equal(getattr(rollout, name), before[name]) for name in before)


def test_phases_are_timed_for_every_row() -> None:
    laps: list[str] = []
    envs = make_vector_env("CartPole-v1", 2)
    collector = EpisodeCollector(envs, env_codec_of(envs), SEED, laps.append)
    rollout = collector.collect(RandomPolicy(envs))
    assert laps == ["act", "env"] * len(rollout.valid)


def test_batch_has_no_graph_and_trains_a_model() -> None:
    """Acting records no autograd graph; every parameter gets a gradient from the batch."""
    envs = make_vector_env("CartPole-v1", 3)
    model = ActorCritic(
        envs.single_observation_space, envs.single_action_space, Architecture(hidden=(8,))
    )
    rollout = EpisodeCollector(envs, env_codec_of(envs), SEED, lambda *_: None).collect(model.act)
    assert not any(tensor.requires_grad for tensor in vars(rollout).values())
    policy, values = model(rollout.observations)
    (policy.log_prob(rollout.actions).sum() + values.sum()).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
