"""Tests of vector environments from every source, and of one-line errors for invalid sources."""

import copy
import functools
import threading
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, VectorEnv

from hogwild_rl import errors
from hogwild_rl.envs import make, vectorize
from tests.envs import make_vector_env

native_and_sync = pytest.mark.parametrize("num_envs", [3, 8], ids=["sync", "native"])


class Constant(gymnasium.Env[Any, Any]):
    """Environment with constant observations that stores its render_mode and counts closes."""

    closed = 0

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(0, 1, (2,), np.float32)
        self.action_space = spaces.Discrete(3)
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Returns zeros."""
        super().reset(seed=seed, options=options)
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Returns zeros; the reward is the action."""
        return np.zeros(2, dtype=np.float32), float(action), False, False, {}

    def close(self) -> None:
        """Counts the calls."""
        type(self).closed += 1


class Maker:
    """Callable object that returns an environment."""

    def __call__(self) -> Constant:
        """Creates an environment."""
        return Constant()


def make_constant() -> Constant:
    """Creates an environment; has no argument render_mode."""
    return Constant()


def nothing() -> None:
    """Returns None instead of an environment."""


def vectorized() -> VectorEnv[Any, Any, Any]:
    """Returns a vector environment instead of a single one."""
    return make_vector_env("CartPole-v1", 2)


def needing_a_package() -> Constant:
    """Raises DependencyNotInstalled."""
    raise gymnasium.error.DependencyNotInstalled("flux_capacitor is missing")


def error_of(env: Any) -> str:
    """Returns the one-line error message; asserts that every function raises UserError."""
    with pytest.raises(errors.UserError) as caught:
        make.inspect_env(env)
    with pytest.raises(errors.UserError):
        make.make_env(env)
    with pytest.raises(errors.UserError):
        make_vector_env(env, 2)
    message = str(caught.value)
    assert "\n" not in message
    return message


def step_to_first_end(num_envs: int, seed: int) -> tuple[VectorEnv[Any, Any, Any], Any, Any]:
    """Returns environments after the first end of any, their observations, and end flags."""
    envs = make_vector_env("CartPole-v1", num_envs)
    observations, _ = envs.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(200):
        actions = rng.integers(2, size=num_envs)
        observations, _, terminated, truncated, _ = envs.step(actions)
        ended = terminated | truncated
        if ended.any():
            return envs, np.array(observations), np.array(ended)
    raise AssertionError("no episode ended in 200 steps")


def test_few_environments_are_synchronous_and_many_are_native() -> None:
    """The parameters `native_and_sync` of this file cover both implementations."""
    assert isinstance(make_vector_env("CartPole-v1", 3), vectorize.SequentialVectorEnv)
    assert isinstance(make_vector_env("CartPole-v1", 8), CartPoleVectorEnv)


@native_and_sync
def test_autoreset_mode_size_and_spaces(num_envs: int) -> None:
    """The metadata declare NEXT_STEP autoreset."""
    envs = make_vector_env("CartPole-v1", num_envs)
    assert envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert envs.num_envs == num_envs
    assert envs.single_action_space == spaces.Discrete(2)
    assert envs.single_observation_space.shape == (4,)
    assert envs.reset(seed=0)[0].shape == (num_envs, 4)


@native_and_sync
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_end_returns_the_final_observation_and_the_next_step_resets(
    num_envs: int, seed: int
) -> None:
    """The step that resets returns the first observation, reward 0 and no end."""
    envs, observations, ended = step_to_first_end(num_envs, seed)
    assert 0 < ended.sum() < num_envs
    assert (np.abs(observations[ended][:, 2]) > 0.209).all()
    observations, rewards, terminated, truncated, _ = envs.step(np.zeros(num_envs, dtype=np.int64))
    assert (np.abs(observations[ended]) <= 0.05).all()
    assert (rewards[ended] == 0).all()
    assert (rewards[~ended] == 1).all()
    assert not (terminated | truncated)[ended].any()


@native_and_sync
def test_the_step_that_resets_ignores_its_action(num_envs: int) -> None:
    """Both actions at that step lead to the same next two observations."""
    observations = []
    for action in (0, 1):
        envs, _, ended = step_to_first_end(num_envs, seed=0)
        actions = np.zeros(num_envs, dtype=np.int64)
        actions[ended] = action
        first = np.array(envs.step(actions)[0])
        second = np.array(envs.step(np.zeros(num_envs, dtype=np.int64))[0])
        observations.append(np.stack([first, second]))
    assert (observations[0] == observations[1]).all()


@native_and_sync
def test_a_time_limit_truncates(num_envs: int) -> None:
    """max_episode_steps of a spec truncates every episode and does not terminate it."""
    spec = copy.deepcopy(gymnasium.spec("CartPole-v1"))  # the registry keeps its own
    spec.max_episode_steps = 6
    envs = make_vector_env(spec, num_envs)
    envs.reset(seed=0)
    flags = []
    for t in range(15):
        actions = np.full(num_envs, t % 2)
        _, _, terminated, truncated, _ = envs.step(actions)
        assert not terminated.any()
        flags.append(truncated.copy())
    assert [flag.all() for flag in flags] == [t in {5, 12} for t in range(15)]
    assert [flag.any() for flag in flags] == [t in {5, 12} for t in range(15)]


