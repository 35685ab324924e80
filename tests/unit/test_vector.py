"""Every source of environments behind one contract, and one line for what cannot be made."""

import copy
import functools
import threading
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from hogwild_rl import errors
from hogwild_rl.envs import make, vectorize

native_and_sync = pytest.mark.parametrize("num_envs", [3, 8], ids=["sync", "native"])


class Still(gymnasium.Env[Any, Any]):
    """Nothing ever happens in it; it notes how it was made and whether it was closed."""

    closed = 0

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(0, 1, (2,), np.float32)
        self.action_space = spaces.Discrete(3)
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """At rest."""
        super().reset(seed=seed, options=options)
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """At rest, paid the action."""
        return np.zeros(2, dtype=np.float32), float(action), False, False, {}

    def close(self) -> None:
        """Counts."""
        type(self).closed += 1


class Maker:
    """A callable object."""

    def __call__(self) -> Still:
        """One environment."""
        return Still()


def still() -> Still:
    """A function that makes one, and takes no render_mode."""
    return Still()


def nothing() -> None:
    """A function that forgets to return what it made."""


def vectorised() -> VectorEnv[Any, Any, Any]:
    """A function that makes many where one is wanted."""
    return vectorize.make_vector_env("CartPole-v1", 2)


def needing_a_package() -> Still:
    """A function whose environment is not installed."""
    raise gymnasium.error.DependencyNotInstalled("flux_capacitor is missing")


def refusal(env: Any) -> str:
    """The one line with which an environment is refused, however it is asked for."""
    with pytest.raises(errors.UserError) as caught:
        make.inspect_env(env)
    with pytest.raises(errors.UserError):
        make.make_env(env)
    with pytest.raises(errors.UserError):
        vectorize.make_vector_env(env, 2)
    message = str(caught.value)
    assert "\n" not in message
    return message


def play_to_an_end(num_envs: int, seed: int) -> tuple[VectorEnv[Any, Any, Any], Any, Any]:
    """CartPoles just after the first end of any, the last observations, and who ended."""
    envs = vectorize.make_vector_env("CartPole-v1", num_envs)
    observations, _ = envs.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(200):
        actions = rng.integers(2, size=num_envs)
        observations, _, terminated, truncated, _ = envs.step(actions)
        ended = terminated | truncated
        if ended.any():
            return envs, np.array(observations), np.array(ended)
    raise AssertionError("no pole fell in 200 steps")


def test_few_are_stepped_in_turn_and_many_natively() -> None:
    """Both kinds are met in this file: three CartPoles are single ones, eight are gymnasium's."""
    assert isinstance(vectorize.make_vector_env("CartPole-v1", 3), SyncVectorEnv)
    assert isinstance(vectorize.make_vector_env("CartPole-v1", 8), CartPoleVectorEnv)


@native_and_sync
def test_autoreset_is_next_step_by_name(num_envs: int) -> None:
    """The vector environment says so itself, and is of the asked size and spaces."""
    envs = vectorize.make_vector_env("CartPole-v1", num_envs)
    assert envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert envs.num_envs == num_envs
    assert envs.single_action_space == spaces.Discrete(2)
    assert envs.single_observation_space.shape == (4,)
    assert envs.reset(seed=0)[0].shape == (num_envs, 4)


@native_and_sync
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_end_shows_the_last_observation_and_the_next_step_resets(
    num_envs: int, seed: int
) -> None:
    """At an end the fallen pole is seen; one step later the new one, unpaid and without an end."""
    envs, observations, ended = play_to_an_end(num_envs, seed)
    assert 0 < ended.sum() < num_envs
    assert (np.abs(observations[ended][:, 2]) > 0.209).all()
    observations, rewards, terminated, truncated, _ = envs.step(np.zeros(num_envs, dtype=np.int64))
    assert (np.abs(observations[ended]) <= 0.05).all()
    assert (rewards[ended] == 0).all()
    assert (rewards[~ended] == 1).all()
    assert not (terminated | truncated)[ended].any()


@native_and_sync
def test_the_step_that_resets_ignores_its_action(num_envs: int) -> None:
    """Either action at that step gives the same start, and the same course from there."""
    courses = []
    for action in (0, 1):
        envs, _, ended = play_to_an_end(num_envs, seed=0)
        actions = np.zeros(num_envs, dtype=np.int64)
        actions[ended] = action
        first = np.array(envs.step(actions)[0])
        second = np.array(envs.step(np.zeros(num_envs, dtype=np.int64))[0])
        courses.append(np.stack([first, second]))
    assert (courses[0] == courses[1]).all()


@native_and_sync
def test_a_time_limit_truncates(num_envs: int) -> None:
    """A spec's step limit cuts every episode there, and does not terminate it."""
    spec = copy.deepcopy(gymnasium.spec("CartPole-v1"))  # the registry keeps its own
    spec.max_episode_steps = 6
    envs = vectorize.make_vector_env(spec, num_envs)
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
def test_a_specs_wrappers_are_applied(num_envs: int) -> None:
    """A spec taken from a wrapped environment makes it wrapped again, in any number."""
    wrapped = gymnasium.wrappers.ClipReward(gymnasium.make("CartPole-v1"), 0.0, 0.5)
    assert wrapped.spec is not None
    envs = vectorize.make_vector_env(wrapped.spec, num_envs)
    envs.reset(seed=0)
    assert envs.step(np.zeros(num_envs, dtype=np.int64))[1].tolist() == [0.5] * num_envs


