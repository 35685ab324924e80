"""Collected episodes against a plain loop over single environments."""

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
from hogwild_rl.envs import make, vectorize
from hogwild_rl.envs.codecs import ActionCodec, EnvCodec, ObservationCodec
from hogwild_rl.models.actor_critic import ActorCritic, Architecture
from tests import envs

SEED = 11
ENVIRONMENTS = ("CartPole-v1", "tests.envs:Chain-v0", "tests.envs:Pictures-v0", "Pendulum-v1")


class Recorder:
    """Takes random actions, keeps them, and refuses what is not [B, *O]."""

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        self._shape = (envs.num_envs, *ObservationCodec.of(envs.single_observation_space).shape)
        self._space = envs.single_action_space
        self._generator = torch.Generator().manual_seed(SEED)

    def __call__(self, observations: Tensor, state: Tensor) -> tuple[Tensor, None]:
        """An action per environment."""
        assert observations.shape == self._shape
        assert state.shape == (2, len(observations), 0)
        if isinstance(self._space, spaces.Discrete):
            return torch.randint(2, (len(observations),), generator=self._generator), None
        return torch.randn(len(observations), *self._space.shape, generator=self._generator), None


@dataclasses.dataclass(frozen=True)
class Collected:
    """What one `collect` gave."""

    rollout: Rollout
    episodes: list[tuple[float, int]]
    steps: int


def interface_of(envs: VectorEnv[Any, Any, Any], **given: Any) -> EnvCodec:
    """Observations and actions as the environments have them."""
    return EnvCodec(
        ObservationCodec.of(envs.single_observation_space),
        ActionCodec.of(envs.single_action_space),
        **given,
    )


def collect(env: make.EnvSource, num_envs: int, times: int, **given: Any) -> list[Collected]:
    """Some batches in a row."""
    envs = vectorize.make_vector_env(env, num_envs)
    collector = EpisodeCollector(envs, interface_of(envs, **given), SEED, lambda phase: None)
    policy, collected = Recorder(envs), []
    for _ in range(times):
        rollout = collector.collect(policy)
        collected.append(Collected(rollout, list(collector.episodes), collector.steps))
    return collected


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_episodes_are_those_of_single_environments(env: str) -> None:
    """Played alone from the same seed with the recorded actions, each gives the same rows."""
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
                paid, terminated, truncated = 0.0, False, False
                if resets:
                    observation, _ = single.reset()
                    resets = False
                else:
                    action = decode(actions.numpy())[b]
                    observation, paid, terminated, truncated, _ = single.step(action)
                    resets = terminated or truncated
                assert r.valid[t, b] == (not over)
                if over:  # what is played on while others are not over counts for nothing
                    paid, terminated, truncated = 0.0, False, False
                assert r.rewards[t, b] == np.float32(paid)
                assert (r.terminated[t, b], r.truncated[t, b]) == (terminated, truncated)
                total, length = total + paid, length + (not over)
                over = over or resets
            assert over
            assert (r.observations[-1, b].numpy() == observation).all()
            assert each.episodes[b] == (pytest.approx(total, abs=1e-9), length)
            lengths.add(length)
    assert len(lengths) > 1 or env == "Pendulum-v1"
    assert all(each.steps == int(each.rollout.valid.sum()) for each in collected)


def test_environments_that_are_vectors_themselves() -> None:
    """CartPole's own: the same rows, and one episode each, whose ends are printed."""
    collected, envs = (
        collect("CartPole-v1", 8, times=5),
        vectorize.make_vector_env("CartPole-v1", 8),
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
    assert len(starts.unique(dim=0)) == 40  # every episode begins anew


@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_a_batch_has_one_episode_each_and_as_many_rows_as_the_longest(num_envs: int) -> None:
    """Valid is a prefix of each column, and its last entry is where the episode ended."""
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
def test_a_time_limit_is_told_from_an_end(clock: Any) -> None:
    """Ten steps, and the last of them says how it ended."""
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
        ("tests.envs:Pictures-v0", ((20, 20, 3), torch.uint8), ((), torch.int64)),
        ("Pendulum-v1", ((3,), torch.float32), ((1,), torch.float32)),
    ],
)
def test_shapes_and_types(env: str, observations: Any, actions: Any) -> None:
    """Time first, then environments; pictures stay bytes."""
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


