"""Tests of environment sources in settings, locked folders, endless episodes and reward scales."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

import hogwild_rl
from hogwild_rl import a2c, a3c, evaluate, reinforce, td3
from hogwild_rl.config import base, cli, presets
from hogwild_rl.envs import make, vectorize
from hogwild_rl.errors import UserError
from hogwild_rl.runs import checkpoint, files, logger
from tests import envs

SHORT: dict[str, Any] = {"total_timesteps": 1_000, "quiet": True}
DRY = functools.partial(gymnasium.make, "FrozenLake-v1", is_slippery=False, max_episode_steps=30)


class Endless(envs.Clock):
    """Clock whose episodes do not end."""

    def __init__(self) -> None:
        super().__init__(terminates=False)

    def step(self, action: Any) -> envs.Step:
        observation, reward, *_, info = super().step(action)
        return observation, reward, False, False, info


class Short(envs.Clock):
    """Clock with continuous actions; the reward is the first one of the episode."""

    def __init__(self) -> None:
        super().__init__(terminates=True)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    def step(self, action: Any) -> envs.Step:
        observation, _, *rest = super().step(action)
        self._action = float(action[0]) if self._step == 1 else self._action
        return (observation, self._action, *rest)  # type: ignore[return-value]


class Scaled(gymnasium.RewardWrapper[Any, Any]):
    """Environment with rewards times a factor."""

    def __init__(self, env: str, factor: float) -> None:
        super().__init__(Short() if env == "Short" else gymnasium.make(env))
        self.factor = factor

    def reward(self, reward: Any) -> float:
        return float(reward) * self.factor


class Nested:
    """Namespace of an environment."""

    class Clock(envs.Clock):
        """Clock that terminates."""

        def __init__(self) -> None:
            super().__init__(terminates=True)


def specs() -> list[Any]:
    spec = gymnasium.make("FrozenLake-v1", is_slippery=False).spec
    wrapped = gymnasium.wrappers.NormalizeReward(gymnasium.make("CartPole-v1"), gamma=0.9).spec
    return [spec, wrapped, gymnasium.spec("Acrobot-v1")]


@pytest.mark.parametrize("spec", specs(), ids=["arguments", "wrapper", "registered"])
def test_a_spec_is_restored_from_its_setting(spec: Any) -> None:
    assert make.resolve(make.to_setting(spec)) == spec


def test_arguments_of_gymnasium_make_are_part_of_the_setting() -> None:
    spec: Any = make.resolve(make.to_setting(DRY))
    assert (spec.kwargs["is_slippery"], spec.max_episode_steps) == (False, 30)
    assert gymnasium.spec("FrozenLake-v1").max_episode_steps == 100  # the registry is unchanged
    assert make.name_of(DRY) == "FrozenLake-v1"
    unchecked = functools.partial(gymnasium.make, "FrozenLake-v1", disable_env_checker=True)
    assert make.inspect_env(unchecked).name == "FrozenLake-v1"
    by_keyword = functools.partial(gymnasium.make, id="FrozenLake-v1")
    assert make.inspect_env(by_keyword).name == "gymnasium.envs.registration.make"


@pytest.mark.parametrize(
    ("env", "setting"),
    [
        ("CartPole-v1", "CartPole-v1"),
        (envs.Chain, "tests.envs:Chain"),
        (functools.partial(envs.Clock, terminates=True), "tests.envs.Clock"),
        (lambda: envs.Clock(terminates=True), f"{__name__}.<lambda>"),
    ],
    ids=["id", "class", "partial", "lambda"],
)
def test_setting_of_ids_and_callables(env: Any, setting: str) -> None:
    assert make.to_setting(env) == setting


@pytest.mark.parametrize("module", ["__main__", "tests.envs", "unloaded"])
def test_setting_of_a_class_that_cannot_be_imported_is_its_dotted_name(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = type("Chain", (envs.Chain,), {"__module__": module})
    if module == "__main__":
        monkeypatch.setattr(sys.modules[module], "Chain", own, raising=False)
    assert make.to_setting(own) == f"{module}.Chain"


def test_a_module_s_callable_is_resolved_by_its_name() -> None:
    assert make.resolve("tests.envs:Chain") is envs.Chain
    assert make.resolve("tests.process.test_sources:Nested.Clock").__name__ == "Clock"
    with pytest.raises(UserError, match="unknown environment"):
        make.resolve("tests.envs:NoSuchClass")


@pytest.mark.parametrize(
    "text",
    [
        *("{", "{}", '{"id": "X-v0", "additional_wrappers": 3}'),
        *('{"id": 3, "additional_wrappers": []}', '{"id": "?", "additional_wrappers": []}'),
        '{"id": "X-v0", "additional_wrappers": [], "evil": 1}',
    ],
)
def test_json_that_is_no_spec_is_one_error(text: str) -> None:
    with pytest.raises(UserError, match="not the JSON of a spec"):
        a2c.Config(env=text)


@pytest.mark.parametrize(
    ("changes", "modules"),
    [
        ({}, set()),
        ({"kwargs": {"is_slippery": False}}, set()),
        ({"entry_point": "evil:Env"}, {"evil"}),
        ({"vector_entry_point": "evil:Env"}, {"gymnasium.envs.toy_text.frozen_lake"}),
        (
            {"additional_wrappers": [{"name": "W", "entry_point": "evil:W", "kwargs": {}}]},
            {"evil"},
        ),
        ({"id": "Unregistered-v0"}, {"gymnasium.envs.toy_text.frozen_lake"}),
    ],
    ids=["registered", "arguments", "entry point", "vector", "wrapper", "unregistered"],
)
def test_json_of_a_file_needs_permission_to_import(
    changes: dict[str, Any], modules: set[str]
) -> None:
    text = json.dumps({**json.loads(gymnasium.spec("FrozenLake-v1").to_json()), **changes})
    assert make.modules_of(text) == modules
    assert "evil" not in sys.modules
    if modules:
        with pytest.raises(UserError, match="allow-import"):
            base.require_import_allowed(text, "run x", allowed=False)


def test_json_of_a_registered_environment_of_another_module_needs_permission(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = EnvSpec("Own-v0", entry_point="tests.envs:Chain")
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    assert make.modules_of(spec.to_json()) == {"tests.envs"}


def test_a_run_is_evaluated_and_resumed_with_its_environment_s_arguments(
    tmp_path: pathlib.Path,
) -> None:
    run = tmp_path / "run"
    a2c.train(a2c.Config(env=DRY, num_envs=4, run_dir=run, **SHORT))
    spec = hogwild_rl.load(run).make_env().spec
    assert spec is not None
    assert (spec.kwargs["is_slippery"], spec.max_episode_steps) == (False, 30)
    config = a2c.Config(resume=run, total_timesteps=2_000, quiet=True)
    assert make.resolve(config.env) == make.resolve(DRY)
    a2c.train(config)
    with pytest.raises(UserError, match="env of run"):
        a2c.train(a2c.Config(env="FrozenLake-v1", resume=run, total_timesteps=3_000, quiet=True))


def next_command(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_next_command_of_an_importable_class_works(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    a2c.train(a2c.Config(env=envs.Chain, num_envs=4, total_timesteps=500, run_dir=run))
    line = next_command(capsys)
    assert line.startswith("next: ")
    command = ["bash", "-c", line.removeprefix("next: ")]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    subprocess.run(command, check=True, capture_output=True, timeout=60, env=environment)


def test_next_command_of_other_callables_is_python(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, env = str(tmp_path / "run"), functools.partial(envs.Clock, terminates=True)
    a2c.train(a2c.Config(env=env, num_envs=4, total_timesteps=500, run_dir=run))
    call = f"hogwild_rl.load({run!r}).evaluate(20, env=tests.envs.Clock)"
    assert next_command(capsys) == f"next, in Python: {call}"


def test_a_run_s_folder_is_locked_while_it_trains(tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    a2c.train(a2c.Config(num_envs=4, run_dir=run, **SHORT))
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    resumed = a2c.Config(resume=run, total_timesteps=2_000, quiet=True)
    with files.lock(run), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        a2c.train(resumed)
    changed = {path for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert changed <= {run / files.LOCK_FILE}
    a2c.train(resumed)  # the lock has been released


def test_a_lock_ends_with_its_process(tmp_path: pathlib.Path) -> None:
    code = (
        "import pathlib, sys; from hogwild_rl.runs import files; "
        f"lock = files.lock(pathlib.Path({str(tmp_path)!r})); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(UserError, match=f"process {process.pid}"):
            files.lock(tmp_path)
        process.kill()
    files.lock(tmp_path).close()


def test_a_lock_names_only_its_last_owner(tmp_path: pathlib.Path) -> None:
    (tmp_path / files.LOCK_FILE).write_text("1" * 20)
    files.lock(tmp_path).close()
    assert (tmp_path / files.LOCK_FILE).read_text() == str(os.getpid())


def test_a_link_is_no_lock(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "target"
    target.write_text("content")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / files.LOCK_FILE).symlink_to(target)
    with pytest.raises(UserError, match="cannot be written"):
        a2c.train(a2c.Config(num_envs=2, run_dir=tmp_path / "run", **SHORT))
    assert target.read_text() == "content"


def test_reinforce_stops_though_episodes_do_not_end(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = reinforce.Config(
        env=Endless, episodes=2, total_timesteps=2_000, run_dir=tmp_path / "run"
    )
    counters = reinforce.train(config).checkpoint.counters
    assert (counters.steps, counters.episodes, counters.dropped) == (20_000, 0, 0)
    assert "max_episode_steps" in capsys.readouterr().out


def test_evaluation_cuts_episodes_that_do_not_end(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = a2c.train(a2c.Config(env=Endless, num_envs=4, run_dir=tmp_path / "run", **SHORT))
    assert agent.evaluate(2, max_steps=50).tolist() == [50, 50]
    assert "cut after 50 steps" in capsys.readouterr().err
    flags = ["--allow-import", "--max-steps", "20", "--episodes", "1"]
    monkeypatch.setattr(sys, "argv", ["evaluate", str(tmp_path / "run"), *flags])
    evaluate.main()
    assert "length: mean 20.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("program", "env", "given", "warned"),
    [
        (a2c, ("CartPole-v1", 100.0), {"normalize_rewards": False}, True),
        (a2c, ("CartPole-v1", 1e-4), {"normalize_rewards": False}, True),
        (a2c, ("CartPole-v1", 1.0), {"normalize_rewards": False}, False),
        (a2c, ("CartPole-v1", 100.0), {}, False),
        (a2c, ("CartPole-v1", 100.0), {"normalize_rewards": False, "reward_scale": 0.1}, False),
        (td3, ("Short", 1e4), {"learning_starts": 10**6}, True),
    ],
)
def test_a_reward_scale_that_prevents_learning_is_reported(
    program: Any,
    env: tuple[str, float],
    given: dict[str, Any],
    warned: bool,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = 20_000 if program is a2c else 1_500
    size = {"num_envs": 16, "vectorization": "sync"} if program is a2c else {"buffer_size": 10**5}
    source = functools.partial(Scaled, *env)
    run = {"run_dir": tmp_path / "run", "total_timesteps": steps}
    program.train(program.Config(env=source, **size, **run, **given))
    warning = r"standard deviation of discounted returns is (\S+), .* --reward-scale (\S+)"
    reported = re.findall(warning, capsys.readouterr().out)
    assert len(reported) == warned  # once
    for std, factor in reported:
        assert 0.6 < float(std) * float(factor) < 1.4  # both are rounded


def test_a_reward_scale_that_a_preset_was_tuned_for_is_not_reported(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size: dict[str, Any] = {"num_envs": 16, "vectorization": "sync", "total_timesteps": 24_000}
    given: dict[str, Any] = {"gamma": 1.0, "normalize_rewards": False}  # returns differ by hundreds
    run = tmp_path / "run"
    agent = a2c.train(a2c.Config(env="Pendulum-v1", run_dir=run, **size, **given))
    assert agent.checkpoint.counters.episodes >= logger.EPISODES_AVERAGED
    assert "standard deviation of discounted returns" not in capsys.readouterr().out


def test_discounted_std_of_equal_rewards() -> None:
    recent = logger.Recent((2.0, 6.0), (1, 3))  # rewards of 2
    sums = [2.0, 2 * (1 + 0.25 + 0.0625)]
    assert logger.discounted_std(recent, 0.25) == pytest.approx(np.std(sums))
    assert logger.discounted_std(recent, 1.0) == pytest.approx(2.0)


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_td3_learns_from_scaled_rewards(factor: float) -> None:
    config = td3.Config(env="Pendulum-v1", reward_scale=factor)
    codec, rewards = config.env_codec(make.inspect_env("Pendulum-v1")), np.full((1, 2), 8.0)
    if codec.rewards is not None:
        codec.rewards(rewards, np.zeros((1, 2)), np.ones((1, 2)))
    assert rewards.tolist() == [[8 * factor] * 2]


@pytest.mark.parametrize(("env", "expected"), [("CartPole-v1", 0.01), ("Pendulum-v1", 0.0)])
def test_entropy_bonus_is_for_discrete_actions_by_default(env: str, expected: float) -> None:
    source = functools.partial(Scaled, env, 1.0)
    config = a2c.Config(env=source)
    info = make.inspect_env(source)
    assert config.for_env(info).ent_coef == expected
    assert dataclasses.replace(config, ent_coef=0.5).for_env(info).ent_coef == 0.5


@pytest.mark.parametrize("env", ["CartPole-v1", "FrozenLake-v1", "tests.envs:Images-v0"])
def test_vectors_are_normalized_by_default(env: str, tmp_path: pathlib.Path) -> None:
    vectors = not env.endswith("Images-v0")
    size: dict[str, Any] = {"num_envs": 2, "n_steps": 5, "total_timesteps": 100, "quiet": True}
    agent = a2c.train(
        a2c.Config(env=functools.partial(gymnasium.make, env), run_dir=tmp_path / "run", **size)
        if env == "FrozenLake-v1"
        else a2c.Config(env=functools.partial(Scaled, env, 1.0), run_dir=tmp_path / "run", **size)
    )
    assert agent.checkpoint.settings["normalize_observations"] is vectors
    assert ("observations" in agent.checkpoint.normalization) == vectors
    assert (agent.model.standardize is not None) == vectors


def test_observations_of_an_own_network_are_not_normalized_by_default() -> None:
    env = functools.partial(Scaled, "CartPole-v1", 1.0)
    info, body = make.inspect_env(env), lambda space: torch.nn.Linear(*space.shape, 8)
    assert a2c.Config(env=env, network=body).for_env(info).normalize_observations is False
    assert a2c.Config(env=env).for_env(info).normalize_observations is True


@pytest.mark.parametrize("env", presets.ENVIRONMENTS)
def test_presets_keep_the_defaults_they_were_tuned_with(env: str) -> None:
    settings = presets.settings("a2c", env, {"device": "cpu"})
    assert settings["normalize_rewards"] == (env in NORMALIZED)
    assert settings["rescale_actions"] is False
    assert settings["normalize_observations"] == (env in NORMALIZED or env.startswith("ALE"))
    assert isinstance(settings["ent_coef"], float)


NORMALIZED = {
    *("MountainCar-v0", "Pendulum-v1", "MountainCarContinuous-v0", "HalfCheetah-v5"),
    *("Hopper-v5", "Walker2d-v5", "Ant-v5", "BipedalWalker-v3"),
}


def test_checkpoints_of_small_images_that_were_scaled_are_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = a2c.train(a2c.Config(num_envs=4, run_dir=tmp_path / "run", **SHORT))
    spaces_ = {
        "codes": spaces.Dict({"view": spaces.Box(0, 255, (7, 7, 3), np.uint8)}),
        "image": spaces.Box(0, 255, (36, 36, 3), np.uint8),
        "few": spaces.Box(0, 10, (7, 7, 3), np.uint8),
    }
    new = dataclasses.replace(agent.checkpoint, observation_space=spaces_["codes"])
    new.save(tmp_path / "new.pt")
    assert checkpoint.Checkpoint.load(tmp_path / "new.pt")
    monkeypatch.setattr(checkpoint, "FORMAT", "hogwild_rl-6")
    for name, space in spaces_.items():
        old = dataclasses.replace(agent.checkpoint, observation_space=space)
        old.save(tmp_path / f"{name}.pt")
    monkeypatch.undo()
    for name in ("image", "few"):
        assert checkpoint.Checkpoint.load(tmp_path / f"{name}.pt")
    with pytest.raises(UserError, match="has small images"):
        checkpoint.Checkpoint.load(tmp_path / "codes.pt")


def test_a_json_spec_is_accepted_on_the_command_line() -> None:
    text = make.to_setting(DRY)
    config = cli.parse(a3c.Config, "a3c", "", ["--env", text, "--workers", "1"])
    assert re.search('"is_slippery": false', str(config.env))


class Varying(envs.Clock):
    """Clock whose spaces differ from instance to instance."""

    count = 0

    def __init__(self, what: str) -> None:
        super().__init__(terminates=True)
        Varying.count += 1
        if what == "bounds":
            self.observation_space = spaces.Box(0, 1 + Varying.count, (11,), np.float32)
        if what == "size":
            self.observation_space = spaces.Box(0, 1, (11 + Varying.count,), np.float32)
        if what == "actions":
            self.action_space = spaces.Discrete(2 + Varying.count)

    def _observe(self) -> Any:
        return np.zeros(self.observation_space.shape or (), np.float32)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_bounds_may_differ_between_instances(vectorization: Any, tmp_path: pathlib.Path) -> None:
    env = functools.partial(Varying, "bounds")
    size = {"num_envs": 2, "vectorization": vectorization}
    agent = a2c.train(a2c.Config(env=env, **size, run_dir=tmp_path / "run", **SHORT))
    assert agent.evaluate(2).tolist() == [10, 10]


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_all_environments_have_the_bounds_of_the_first_instance(backend: Any) -> None:
    env = functools.partial(Varying, "bounds")
    info = make.inspect_env(env)
    like = (info.observation_space, info.action_space)
    made = vectorize.make_envs(env, vectorize.Backend(backend, ""), 2, cores=1, like=like)
    with contextlib.closing(made):
        assert (made.single_observation_space, made.single_action_space) == like


@pytest.mark.parametrize("what", ["size", "actions"])
def test_other_differences_between_instances_are_one_error(
    what: str, tmp_path: pathlib.Path
) -> None:
    config = a2c.Config(env=functools.partial(Varying, what), run_dir=tmp_path / "run")
    with pytest.raises(UserError, match="spaces differ between instances"):
        a2c.train(config)
    assert not (tmp_path / "run").exists()


class Described(envs.Clock):
    """Clock with its own spec and without metadata."""

    spec: Any = {"task": "clock"}  # noqa: RUF012
    metadata: Any = None

    def __init__(self) -> None:
        super().__init__(terminates=True)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_own_spec_and_missing_metadata(vectorization: Any, tmp_path: pathlib.Path) -> None:
    size = {"num_envs": 2, "vectorization": vectorization}
    agent = a2c.train(a2c.Config(env=Described, **size, run_dir=tmp_path / "run", **SHORT))
    assert agent.evaluate(1).tolist() == [10]


@pytest.mark.parametrize("env", [gymnasium.Env, envs.Chain()])
def test_evaluation_in_another_environment_is_one_error(env: Any, tmp_path: pathlib.Path) -> None:
    agent = a2c.train(a2c.Config(num_envs=2, run_dir=tmp_path / "run", **SHORT))
    with pytest.raises(UserError, match="this agent's observation_space is"):
        agent.evaluate(1, env=env)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "auto"),
        (["--normalize-observations"], True),
        (["--normalize-observations", "--lstm", "8"], True),
        (["--no-normalize-observations"], False),
        (["--normalize-observations", "False"], False),
        (["--normalize-observations", "auto"], "auto"),
    ],
    ids=str,
)
def test_switch_with_a_third_value(flags: list[str], expected: Any) -> None:
    config = cli.parse(a2c.Config, "a2c", "", ["--env", "FrozenLake-v1", *flags])
    assert config.normalize_observations == expected
    assert cli.parse(a2c.Config, "a2c", "", ["--no-compile", *flags]).compile is False