@native_and_sync
def test_a_spec_s_wrappers_are_applied(num_envs: int) -> None:
    """The spec is that of a wrapped environment."""
    wrapped = gymnasium.wrappers.ClipReward(gymnasium.make("CartPole-v1"), 0.0, 0.5)
    assert wrapped.spec is not None
    envs = make_vector_env(wrapped.spec, num_envs)
    envs.reset(seed=0)
    assert envs.step(np.zeros(num_envs, dtype=np.int64))[1].tolist() == [0.5] * num_envs


@native_and_sync
def test_a_spec_s_kwargs_are_applied(num_envs: int) -> None:
    """The reward of every environment shows the argument."""
    spec = copy.deepcopy(gymnasium.spec("CartPole-v1"))  # the registry keeps its own
    spec.kwargs = {"sutton_barto_reward": True}
    envs = make_vector_env(spec, num_envs)
    envs.reset(seed=0)
    assert envs.step(np.zeros(num_envs, dtype=np.int64))[1].tolist() == [0.0] * num_envs


@native_and_sync
def test_environments_differ_and_seeds_are_reproducible(num_envs: int) -> None:
    """The first observations of all environments differ; equal seeds give equal ones."""
    envs = make_vector_env("CartPole-v1", num_envs)
    first = np.array(envs.reset(seed=5)[0])
    assert len(np.unique(first, axis=0)) == num_envs
    assert (envs.reset(seed=5)[0] == first).all()


@pytest.mark.parametrize(
    "env", [Constant, make_constant, Maker()], ids=["class", "function", "object"]
)
@pytest.mark.parametrize("num_envs", [1, 8])
def test_callables_are_vectorized(env: Any, num_envs: int) -> None:
    """Supports a class, a function, and a callable object."""
    envs = make_vector_env(env, num_envs)
    assert envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert envs.reset(seed=0)[0].shape == (num_envs, 2)
    actions = np.arange(num_envs) % 3
    assert envs.step(actions)[1].tolist() == actions.tolist()


def test_env_info_of_cartpole() -> None:
    env_info = make.inspect_env("CartPole-v1")
    assert env_info.name == "CartPole-v1"
    assert env_info.reward_threshold == 475
    assert env_info.action_space == spaces.Discrete(2)
    assert env_info.observation_space.shape == (4,)


def test_the_source_of_an_id_needs_no_registration() -> None:
    """Workers create an environment from its EnvInfo without registering its id."""
    gymnasium.register("Constant-v0", entry_point=Constant)
    try:
        source = make.inspect_env("Constant-v0").source
    finally:
        del gymnasium.registry["Constant-v0"]
    env = make.make_env(source)
    assert isinstance(env.unwrapped, Constant)
    assert make_vector_env(source, 2).reset(seed=0)[0].shape == (2, 2)


def test_env_info_of_a_callable() -> None:
    """The source is the callable, there is no threshold, and both instances are closed."""
    before = Constant.closed
    env_info = make.inspect_env(make_constant)
    assert Constant.closed == before + 2
    assert env_info.source is make_constant
    assert env_info.name == f"{__name__}.make_constant"
    assert env_info.reward_threshold is None
    assert env_info.action_space == spaces.Discrete(3)


def test_render_mode_is_passed_only_if_it_is_set() -> None:
    """A callable without that argument can be used without rendering."""
    assert make.make_env(make_constant).render_mode is None
    assert make.make_env(Constant, "rgb_array").render_mode == "rgb_array"
    assert make.make_env("CartPole-v1").render_mode is None


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ("CartPole-v1", "CartPole-v1"),
        (gymnasium.spec("CartPole-v1"), "CartPole-v1"),
        (make_constant, f"{__name__}.make_constant"),
        (Constant, f"{__name__}.Constant"),
        (Maker(), f"{__name__}.Maker"),
    ],
    ids=["id", "spec", "function", "class", "object"],
)
def test_name_of_returns_the_id_or_dotted_name(env: make.EnvSource, name: str) -> None:
    assert make.name_of(env) == name


@pytest.mark.parametrize(
    ("wrong", "similar"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("cartpole-v1", "CartPole-v1"),
        ("CartPole-v9", "CartPole-v1"),
        ("MountanCar-v0", "MountainCar-v0"),
    ],
)
def test_an_unknown_id_suggests_a_similar_one(wrong: str, similar: str) -> None:
    message = error_of(wrong)
    assert wrong in message
    assert similar in message


def test_an_unknown_id_without_a_similar_one_has_no_suggestion() -> None:
    message = error_of("zzzzqqq")
    assert "zzzzqqq" in message
    assert "did you mean" not in message


def test_a_missing_module_of_an_id_is_named() -> None:
    """In module:Id the module cannot be imported."""
    assert "flux_capacitor" in error_of("flux_capacitor:DeLorean-v0")


def test_a_callable_with_a_missing_package_is_rejected() -> None:
    """The message has the environment's own error."""
    message = error_of(needing_a_package)
    assert "needing_a_package" in message
    assert "flux_capacitor" in message


def test_a_lambda_is_an_environment_source() -> None:
    assert make.inspect_env(lambda: Constant(None)).name.endswith("<lambda>")


def test_an_argument_that_cannot_be_pickled_is_rejected() -> None:
    """The message names the argument's type."""
    with pytest.raises(errors.UserError, match="lock"):
        make.inspect_env(functools.partial(Constant, threading.Lock()))


@pytest.mark.parametrize("env", [nothing, vectorized, dict], ids=["none", "vector", "dict"])
def test_a_callable_must_return_an_environment(env: Any) -> None:
    """The message names the callable and the type of its result."""
    message = error_of(env)
    assert make.name_of(env) in message
    assert type(env()).__name__ in message
