"""Tests of training from programs of users: settings, infos, generators, folders and streams."""

import concurrent.futures
import dataclasses
import decimal
import enum
import functools
import io
import os
import pathlib
import random
import signal
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import hogwild_rl
from hogwild_rl import a2c, a3c, reinforce
from hogwild_rl.config import base, cli, validation
from hogwild_rl.errors import UserError
from tests import envs

SHORT: dict[str, Any] = {"total_timesteps": 1_000, "quiet": True}


class Env(str, enum.Enum):
    CARTPOLE = "CartPole-v1"


class Infos(envs.Clock):
    """Clock whose infos have values of changing types."""

    def __init__(self) -> None:
        super().__init__(terminates=True)

    def step(self, action: Any) -> envs.Step:
        *outcome, info = super().step(action)
        values = [None, 1, {"score": 1.0}, [1, 2], "text", np.zeros(3)]
        return (*outcome, {**info, "value": values[self.np_random.integers(len(values))]})  # type: ignore[return-value]


class Drawing(envs.Clock):
    """Clock that writes its first samples of all global generators to $SAMPLES."""

    def __init__(self, folder: str) -> None:
        super().__init__(terminates=True)
        self.folder = folder

    def reset(self, **options: Any) -> Any:
        samples = (random.random(), np.random.rand(), float(torch.rand(())))  # noqa: NPY002
        with pathlib.Path(self.folder, str(os.getpid())).open("a") as file:
            file.write(f"{samples}\n")
        return super().reset(**options)


class Noisy(envs.Clock):
    """Clock with rewards from NumPy's global generator."""

    def __init__(self) -> None:
        super().__init__(terminates=True)

    def step(self, action: Any) -> envs.Step:
        observation, _, *rest = super().step(action)
        return (observation, np.random.rand(), *rest)  # type: ignore[return-value]  # noqa: NPY002


class Moving(envs.Clock):
    """Clock that changes the working directory."""

    def __init__(self, folder: str) -> None:
        super().__init__(terminates=True)
        os.chdir(folder)


