"""Tests of rollouts against a loop over the same environments."""

import dataclasses
import itertools
import time
from collections.abc import Callable
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
from hogwild_rl.hogwild.counters import Counters
from hogwild_rl.learn.normalization import Normalization, Normalizer
from hogwild_rl.models.actor_critic import ActorCritic, Architecture
from tests.envs import make_vector_env

SEED = 11
native_and_sync = pytest.mark.parametrize("num_envs", [3, 8], ids=["sync", "native"])


class StepCounter(gymnasium.Env[NDArray[np.float32], np.int64]):
    """Is truncated after 10 steps; observation and reward are the step, so the return is 55."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 10, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self._step = 0

    def _observe(self) -> NDArray[np.float32]:
        return np.array([self._step], dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Resets the step to 0."""
        super().reset(seed=seed, options=options)
        self._step = 0
        return self._observe(), {}

    def step(
        self, action: np.int64
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Increments the step."""
        self._step += 1
        return self._observe(), float(self._step), False, self._step == 10, {}


class UniformPolicy:
    """Uniform policy over two actions; asserts that observations are [B, *O]."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._generator = torch.Generator().manual_seed(SEED)

    def __call__(self, observations: Tensor, state: Tensor) -> tuple[Tensor, None]:
        """Samples one action per environment."""
        assert observations.shape == self._shape
        assert state.shape == (2, len(observations), 0)
        return torch.randint(2, (len(observations),), generator=self._generator), None


@dataclasses.dataclass(frozen=True)
class Collected:
    """Copy of the results of one `collect`."""

    rollout: Rollout
    episodes: list[tuple[float, int]]
    steps: int


def codec_of(envs: VectorEnv[Any, Any, Any]) -> EnvCodec:
    """Returns the codec of the environments, without recurrent state."""
    return EnvCodec(
        ObservationCodec.of(envs.single_observation_space),
        ActionCodec.of(envs.single_action_space),
    )


def collector_of(
    env: make.EnvSource, num_envs: int, n_steps: int, lap: Callable[..., None] = lambda *_: None
) -> tuple[Collector, UniformPolicy]:
    """Returns a collector and a policy for it."""
    envs = make_vector_env(env, num_envs)
    assert envs.single_observation_space.shape is not None
    collector = Collector([envs], codec_of(envs), n_steps, SEED, lap)
    return collector, UniformPolicy((num_envs, *envs.single_observation_space.shape))


def collect(env: make.EnvSource, num_envs: int, n_steps: int, rollouts: int) -> list[Collected]:
    """Returns copies of consecutive rollouts."""
    collector, policy = collector_of(env, num_envs, n_steps)
    collected = []
    for _ in range(rollouts):
        rollout = collector.collect(policy)
        fields = {name: tensor.clone() for name, tensor in vars(rollout).items()}
        collected.append(Collected(Rollout(**fields), list(collector.episodes), collector.steps))
    return collected


def concatenated(collected: list[Collected], name: str) -> Tensor:
    """Concatenates one field of all rollouts along the time axis."""
    return torch.cat([getattr(each.rollout, name) for each in collected])


@native_and_sync
def test_rollouts_equal_a_replay_of_their_actions(num_envs: int) -> None:
    """The recorded actions with the same seed give the recorded rows."""
    collected = collect("CartPole-v1", num_envs, n_steps=5, rollouts=30)
    envs = make_vector_env("CartPole-v1", num_envs)
    observation, _ = envs.reset(seed=SEED)
    for each in collected:
        for t, actions in enumerate(each.rollout.actions):
            assert (each.rollout.observations[t].numpy() == observation).all()
            observation, reward, terminated, truncated, _ = envs.step(actions.numpy())
            assert (each.rollout.observations[t + 1].numpy() == observation).all()
            assert (each.rollout.rewards[t].numpy() == reward).all()
            assert (each.rollout.terminated[t].numpy() == terminated).all()
            assert (each.rollout.truncated[t].numpy() == truncated).all()
    assert concatenated(collected, "terminated").sum() > 10


@native_and_sync
def test_only_the_step_after_an_end_is_invalid(num_envs: int) -> None:
    """This holds within a rollout and across its boundary."""
    collected = collect("CartPole-v1", num_envs, n_steps=5, rollouts=90)
    ended = concatenated(collected, "terminated") | concatenated(collected, "truncated")
    valid = concatenated(collected, "valid")
    assert bool(valid[0].all())
    assert torch.equal(valid[1:], ~ended[:-1])
    assert bool((concatenated(collected, "rewards")[~valid] == 0).all())
    assert not bool((ended & ~valid).any())
    assert sum(int((~each.rollout.valid[0]).sum()) for each in collected) > 3  # across a boundary


@native_and_sync
def test_steps_count_the_valid_transitions(num_envs: int) -> None:
    collected = collect("CartPole-v1", num_envs, n_steps=7, rollouts=12)
    assert [each.steps for each in collected] == [int(c.rollout.valid.sum()) for c in collected]
    assert {each.steps for each in collected} != {7 * num_envs}


@native_and_sync
def test_episodes_equal_independently_summed_returns(num_envs: int) -> None:
    """Each episode is reported once, also if it spans several rollouts."""
    collected = collect("CartPole-v1", num_envs, n_steps=6, rollouts=30)
    returns, lengths, count = [0.0] * num_envs, [0] * num_envs, 0
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
        count += len(expected)
    assert count > 10


@native_and_sync
def test_the_first_observation_is_the_last_of_the_previous_rollout(num_envs: int) -> None:
    collected = collect("CartPole-v1", num_envs, n_steps=4, rollouts=10)
    for previous, current in itertools.pairwise(collected):
        assert torch.equal(previous.rollout.observations[-1], current.rollout.observations[0])


def test_shapes_and_dtypes() -> None:
    """The axes are time and environment; actions are int64, flags bool, the others float32."""
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
    collector, policy = collector_of("CartPole-v1", num_envs=3, n_steps=4)
    pointers = {name: t.data_ptr() for name, t in vars(collector.rollout).items()}
    for _ in range(3):
        rollout = collector.collect(policy)
        assert {name: t.data_ptr() for name, t in vars(rollout).items()} == pointers
        assert {name: t.data_ptr() for name, t in vars(collector.rollout).items()} == pointers


@pytest.mark.parametrize("n_steps", [3, 10, 11])
def test_a_time_limit_truncates_and_the_next_row_is_the_final_observation(n_steps: int) -> None:
    """Observations are 0…10, repeatedly: step 10 is truncated, step 11 resets."""
    collected = collect(StepCounter, num_envs=2, n_steps=n_steps, rollouts=12)
    step = np.arange(12 * n_steps) % 11
    for b in range(2):
        rows = torch.cat([each.rollout.observations[:-1, b, 0] for each in collected])
        assert rows.tolist() == step.tolist()
        assert concatenated(collected, "truncated")[:, b].tolist() == (step == 9).tolist()
        assert concatenated(collected, "valid")[:, b].tolist() == (step != 10).tolist()
        assert concatenated(collected, "rewards")[:, b].tolist() == ((step + 1) % 11).tolist()
    assert not concatenated(collected, "terminated").any()
    for each in collected:
        last_rows = each.rollout.observations[1:][each.rollout.truncated]
        assert bool((last_rows == 10).all())


def test_a_truncated_episode_is_reported_once() -> None:
    """The rollout in which it ended reports return 55 and length 10."""
    collected = collect(StepCounter, num_envs=2, n_steps=4, rollouts=9)
    ends = [sum(t % 11 == 9 for t in range(start, start + 4)) for start in range(0, 36, 4)]
    for each, ended in zip(collected, ends, strict=True):
        assert each.episodes == [(55.0, 10)] * (2 * ended)
    assert sum(ends) == 3


def test_equal_seeds_give_equal_rollouts() -> None:
    first, second = (collect("CartPole-v1", 3, n_steps=8, rollouts=4) for _ in range(2))
    for name in vars(first[0].rollout):
        assert torch.equal(concatenated(first, name), concatenated(second, name))
    assert set(concatenated(first, "actions").flatten().tolist()) == {0, 1}


class SlowEnv(StepCounter):
    """Environment whose step takes at least 4 ms."""

    def step(self, action: Any) -> Any:
        time.sleep(0.004)
        return super().step(action)


def test_stepping_and_acting_are_timed_separately() -> None:
    counters = Counters(1)
    collector, policy = collector_of(SlowEnv, 2, n_steps=5, lap=counters.writer(0).lap)
    before, start_s = counters.seconds(), time.monotonic()

    def act(*arguments: Any) -> Any:
        time.sleep(0.002)
        return policy(*arguments)

    collector.collect(act)
    elapsed_s = time.monotonic() - start_s
    seconds = {name: after - before[name] for name, after in counters.seconds().items()}
    assert seconds["env"] >= 10 * 0.004
    assert 5 * 0.002 <= seconds["act"] <= elapsed_s - 10 * 0.004
    assert seconds["learn"] == seconds["share"] == 0


class NaNObserver(StepCounter):
    """Step counter that observes NaN at step 7."""

    def _observe(self) -> NDArray[np.float32]:
        return np.array([np.nan if self._step == 7 else self._step], dtype=np.float32)


def test_a_non_finite_state_is_reset_with_the_episode() -> None:
    """The recurrent state is finite in the next episode, in acting and in training."""
    envs = make_vector_env(NaNObserver, 2)
    model = ActorCritic(
        envs.single_observation_space, envs.single_action_space, Architecture(lstm=4)
    )
    env_codec = dataclasses.replace(codec_of(envs), state_size=4)
    collector = Collector([envs], env_codec, 11, SEED, lambda *_: None)
    for _ in range(3):
        rollout = collector.collect(model.act)
        assert bool((rollout.state == 0).all())
    collector = Collector([envs], env_codec, 16, SEED, lambda *_: None)
    rollout = collector.collect(model.act)
    _, values = model(rollout.observations, rollout.state, rollout.valid)
    nonfinite = [7, 8, 9, 10]  # step 11 resets
    assert [t for t, row in enumerate(values) if not row.isfinite().all()] == nonfinite


def test_a_rollout_has_no_autograd_graph_and_trains_a_model() -> None:
    """Every parameter of the model gets a gradient."""
    envs = make_vector_env("CartPole-v1", 3)
    model = ActorCritic(
        envs.single_observation_space, envs.single_action_space, Architecture(hidden=(8,))
    )
    collector = Collector([envs], codec_of(envs), 4, SEED, lambda *_: None)
    rollout = collector.collect(model.act)
    assert not any(tensor.requires_grad for tensor in vars(rollout).values())
    policy, values = model(rollout.observations, rollout.state, rollout.valid)
    (policy.log_prob(rollout.actions).sum() + values.sum()).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


class RandomNaN(gymnasium.Env[NDArray[np.float32], np.int64]):
    """Random observations, NaN in 8 % of the steps; episodes terminate or are truncated."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = spaces.Discrete(3)

    def _observe(self) -> NDArray[np.float32]:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Resets the step to 0."""
        super().reset(seed=seed, options=options)
        self._step = 0
        return self._observe(), {}

    def step(
        self, action: np.int64
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Returns the action as the reward."""
        self._step += 1
        observation = self._observe()
        if self.np_random.random() < 0.08:
            observation[1] = np.nan
        return observation, float(action), self.np_random.random() < 0.05, self._step >= 13, {}


def results_of(env: Any, T: int, G: int, B: int, lstm: int, staged: bool) -> list[Any]:
    """Returns the results of 30 rollouts, with or without separate host buffers."""
    groups = [vectorize.sequential(env, B // G) for _ in range(G)]
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
    collector = Collector(groups, env_codec, T, SEED, lambda *_: None, device)
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


@pytest.mark.parametrize("env", [RandomNaN, "CartPole-v1"])
@pytest.mark.parametrize(
    ("T", "G", "B", "lstm"),
    [(1, 1, 2, 0), (1, 2, 4, 4), (2, 1, 3, 4), (5, 2, 4, 4), (7, 2, 2, 0), (16, 1, 3, 0)],
)
def test_separate_host_buffers_give_bit_identical_rollouts(
    env: Any, T: int, G: int, B: int, lstm: int
) -> None:
    """Compares observations, states, flags, the carried state and the running moments."""
    direct = results_of(env, T, G, B, lstm, staged=False)
    staged = results_of(env, T, G, B, lstm, staged=True)
    for (tensors, others), (staged_tensors, staged_others) in zip(direct, staged, strict=True):
        assert others == staged_others
        for name, tensor in tensors.items():
            assert tensor.dtype == staged_tensors[name].dtype
            torch.testing.assert_close(
                staged_tensors[name], tensor, rtol=0, atol=0, equal_nan=True, msg=name
            )
    if env is RandomNaN:
        assert sum(len(others[2]) for _, others in direct) > 0