@native_and_sync
def test_a_specs_arguments_are_applied(num_envs: int) -> None:
    """What a spec gives its environment arrives in all of them."""
    spec = copy.deepcopy(gymnasium.spec("CartPole-v1"))  # the registry keeps its own
    spec.kwargs = {"sutton_barto_reward": True}
    envs = vectorize.make_vector_env(spec, num_envs)
    envs.reset(seed=0)
    assert envs.step(np.zeros(num_envs, dtype=np.int64))[1].tolist() == [0.0] * num_envs


@native_and_sync
def test_environments_differ_and_seeds_repeat(num_envs: int) -> None:
    """No two environments start alike, and the same seed starts all as before."""
    envs = vectorize.make_vector_env("CartPole-v1", num_envs)
    first = np.array(envs.reset(seed=5)[0])
    assert len(np.unique(first, axis=0)) == num_envs
    assert (envs.reset(seed=5)[0] == first).all()


@pytest.mark.parametrize("env", [Still, still, Maker()], ids=["class", "function", "object"])
@pytest.mark.parametrize("num_envs", [1, 8])
def test_callables_are_vectorised(env: Any, num_envs: int) -> None:
    """A class, a function or an object that makes environments will do in any number."""
    envs = vectorize.make_vector_env(env, num_envs)
    assert envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert envs.reset(seed=0)[0].shape == (num_envs, 2)
    actions = np.arange(num_envs) % 3
    assert envs.step(actions)[1].tolist() == actions.tolist()


def test_facts_of_cartpole() -> None:
    """Name, spaces and the mean return at which it is solved."""
    env_info = make.inspect_env("CartPole-v1")
    assert env_info.name == "CartPole-v1"
    assert env_info.reward_threshold == 475
    assert env_info.action_space == spaces.Discrete(2)
    assert env_info.observation_space.shape == (4,)


def test_the_source_of_an_id_needs_no_registration() -> None:
    """Workers that never registered the caller's environment can make it from the env_info."""
    gymnasium.register("Still-v0", entry_point=Still)
    try:
        source = make.inspect_env("Still-v0").source
    finally:
        del gymnasium.registry["Still-v0"]
    made = make.make_env(source)
    assert isinstance(made.unwrapped, Still)
    assert vectorize.make_vector_env(source, 2).reset(seed=0)[0].shape == (2, 2)


def test_facts_of_a_callable() -> None:
    """It is its own source, has no threshold, and is not left open."""
    before = Still.closed
    env_info = make.inspect_env(still)
    assert Still.closed == before + 1
    assert env_info.source is still
    assert env_info.name == f"{__name__}.still"
    assert env_info.reward_threshold is None
    assert env_info.action_space == spaces.Discrete(3)


def test_only_a_render_mode_that_is_set_is_asked_for() -> None:
    """A callable without that argument makes what is not to be shown."""
    assert make.make_env(still).render_mode is None
    assert make.make_env(Still, "rgb_array").render_mode == "rgb_array"
    assert make.make_env("CartPole-v1").render_mode is None


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ("CartPole-v1", "CartPole-v1"),
        (gymnasium.spec("CartPole-v1"), "CartPole-v1"),
        (still, f"{__name__}.still"),
        (Still, f"{__name__}.Still"),
        (Maker(), f"{__name__}.Maker"),
    ],
    ids=["id", "spec", "function", "class", "object"],
)
def test_names(env: make.EnvSource, name: str) -> None:
    """Ids as they are, callables by their dotted names."""
    assert make.name_of(env) == name


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("cartpole-v1", "CartPole-v1"),
        ("CartPole-v9", "CartPole-v1"),
        ("MountanCar-v0", "MountainCar-v0"),
    ],
)
def test_an_unknown_id_suggests_its_neighbours(wrong: str, near: str) -> None:
    """The message names what was given and what may have been meant."""
    message = refusal(wrong)
    assert wrong in message
    assert near in message


def test_an_id_near_to_none_is_refused() -> None:
    """Nothing is suggested for what resembles nothing."""
    message = refusal("zzzzqqq")
    assert "zzzzqqq" in message
    assert "did you mean" not in message


def test_a_module_that_is_missing_is_named() -> None:
    """In module:Id the module is what cannot be imported."""
    assert "flux_capacitor" in refusal("flux_capacitor:DeLorean-v0")


def test_a_callable_whose_package_is_missing_is_refused() -> None:
    """What the environment said about it is passed on."""
    message = refusal(needing_a_package)
    assert "needing_a_package" in message
    assert "flux_capacitor" in message


def test_a_lambda_is_refused() -> None:
    """It cannot be sent to a worker; the message says what can."""
    with pytest.raises(errors.UserError, match=r"lambda.*top level"):
        make.inspect_env(lambda: Still(None))
    assert isinstance(make.make_env(lambda: Still(None)), Still), "nobody has to send it here"


def test_an_argument_that_cannot_be_sent_is_refused() -> None:
    """Whatever part of a callable cannot be pickled, it is printed before a worker starts."""
    with pytest.raises(errors.UserError, match="lock"):
        make.inspect_env(functools.partial(Still, threading.Lock()))


@pytest.mark.parametrize("env", [nothing, vectorised, dict], ids=["none", "vector", "dict"])
def test_a_callable_must_return_an_environment(env: Any) -> None:
    """The message names the callable and what it returned instead."""
    message = refusal(env)
    assert make.name_of(env) in message
    assert type(env()).__name__ in message