class Variable(envs.Clock):
    """Clock whose reward is an environment variable."""

    def __init__(self) -> None:
        super().__init__(terminates=True)

    def step(self, action: Any) -> envs.Step:
        observation, _, *rest = super().step(action)
        return (observation, float(os.environ["REWARD_OF_TEST"]), *rest)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.int32(3), 3),
        (np.float16(0.5), 0.5),
        (np.str_("a"), "a"),
        (np.bool_(True), True),
        (np.array(2.0), 2.0),
        (np.array([4, 5]), (4, 5)),
        (torch.tensor(1.5), 1.5),
        (decimal.Decimal("0.25"), 0.25),
        (Env.CARTPOLE, "CartPole-v1"),
        (pathlib.Path("a/b"), "a/b"),
        ([np.int64(1), 2], (1, 2)),
        (None, None),
    ],
)
def test_settings_become_plain_values(given: Any, expected: Any) -> None:
    found = validation.plain(given)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "given",
    [
        {"seed": np.int64(1), "learning_rate": np.float32(1e-3), "gamma": np.float64(0.9)},
        {"env": Env.CARTPOLE, "hidden": np.array([8, 8])},
        {"env": np.str_("CartPole-v1"), "stop_when_solved": np.bool_(False)},
    ],
)
def test_run_with_numpy_settings_can_be_loaded_and_resumed(
    given: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    run = tmp_path / "run"
    a2c.train(a2c.Config(**{"env": "CartPole-v1", "num_envs": 4, "run_dir": run, **SHORT, **given}))
    assert hogwild_rl.load(run).act(np.zeros(4, np.float32)) in (0, 1)
    a2c.train(a2c.Config(resume=run, total_timesteps=np.int64(2_000)))


def test_checkpoint_refuses_settings_that_are_not_plain(tmp_path: pathlib.Path) -> None:
    agent = a2c.train(a2c.Config(num_envs=4, run_dir=tmp_path / "run", **SHORT))
    changed = dataclasses.replace(agent.checkpoint, settings={"gamma": np.float64(0.9)})
    with pytest.raises(TypeError, match="setting gamma is"):
        changed.save(tmp_path / "file.pt")
    assert not (tmp_path / "file.pt").exists()


@pytest.mark.parametrize(
    ("program", "settings"),
    [
        (a2c, {"num_envs": 4, "vectorization": "sync"}),
        (a2c, {"num_envs": 2, "vectorization": "async"}),
        (a3c, {"workers": 1, "envs_per_worker": 4}),
        (reinforce, {"episodes": 4}),
    ],
)
def test_infos_with_values_of_changing_types_are_accepted(
    program: Any, settings: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    run = {"run_dir": tmp_path / "run", "total_timesteps": 200, "quiet": True}
    counters = program.train(program.Config(env=Infos, **settings, **run)).checkpoint.counters
    assert counters.steps >= 200
    assert not (tmp_path / "run/failures.log").exists()


@pytest.mark.parametrize(
    ("program", "settings"),
    [
        (a3c, {"workers": 3, "envs_per_worker": 1}),
        (a2c, {"num_envs": 3, "vectorization": "async"}),
    ],
)
def test_processes_have_different_global_generators(
    program: Any, settings: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    env = functools.partial(Drawing, str(samples))
    program.train(program.Config(env=env, **settings, run_dir=tmp_path / "run", **SHORT))
    own = str(os.getpid())
    first = [f.read_text().splitlines()[0] for f in samples.iterdir() if f.name != own]
    assert len(first) == len(set(first)) == 3


def test_global_generators_depend_on_the_seed_and_the_caller_s_are_restored(
    tmp_path: pathlib.Path,
) -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index, union-attr]  # noqa: NPY002
    sums = []
    for number, seed in enumerate((5, 5, 6)):
        run = {"run_dir": tmp_path / str(number), "seed": seed}
        config = a2c.Config(env=Noisy, num_envs=4, vectorization="sync", **run, **SHORT)
        parameters = a2c.train(config).checkpoint.parameters.values()
        sums.append(sum(float(p.double().sum()) for p in parameters))
    assert sums[0] == sums[1] != sums[2]
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index, union-attr]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_environment_variables_reach_workers_of_a_running_server(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("1", "2"):
        monkeypatch.setenv("REWARD_OF_TEST", value)
        run = {"run_dir": tmp_path / value, "workers": 1, "envs_per_worker": 1}
        agent = a3c.train(a3c.Config(env=Variable, **run, **SHORT))
        assert agent.checkpoint.counters.recent_returns[-1] == 10 * float(value)


@pytest.mark.parametrize("program", [a2c, a3c])
def test_environment_that_changes_the_directory_does_not_move_the_run(
    program: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    env = functools.partial(Moving, str(tmp_path / "elsewhere"))
    size = {"workers": 1} if program is a3c else {"num_envs": 2, "vectorization": "sync"}
    program.train(program.Config(env=env, run_dir="run", **size, **SHORT))
    assert (tmp_path / "run/checkpoint.pt").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert pathlib.Path.cwd() == tmp_path


@pytest.mark.parametrize("link", ["/no/such/folder", "file"])
def test_runs_that_is_no_folder_is_one_error(
    link: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "runs").symlink_to(link)
    with pytest.raises(UserError, match="cannot be written"):
        a2c.train(a2c.Config(num_envs=2, **SHORT))


class Writer:
    """Minimal stream, as of programs without a console."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("stream", [None, Writer()])
def test_training_needs_no_stderr(
    stream: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    config = a2c.Config(num_envs=2, run_dir=tmp_path / "run", total_timesteps=500)
    assert a2c.train(config).checkpoint.counters.steps >= 500


def test_lines_are_printed_on_terminals_of_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    cli.print_line("größer")
    stream.seek(0)
    assert stream.read() == "gr??er\n"


def test_help_runs_on_an_ascii_terminal_and_into_a_closed_pipe() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = f"{sys.executable} -m hogwild_rl.a3c --help"
    for line in (command, f"{command} | true"):
        result = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, check=True, env=environment
        )
        assert result.stderr == ""


@pytest.mark.parametrize(
    "env", [3, None, ["CartPole-v1"], b"CartPole-v1", gymnasium.make("CartPole-v1")]
)
def test_env_of_another_type_is_one_error(env: Any) -> None:
    with pytest.raises(UserError, match="env must be an id, a spec or a function"):
        a2c.Config(env=env)


def test_error_inside_a_function_that_makes_an_environment_is_reported() -> None:
    with pytest.raises(UserError, match=r"making it raised NameNotFound: .*test_real_programs"):
        a2c.train(a2c.Config(env=misspelt, num_envs=2, **SHORT))


def misspelt() -> Any:
    return gymnasium.make("CartPol-v1")


def test_run_dir_and_resume_expand_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert a2c.Config(run_dir="~/x").run_dir == "/home/somebody/x"
    with pytest.raises(UserError, match="run /home/somebody/x does not exist"):
        a2c.Config(resume="~/x")


def test_usable_cores_respect_the_cpu_quota(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_QUOTA", tmp_path / "cpu.max")
    unlimited = base.usable_cores()
    for text, cores in (
        ("max 100000", unlimited),
        ("50000 100000", 1),
        ("10000000 100000", unlimited),
    ):
        (tmp_path / "cpu.max").write_text(text)
        assert base.usable_cores() == cores


def test_ignored_ctrl_c_stays_ignored(tmp_path: pathlib.Path) -> None:
    """As a shell arranges it for background jobs."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        config = a2c.Config(num_envs=2, run_dir=tmp_path / "run", **SHORT)
        with a2c.Run("a2c", config).interruptible():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_disabled_gradients_and_another_default_dtype(tmp_path: pathlib.Path) -> None:
    with torch.no_grad():
        config = a2c.Config(num_envs=2, run_dir=tmp_path / "run", **SHORT)
        assert a2c.train(config).checkpoint.counters.updates > 0
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(UserError, match=r"default dtype is torch\.float64"):
            a2c.train(a2c.Config(num_envs=2, run_dir=tmp_path / "other", **SHORT))
    finally:
        torch.set_default_dtype(torch.float32)
    assert not (tmp_path / "other").exists()


def test_agent_is_saved_into_a_new_folder_and_not_onto_a_folder(tmp_path: pathlib.Path) -> None:
    agent = a2c.train(a2c.Config(num_envs=2, run_dir=tmp_path / "run", **SHORT))
    agent.save(tmp_path / "new/folder/agent.pt")
    assert hogwild_rl.load(tmp_path / "new/folder/agent.pt")
    with pytest.raises(UserError, match="agent cannot be saved"):
        agent.save(tmp_path)


@pytest.mark.parametrize("program", [a2c, a3c])
def test_runs_in_threads_of_one_process_train(program: Any, tmp_path: pathlib.Path) -> None:
    """Equal seeds give equal parameters in A2C."""

    def train(number: int) -> float:
        size = {"workers": 2, "envs_per_worker": 2} if program is a3c else {"num_envs": 4}
        run = {"run_dir": tmp_path / str(number), "seed": number % 2}
        config = program.Config(env="CartPole-v1", **size, **run, **SHORT)
        parameters = program.train(config).checkpoint.parameters.values()
        return sum(float(p.double().sum()) for p in parameters)

    variables = dict(os.environ)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        sums = list(pool.map(train, range(4)))
    assert dict(os.environ) == variables
    if program is a2c:
        assert sums[0] == sums[2] != sums[1] == sums[3]
