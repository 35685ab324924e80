"""Collected rollouts against a plain loop over the same environments."""

import dataclasses
import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from hogwild_rl.collect.rollout import Collector, Rollout
from hogwild_rl.envs import make, vectorize
from hogwild_rl.envs.codecs import ActionCodec, EnvCodec, ObservationCodec
from hogwild_rl.learn.normalization import Normalization, Normalizer
from hogwild_rl.models.actor_critic import ActorCritic, Architecture

SEED = 11
native_and_sync = pytest.mark.parametrize("num_envs", [3, 8], ids=["sync", "native"])


class Metronome(gymnasium.Env[NDArray[np.float32], np.int64]):
    """Is truncated every 10 steps; observes the step of the ten, and pays it: 1 + 2 + … + 10."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 10, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self._step = 0

    def _observe(self) -> NDArray[np.float32]:
        return np.array([self._step], dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Back to 0."""
        super().reset(seed=seed, options=options)
        self._step = 0
        return self._observe(), {}

    def step(
        self, action: np.int64
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One on."""
        self._step += 1
        return self._observe(), float(self._step), False, self._step == 10, {}


class Uniform:
    """Takes either of two actions equally often, and refuses what is not [B, *O]."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._generator = torch.Generator().manual_seed(SEED)

    def __call__(self, observations: Tensor, state: Tensor) -> tuple[Tensor, None]:
        """An action per environment."""
        assert observations.shape == self._shape
        assert state.shape == (2, len(observations), 0)
        return torch.randint(2, (len(observations),), generator=self._generator), None


@dataclasses.dataclass(frozen=True)
class Collected:
    """A copy of what one `collect` gave."""

    rollout: Rollout
    episodes: list[tuple[float, int]]
    steps: int


def interface_of(envs: VectorEnv[Any, Any, Any]) -> EnvCodec:
    """Observations and actions as the environments have them, and nothing remembered."""
    return EnvCodec(
        ObservationCodec.of(envs.single_observation_space),
        ActionCodec.of(envs.single_action_space),
    )


def collector_of(
    env: make.EnvSource, num_envs: int, n_steps: int, laps: list[str] | None = None
) -> tuple[Collector, Uniform]:
    """A collector, and a policy for it."""
    envs = vectorize.make_vector_env(env, num_envs)
    assert envs.single_observation_space.shape is not None
    lap = (lambda phase: None) if laps is None else laps.append
    collector = Collector([envs], interface_of(envs), n_steps, SEED, lap)
    return collector, Uniform((num_envs, *envs.single_observation_space.shape))


def collect(env: make.EnvSource, num_envs: int, n_steps: int, rollouts: int) -> list[Collected]:
    """Copies of some rollouts in a row."""
    collector, policy = collector_of(env, num_envs, n_steps)
    collected = []
    for _ in range(rollouts):
        rollout = collector.collect(policy)
        fields = {name: tensor.clone() for name, tensor in vars(rollout).items()}
        collected.append(Collected(Rollout(**fields), list(collector.episodes), collector.steps))
    return collected


def joined(collected: list[Collected], name: str) -> Tensor:
    """One field of all rollouts, end to end in time."""
    return torch.cat([getattr(each.rollout, name) for each in collected])


@native_and_sync
def test_rollouts_are_what_the_environments_did(num_envs: int) -> None:
    """The recorded actions, played again from the same seed, give the recorded rows."""
    collected = collect("CartPole-v1", num_envs, n_steps=5, rollouts=30)
    envs = vectorize.make_vector_env("CartPole-v1", num_envs)
    observation, _ = envs.reset(seed=SEED)
    for each in collected:
        for t, actions in enumerate(each.rollout.actions):
            assert (each.rollout.observations[t].numpy() == observation).all()
            observation, reward, terminated, truncated, _ = envs.step(actions.numpy())
            assert (each.rollout.observations[t + 1].numpy() == observation).all()
            assert (each.rollout.rewards[t].numpy() == reward).all()
            assert (each.rollout.terminated[t].numpy() == terminated).all()
            assert (each.rollout.truncated[t].numpy() == truncated).all()
    assert joined(collected, "terminated").sum() > 10


@native_and_sync
def test_invalid_is_the_step_after_an_end_and_no_other(num_envs: int) -> None:
    """Within a rollout and across its border: valid is False exactly after an ended step."""
    collected = collect("CartPole-v1", num_envs, n_steps=5, rollouts=90)
    ended = joined(collected, "terminated") | joined(collected, "truncated")
    valid = joined(collected, "valid")
    assert bool(valid[0].all())
    assert torch.equal(valid[1:], ~ended[:-1])
    assert bool((joined(collected, "rewards")[~valid] == 0).all())
    assert not bool((ended & ~valid).any())
    assert sum(int((~each.rollout.valid[0]).sum()) for each in collected) > 3  # across a border


@native_and_sync
def test_steps_count_the_valid_transitions(num_envs: int) -> None:
    """`steps` is the number of valid entries of the last rollout."""
    collected = collect("CartPole-v1", num_envs, n_steps=7, rollouts=12)
    assert [each.steps for each in collected] == [int(c.rollout.valid.sum()) for c in collected]
    assert {each.steps for each in collected} != {7 * num_envs}


@native_and_sync
def test_episodes_are_an_independent_count(num_envs: int) -> None:
    """Returns and lengths, also of episodes over several rollouts, each printed once."""
    collected = collect("CartPole-v1", num_envs, n_steps=6, rollouts=30)
    returns, lengths, printed = [0.0] * num_envs, [0] * num_envs, 0
    for each in collected:
        expected, r = [], each.rollout
        for t, b in np.ndindex(6, num_envs):
            if r.valid[t, b]:
                returns[b] += r.rewards[t, b].item()
                lengths[b] += 1
            if r.terminated[t, b] or r.truncated[t, b]:
                expected.append((returns[b], lengths[b]))
                returns[b], lengths[b] = 0.0, 0
        assert sorted(each.episodes) == sorted(expected)
        printed += len(expected)
    assert printed > 10


@native_and_sync
def test_a_rollout_starts_where_the_former_ended(num_envs: int) -> None:
    """observations[0] is the last row of the rollout before."""
    collected = collect("CartPole-v1", num_envs, n_steps=4, rollouts=10)
    for former, latter in itertools.pairwise(collected):
        assert torch.equal(former.rollout.observations[-1], latter.rollout.observations[0])


def test_shapes_and_types() -> None:
    """Time first, then environments; actions are int64, flags are bool, the rest float32."""
    rollout = collect("CartPole-v1", num_envs=3, n_steps=4, rollouts=1)[0].rollout
    found = {name: (tuple(t.shape), t.dtype) for name, t in vars(rollout).items()}
    assert found == {
        "observations": ((5, 3, 4), torch.float32),
        "state": ((2, 3, 0), torch.float32),
        "actions": ((4, 3), torch.int64),
        "rewards": ((4, 3), torch.float32),
        "terminated": ((4, 3), torch.bool),
        "truncated": ((4, 3), torch.bool),
        "valid": ((4, 3), torch.bool),
    }


def test_buffers_are_reused() -> None:
    """Every collect fills the memory of the first."""
    collector, policy = collector_of("CartPole-v1", num_envs=3, n_steps=4)
    pointers = {name: t.data_ptr() for name, t in vars(collector.rollout).items()}
    for _ in range(3):
        rollout = collector.collect(policy)
        assert {name: t.data_ptr() for name, t in vars(rollout).items()} == pointers
        assert {name: t.data_ptr() for name, t in vars(collector.rollout).items()} == pointers


@pytest.mark.parametrize("n_steps", [3, 10, 11])
def test_a_time_limit_truncates_and_its_last_observation_is_the_next_row(n_steps: int) -> None:
    """Observations run 0…10 and start again: the tenth step is truncated, the eleventh resets."""
    collected = collect(Metronome, num_envs=2, n_steps=n_steps, rollouts=12)
    step = np.arange(12 * n_steps) % 11
    for b in range(2):
        rows = torch.cat([each.rollout.observations[:-1, b, 0] for each in collected])
        assert rows.tolist() == step.tolist()
        assert joined(collected, "truncated")[:, b].tolist() == (step == 9).tolist()
        assert joined(collected, "valid")[:, b].tolist() == (step != 10).tolist()
        assert joined(collected, "rewards")[:, b].tolist() == ((step + 1) % 11).tolist()
    assert not joined(collected, "terminated").any()
    for each in collected:
        last_rows = each.rollout.observations[1:][each.rollout.truncated]
        assert bool((last_rows == 10).all())


def test_a_truncated_episode_is_told_once() -> None:
    """1 + 2 + … + 10 in ten steps, from every environment, in the rollout in which it ended."""
    collected = collect(Metronome, num_envs=2, n_steps=4, rollouts=9)
    ends = [sum(t % 11 == 9 for t in range(start, start + 4)) for start in range(0, 36, 4)]
    for each, ended in zip(collected, ends, strict=True):
        assert each.episodes == [(55.0, 10)] * (2 * ended)
    assert sum(ends) == 3


def test_the_same_seeds_give_the_same_rollouts() -> None:
    """Environments and actions are reproducible, and actions are not all the same."""
    first, second = (collect("CartPole-v1", 3, n_steps=8, rollouts=4) for _ in range(2))
    for name in vars(first[0].rollout):
        assert torch.equal(joined(first, name), joined(second, name))
    assert set(joined(first, "actions").flatten().tolist()) == {0, 1}


def test_phases_are_told_as_they_end() -> None:
    """Acting and stepping are printed in turn, T times each in a collect."""
    laps: list[str] = []
    collector, policy = collector_of("CartPole-v1", num_envs=2, n_steps=3, laps=laps)
    laps.clear()
    collector.collect(policy)
    assert laps == ["act", "env"] * 3


class Flickering(Metronome):
    """Observes NaN in the seventh of every ten steps."""

    def _observe(self) -> NDArray[np.float32]:
        return np.array([np.nan if self._step == 7 else self._step], dtype=np.float32)


def test_what_is_not_finite_is_forgotten_with_its_episode() -> None:
    """A memory is as good as new in the next one, when acting and when learning."""
    envs = vectorize.make_vector_env(Flickering, 2)
    model = ActorCritic(
        envs.single_observation_space, envs.single_action_space, Architecture(lstm=4)
    )
    env_codec = dataclasses.replace(interface_of(envs), state_size=4)
    collector = Collector([envs], env_codec, 11, SEED, lambda phase: None)
    for _ in range(3):
        rollout = collector.collect(model.act)
        assert bool((rollout.state == 0).all())
    collector = Collector([envs], env_codec, 16, SEED, lambda phase: None)
    rollout = collector.collect(model.act)
    _, values = model(rollout.observations, rollout.state, rollout.valid)
    spoilt = [7, 8, 9, 10]  # the eleventh step resets
    assert [t for t, row in enumerate(values) if not row.isfinite().all()] == spoilt


def test_a_rollout_can_be_learnt_from() -> None:
    """Acting leaves no autograd behind, and the rows can go through a model that is trained."""
    envs = vectorize.make_vector_env("CartPole-v1", 3)
    model = ActorCritic(
        envs.single_observation_space, envs.single_action_space, Architecture(hidden=(8,))
    )
    collector = Collector([envs], interface_of(envs), 4, SEED, lambda phase: None)
    rollout = collector.collect(model.act)
    assert not any(tensor.requires_grad for tensor in vars(rollout).values())
    policy, values = model(rollout.observations, rollout.state, rollout.valid)
    (policy.log_prob(rollout.actions).sum() + values.sum()).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


class Broken(gymnasium.Env[NDArray[np.float32], np.int64]):
    """Random numbers, and NaN in one step of twelve; episodes end in both ways."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = spaces.Discrete(3)

    def _observe(self) -> NDArray[np.float32]:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """At step 0."""
        super().reset(seed=seed, options=options)
        self._step = 0
        return self._observe(), {}

    def step(
        self, action: np.int64
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Pays the action."""
        self._step += 1
        observation = self._observe()
        if self.np_random.random() < 0.08:
            observation[1] = np.nan
        return observation, float(action), self.np_random.random() < 0.05, self._step >= 13, {}


def staged_or_not(env: Any, T: int, G: int, B: int, lstm: int, staged: bool) -> list[Any]:
    """All that thirty rollouts leave behind, through a second set of buffers or without."""
    groups = [vectorize.sync_vector_env(env, B // G) for _ in range(G)]
    observation_space = groups[0].single_observation_space
    action_space = groups[0].single_action_space
    codec, actions = ObservationCodec.of(observation_space), ActionCodec.of(action_space)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    architecture = Architecture(lstm=lstm, standardize=True)
    model = ActorCritic(observation_space, action_space, architecture, generators[0])
    moments = Normalization(1, codec, observations=True, rewards=True)
    normalizer = Normalizer(moments, 0, 0.99, "none", 1.0)
    env_codec = EnvCodec(codec, actions, state_size=lstm, rewards=normalizer.transform_rewards)
    device = torch.device("cpu") if staged else None
    collector = Collector(groups, env_codec, T, SEED, lambda phase: None, device)
    assert (collector.rollout is collector.host) != staged
    results = []
    for _ in range(30):
        moments.write_to(model)
        rollout = collector.collect(lambda seen, state: model.act(seen, state, generators[1]))
        normalizer.add(collector.host)
        tensors = {**vars(rollout), **collector.carried, **moments.state()["observations"]}
        results.append(
            (
                {name: tensor.clone() for name, tensor in tensors.items()},
                (list(collector.episodes), collector.steps, list(collector.nonfinite_envs)),
            )
        )
    return results


@pytest.mark.parametrize("env", [Broken, "CartPole-v1"])
@pytest.mark.parametrize(
    ("T", "G", "B", "lstm"),
    [(1, 1, 2, 0), (1, 2, 4, 4), (2, 1, 3, 4), (5, 2, 4, 4), (7, 2, 2, 0), (16, 1, 3, 0)],
)
def test_a_rollout_that_is_staged_for_a_device_is_the_one_that_is_not(
    env: Any, T: int, G: int, B: int, lstm: int
) -> None:
    """Bit for bit: observations, states, flags, what is carried on, and the running moments."""
    direct = staged_or_not(env, T, G, B, lstm, staged=False)
    staged = staged_or_not(env, T, G, B, lstm, staged=True)
    for (tensors, others), (staged_tensors, staged_others) in zip(direct, staged, strict=True):
        assert others == staged_others
        for name, tensor in tensors.items():
            assert tensor.dtype == staged_tensors[name].dtype
            torch.testing.assert_close(
                staged_tensors[name], tensor, rtol=0, atol=0, equal_nan=True, msg=name
            )
    if env is Broken:
        assert sum(len(others[2]) for _, others in direct) > 0