def test_continuous_actions_are_kept_as_drawn() -> None:
    """Also beyond the bounds, which only the environment sees: log π is that of the sample."""
    rollout = collect("MountainCarContinuous-v0", num_envs=1, times=1)[0].rollout
    assert rollout.actions.abs().max() > 1
    assert bool(rollout.truncated[-1]) or bool(rollout.terminated[-1])


def test_the_learner_may_be_paid_otherwise() -> None:
    """The hook gets [T, B] once per batch, in place; returns stay those of the environment."""
    asked = []

    def doubled(rewards: Any, ended: Any, valid: Any) -> None:
        asked.append((rewards.copy(), ended.copy(), valid.copy()))
        rewards *= 2

    paid = collect("CartPole-v1", 3, times=3, rewards=doubled)
    plain = collect("CartPole-v1", 3, times=3)
    assert len(asked) == 3
    for (rewards, ended, valid), ours, theirs in zip(asked, paid, plain, strict=True):
        r = theirs.rollout
        assert rewards.dtype == np.float32
        assert (rewards == r.rewards.numpy()).all()
        assert (ended == (r.terminated | r.truncated).numpy()).all()
        assert (valid == r.valid.numpy()).all()
        assert torch.equal(ours.rollout.rewards, 2 * r.rewards)
        assert ours.episodes == theirs.episodes


class Late(envs.Chain):
    """Pays NaN in every second episode."""

    def __init__(self) -> None:
        super().__init__()
        self._resets = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._resets += 1
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> envs.Step:
        observation, reward, *rest = super().step(action)
        return observation, reward if self._resets == 1 else np.nan, *rest


def test_what_is_played_after_the_end_cannot_spoil_an_episode() -> None:
    """Rewards that are not finite count as little there as any others."""
    (each,) = collect(Late, 8, times=1)
    assert not bool(each.rollout.valid.all())
    assert bool(each.rollout.rewards.isfinite().all())
    assert all(total in (0.1, 1.0) for total, _ in each.episodes)


def test_the_same_seeds_give_the_same_batches_and_the_next_batch_is_another() -> None:
    """Reproducible, and never the same episodes twice."""
    first, second = (collect("CartPole-v1", 3, times=3) for _ in range(2))
    for ours, theirs in zip(first, second, strict=True):
        for name, tensor in vars(ours.rollout).items():
            assert torch.equal(tensor, getattr(theirs.rollout, name))
    starts = torch.cat([each.rollout.observations[0] for each in first])
    assert len(starts.unique(dim=0)) == 9


def test_a_batch_is_not_overwritten_by_the_next() -> None:
    """Each has memory of its own."""
    envs = vectorize.make_vector_env("tests.envs:Pictures-v0", 2)
    collector = EpisodeCollector(envs, interface_of(envs), SEED, lambda phase: None)
    policy = Recorder(envs)
    rollout = collector.collect(policy)
    before = {name: tensor.clone() for name, tensor in vars(rollout).items()}
    collector.collect(policy)
    assert all(torch.equal(getattr(rollout, name), before[name]) for name in before)


def test_phases_are_told_as_they_end() -> None:
    """Acting and stepping in turn, once for every row."""
    laps: list[str] = []
    envs = vectorize.make_vector_env("CartPole-v1", 2)
    collector = EpisodeCollector(envs, interface_of(envs), SEED, laps.append)
    rollout = collector.collect(Recorder(envs))
    assert laps == ["act", "env"] * len(rollout.valid)


def test_a_batch_can_be_learnt_from() -> None:
    """Acting leaves no autograd behind, and the rows can go through a model that is trained."""
    envs = vectorize.make_vector_env("CartPole-v1", 3)
    model = ActorCritic(
        envs.single_observation_space, envs.single_action_space, Architecture(hidden=(8,))
    )
    rollout = EpisodeCollector(envs, interface_of(envs), SEED, lambda _: None).collect(model.act)
    assert not any(tensor.requires_grad for tensor in vars(rollout).values())
    policy, values = model(rollout.observations)
    (policy.log_prob(rollout.actions).sum() + values.sum()).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
