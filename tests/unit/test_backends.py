"""Tests of vectorization backends: trajectories equal those of a loop over single environments."""

import contextlib
import importlib.util
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import VectorEnv

from hogwild_rl.collect.rollout import Act, Collector, Rollout
from hogwild_rl.envs import make, vectorize
from hogwild_rl.envs.codecs import ActionCodec, EnvCodec, ObservationCodec
from hogwild_rl.errors import UserError

SEED, STEPS = 17, 120
needs_pool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="the extra envpool is not installed"
)


def env_codec_of(envs: VectorEnv[Any, Any, Any]) -> EnvCodec:
    """Codec of the environments' observations and actions, without recurrent state."""
    return EnvCodec(
        ObservationCodec.of(envs.single_observation_space),
        ActionCodec.of(envs.single_action_space),
    )


def random_act() -> Act:
    """Policy that samples one of two actions uniformly."""
    generator = torch.Generator().manual_seed(SEED)
    return lambda rows, state: (torch.randint(2, (len(rows),), generator=generator), None)


def collect(name: str, num_envs: int, groups: int = 1) -> Rollout:
    """Rollout of random actions in CartPole-v1."""
    spec = make.resolve("CartPole-v1")
    backend = vectorize.Backend(name, "")
    made = [vectorize.make_envs(spec, backend, num_envs // groups, 2) for _ in range(groups)]
    collector = Collector(made, env_codec_of(made[0]), STEPS, SEED, lambda *_: None)
    rollout = collector.collect(random_act())
    for envs in made:
        envs.close()
    return rollout


def replay(rollout: Rollout, b: int, env: Any, start: Any) -> None:
    """Replays the actions of column b in one environment and compares every row.

    Args:
        env: a single environment.
        start: called with the environment and the initial observation of an episode.
    """
    ended = False
    for t in range(STEPS):
        row = rollout.observations[t, b].numpy()
        if t == 0 or ended:
            if ended:  # this step only resets: the next row starts an episode
                assert not rollout.valid[t, b]
                assert rollout.rewards[t, b] == 0
                ended = False
                start(env, rollout.observations[t + 1, b].numpy())
                continue
            start(env, row)
        assert rollout.valid[t, b]
        observation, reward, terminated, truncated, _ = env.step(int(rollout.actions[t, b]))
        after = rollout.observations[t + 1, b].numpy()
        np.testing.assert_allclose(observation, after, rtol=1e-4, atol=1e-4)
        assert reward == rollout.rewards[t, b]
        assert (terminated, truncated) == (rollout.terminated[t, b], rollout.truncated[t, b])
        ended = terminated or truncated


@pytest.mark.parametrize(
    "name", ["native", "sync", "async", pytest.param("envpool", marks=needs_pool)]
)
def test_trajectories_equal_those_of_single_environments(name: str) -> None:
    """Every episode is replayed from its recorded initial state.

    Native and EnvPool environments sample initial states from generators of their own.
    """
    rollout = collect(name, num_envs=6)
    ends = 0

    def start(env: gymnasium.Env[Any, Any], observation: Any) -> None:
        env.reset()
        env.unwrapped.state = observation.astype(np.float64)

    for b in range(6):
        replay(rollout, b, gymnasium.make("CartPole-v1"), start)
        ends += int(rollout.terminated[:, b].sum())
    assert ends > 6
    assert int((~rollout.valid).sum()) >= ends - 6


@pytest.mark.parametrize("name", ["sync", "async"])
def test_initial_states_equal_those_of_seeded_single_environments(name: str) -> None:
    rollout = collect(name, num_envs=3)
    for b in range(3):
        env = gymnasium.make("CartPole-v1")
        seeds = iter([SEED + b])

        def start(env: Any, observation: Any, seeds: Any = seeds) -> None:
            first, _ = env.reset(seed=next(seeds, None))
            np.testing.assert_array_equal(first, observation)

        replay(rollout, b, env, start)


@pytest.mark.parametrize("name", ["sync", "async", pytest.param("envpool", marks=needs_pool)])
def test_two_groups_equal_one_group(name: str) -> None:
    """The seeds and columns of the environments do not depend on the number of groups."""
    rollout = collect(name, num_envs=6, groups=2)
    whole = collect(name, num_envs=6)
    torch.testing.assert_close(rollout.observations[0], whole.observations[0], rtol=0, atol=0)

    def start(env: gymnasium.Env[Any, Any], observation: Any) -> None:
        env.reset()
        env.unwrapped.state = observation.astype(np.float64)

    for b in range(6):
        replay(rollout, b, gymnasium.make("CartPole-v1"), start)


@pytest.mark.parametrize(
    "name", ["native", "sync", "async", pytest.param("envpool", marks=needs_pool)]
)
def test_reset_without_seed_continues_and_with_seed_restarts_the_generator(name: str) -> None:
    """Also within episodes: initial states differ without a seed and repeat with the same seed."""
    source = make.resolve("CartPole-v1")
    envs = vectorize.make_envs(source, vectorize.Backend(name, "for this test"), 3, cores=1)
    with contextlib.closing(envs):
        starts = []
        for seed in (SEED, None, None, None, SEED):
            starts.append(np.array(envs.reset(seed=seed)[0]))
            for _ in range(30):
                envs.step(np.ones(3, dtype=np.int64))
    assert len(np.unique(np.concatenate(starts[:-1]), axis=0)) == 12
    np.testing.assert_array_equal(starts[0], starts[-1])


def test_rollout_copied_to_a_device_is_equal() -> None:
    """The copy through host memory, as for a GPU, with the CPU as device."""
    rollouts = []
    for device in (None, torch.device("cpu")):
        envs = vectorize.sequential("CartPole-v1", 4)
        collector = Collector([envs], env_codec_of(envs), 16, SEED, lambda *_: None, device)
        act = random_act()
        for _ in range(5):
            rollout = collector.collect(act)
        rollouts.append(rollout)
    for name, tensor in vars(rollouts[0]).items():
        assert torch.equal(tensor, getattr(rollouts[1], name)), name


def test_images_are_stored_as_bytes() -> None:
    image = ObservationCodec.of(gymnasium.spaces.Box(0, 255, (16, 17, 3), np.uint8))
    env_codec = EnvCodec(image, ActionCodec.of(gymnasium.spaces.Discrete(2)))
    observations = Rollout.empty(2, 4, env_codec).observations
    assert observations.dtype == torch.uint8
    assert observations.shape == (3, 4, 16, 17, 3)


@pytest.mark.parametrize(
    ("env", "num_envs", "cores", "name"),
    [
        ("CartPole-v1", 8, 2, "native"),
        ("tests.envs:Chain-v0", 1, 2, "sync"),
        ("tests.envs:Chain-v0", 8, 1, "sync"),
        ("tests.envs:Chain-v0", 8, 2, "sync"),
        ("tests.envs:Slow-v0", 8, 2, "async"),
    ],
)
def test_auto_selects_the_fastest_backend_and_gives_a_reason(env, num_envs, cores, name) -> None:
    backend = vectorize.choose(make.resolve(env), "auto", num_envs, cores)
    assert backend.name == name
    assert backend.reason


@needs_pool
def test_auto_selects_envpool_if_it_has_the_environment() -> None:
    assert vectorize.choose(make.resolve("Acrobot-v1"), "auto", 8, 2).name == "envpool"


@pytest.mark.parametrize("wanted", ["native", pytest.param("envpool", marks=needs_pool)])
def test_a_backend_without_the_environment_raises(wanted: Any) -> None:
    source = make.resolve("tests.envs:Chain-v0")
    with pytest.raises(UserError, match="Chain-v0"):
        vectorize.choose(source, wanted, 4, 2)


def test_a_missing_backend_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(UserError, match="envpool is not installed"):
        vectorize.choose("CartPole-v1", "envpool", 4, 2)


@pytest.mark.parametrize(
    ("env", "name", "expected"),
    [
        ("CartPole-v1", "native", False),
        ("CartPole-v1", "sync", False),
        ("CartPole-v1", "async", True),
        ("CartPole-v1", "envpool", True),
        ("PongNoFrameskip-v4", "native", True),
    ],
)
def test_backends_with_threads_or_processes_step_asynchronously(env, name, expected) -> None:
    backend = vectorize.Backend(name, "")
    assert vectorize.steps_asynchronously(make.resolve(env), backend) == expected
