"""Tests of invalid input: a one-line error, exit code 2, and no existing file is changed."""

import json
import pathlib
import re
import subprocess
import sys

import pytest
import torch

from hogwild_rl import a3c
from hogwild_rl.config import cli
from hogwild_rl.hogwild import shared_memory
from tests import envs
from tests.cli.conftest import Command


@pytest.mark.parametrize(
    ("flags", "printed"),
    [
        (["--workers", "0"], "workers must be at least 1, got 0"),
        (["--workers", "-3"], "workers must be at least 1, got -3"),
        (["--workers", "many"], "--workers must be an integer, got 'many'"),
        (["--envs-per-worker", "0"], "envs_per_worker must be at least 1, got 0"),
        (["--gamma", "high"], "--gamma must be a number, got 'high'"),
        (["--n-steps", "0"], "n_steps must be at least 1, got 0"),
        (["--gamma", "1.5"], "gamma must lie between 0 and 1, got 1.5"),
        (["--gamma", "nan"], "gamma must lie between 0 and 1, got nan"),
        (["--gae-lambda", "-0.1"], "gae_lambda must lie between 0 and 1, got -0.1"),
        (["--total-timesteps", "0"], "total_timesteps must be at least 1, got 0"),
        (["--learning-rate", "0"], "learning_rate must be above 0, got 0"),
        (["--learning-rate", "inf"], "learning_rate must be above 0, got inf"),
        (["--rms-alpha", "1"], "rms_alpha must lie between 0 and 0.999999, got 1"),
        (["--seed", "-1"], "seed must lie between 0 and"),
        (["--seed", "9" * 30], "seed must lie between 0 and"),
        (["--ent-coef", "inf"], "ent_coef must lie between 0 and"),
        (["--env", ".mod:X"], "unknown environment '.mod:X'"),
        (["--env", "tests.envs:Chain-v0", "--stop-when-solved"], "no registered reward threshold"),
        (["--hidden", "64", "0"], "hidden must be at least 1, got 0"),
        (["--activation", "sin"], "sin"),
        (["--checkpoint-every", "0"], "checkpoint_every must be above 0, got 0"),
        (["--wrkers", "3"], "did you mean --workers?"),
        (["more"], "more"),
        (["--env", "CartPol-v1"], "did you mean CartPole-v1"),
        (["--env", "CartPole-v9"], "did you mean CartPole-v1"),
        (["--env", "a b"], "unknown environment 'a b'"),
        (["--env", "no_such_module:Id-v0"], "cannot import no_such_module"),
        (["--env", "tests.envs:Chian-v0"], "did you mean Chain-v0"),
        (["--env", "tests.envs:TextObservations-v0"], "observation space Text(1, 5"),
        (["--env", "tests.envs:SequenceActions-v0"], "action space Sequence(Discrete(2)"),
        (["--network", "resnet"], "resnet"),
        (["--network", "a3c"], "network a3c is for images: use auto or mlp"),
        (["--lstm", "-1"], "lstm must be at least 0, got -1"),
        (["--clip-rewards", "0"], "clip_rewards must be above 0, got 0"),
        (["--log-std-init", "3"], "log_std_init must lie between -10 and 2, got 3"),
        (["--resume", "no/such/run"], "run no/such/run does not exist"),
        (["--resume", "tests"], "tests holds no run"),
        (["--run-dir", "tests"], "run_dir tests is not empty"),
        (["--run-dir", "README.md/run"], "run folder README.md/run cannot be written"),
        (["--resume", "a", "--run-dir", "b"], "run a does not exist"),
    ],
)
def test_invalid_a3c_flags_are_rejected(refused: Command, flags: list[str], printed: str) -> None:
    assert printed in refused("a3c", *flags)


# Runs a3c as if package HIDDEN were not installed.
WITHOUT = """
import sys

HIDDEN = sys.argv.pop(1)

class Without:
    def __init__(self, finder):
        self._finder = finder

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] == HIDDEN
        return None if hidden else self._finder.find_spec(name, path, target)

sys.meta_path = [Without(finder) for finder in sys.meta_path]
from hogwild_rl import a3c
from hogwild_rl.config import cli

cli.run(a3c.main)
"""


@pytest.mark.parametrize(
    ("env", "hidden", "packages"),
    [
        ("HalfCheetah-v5", "mujoco", '"gymnasium[mujoco]"'),
        ("LunarLander-v3", "Box2D", '"gymnasium[box2d]"'),
        ("ALE/Pong-v5", "ale_py", "ale-py opencv-python-headless"),
        ("PongNoFrameskip-v4", "ale_py", "ale-py opencv-python-headless"),
    ],
)
def test_missing_package_error_has_the_command(env: str, hidden: str, packages: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT, hidden, "--env", env]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: environment {env} needs packages: ")
    assert line.endswith(f"-m pip install {packages}")


def test_unwritable_folder_is_rejected(refused: Command) -> None:
    assert "cannot be written" in refused("a3c", "--run-dir", "/proc/run")


def test_settings_unlike_the_resumed_run_are_rejected(refused: Command, run: pathlib.Path) -> None:
    resume = ["--resume", str(run), "--total-timesteps", "10000"]
    assert "env of run" in refused("a3c", *resume, "--env", "Acrobot-v1")
    assert "hidden of run" in refused("a3c", *resume, "--hidden", "32")
    assert "leave out run_dir" in refused("a3c", *resume, "--run-dir", "elsewhere")


def test_resume_of_a_finished_run_requires_more_steps(refused: Command, run: pathlib.Path) -> None:
    assert "give a larger total_timesteps" in refused("a3c", "--resume", str(run))


def test_run_of_another_algorithm_is_rejected(refused: Command, run: pathlib.Path) -> None:
    path = run / "settings.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "algorithm": "dqn"}))
    assert "is a run of dqn" in refused("a3c", "--resume", str(run))


@pytest.mark.parametrize(
    ("flags", "printed"),
    [
        (["--num-envs", "0"], "num_envs must be at least 1, got 0"),
        (["--env-groups", "0"], "env_groups must be at least 1, got 0"),
        (["--num-envs", "16", "--env-groups", "3"], "num_envs must be a multiple of env_groups"),
        (["--n-steps", "0"], "n_steps must be at least 1, got 0"),
        (["--workers", "2"], "--workers"),
        (["--env", "CartPol-v1"], "did you mean CartPole-v1"),
        (["--vectorization", "turbo"], "turbo"),
        (["--env", "Acrobot-v1", "--vectorization", "native"], "has no native vector environment"),
        (["--device", "cpu", "--compile", "True"], "compile needs a GPU"),
    ],
)
def test_invalid_a2c_flags_are_rejected(
    refused: Command, flags: list[str], printed: str, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "run"
    assert re.search(printed, refused("a2c", *flags, "--run-dir", str(folder)))
    assert not folder.exists()


@pytest.mark.parametrize(
    ("flags", "printed"),
    [
        (["--episodes", "0"], "episodes must be at least 1, got 0"),
        (["--episodes", "few"], "--episodes must be an integer, got 'few'"),
        (
            ["--baseline", "mean", "--episodes", "1"],
            "baseline mean is that of other episodes: give episodes 2 or more",
        ),
        (["--returns", "nonsense"], "nonsense"),
        (["--baseline", "median"], "median"),
        (["--gamma", "1.5"], "gamma must lie between 0 and 1, got 1.5"),
        (["--n-steps", "5"], "--n-steps"),
        (["--workers", "2"], "--workers"),
        (["--lstm", "8"], "--lstm"),
        (["--env", "CartPol-v1"], "did you mean CartPole-v1"),
        (["--env", "tests.envs:TextObservations-v0"], "observation space Text(1, 5"),
    ],
)
def test_invalid_reinforce_flags_are_rejected(
    refused: Command, flags: list[str], printed: str, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "run"
    assert printed in refused("reinforce", *flags, "--run-dir", str(folder))
    assert not folder.exists()


@pytest.mark.parametrize(
    ("flags", "printed"),
    [
        (["--envs-per-worker", "4"], "envs_per_worker needs workers"),
        (["--workers", "2", "--device", "cuda"], "workers share memory on the CPU"),
        (["--workers", "2", "--compile"], "workers share memory on the CPU"),
        (["--workers", "2", "--vectorization", "async"], "async is for workers 0"),
        (["--batch-size", "100"], "batch_size 100 does not divide the 1024 steps of a rollout"),
        (["--lstm", "8", "--batch-size", "64"], "into minibatches of whole environments"),
        (["--clip-range", "0"], "clip_range must be above 0, got 0"),
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--optimizer", "lamb"], "lamb"),
        (["--momentum", "1"], "momentum must lie between 0 and 0.999999, got 1"),
    ],
    ids=str,
)
def test_ppo_rejects_invalid_flags(
    flags: list[str], printed: str, refused: Command, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "run"
    error = refused("ppo", "--env", "Taxi-v3", *flags, "--run-dir", str(folder))
    assert printed in error
    assert not folder.exists()


@pytest.mark.parametrize("program", ["ddpg", "td3"])
@pytest.mark.parametrize(
    ("flags", "printed"),
    [
        (["--workers", "0"], "workers must be at least 1, got 0"),
        (["--tau", "2"], "tau must lie between 0 and 1, got 2"),
        (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--buffer-size", "100"], "buffer_size must be at least 256, got 100"),
        (["--buffer-size", "9" * 15], "give a smaller buffer_size"),
        (["--gradient-steps", "0"], "gradient_steps must be at least 1, got 0"),
        (["--noise", "pink"], "pink"),
        (["--noise-std", "nan"], "noise_std must lie between 0 and"),
        (["--ou-dt", "0"], "ou_dt must be above 0, got 0"),
        (["--env", "CartPole-v1"], "action space Discrete(2) is not supported"),
        (["--env", "tests.envs:TextObservations-v0"], "observation space Text(1, 5"),
        (["--network", "nature"], "network nature is for images"),
        (["--workers", "2", "--device", "cuda"], "device cuda is for one worker, got workers 2"),
        (["--n-steps", "5"], "--n-steps"),
    ],
)
def test_invalid_off_policy_flags_are_rejected(
    refused: Command, program: str, flags: list[str], printed: str, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "run"
    assert printed in refused(program, *flags, "--run-dir", str(folder))
    assert not folder.exists()


@pytest.mark.parametrize(
    ("flag", "printed"),
    [
        ("--critics", "critics must be at least 1, got 0"),
        ("--policy-delay", "policy_delay must be at least 1, got 0"),
    ],
)
def test_invalid_td3_flags_are_rejected(refused: Command, flag: str, printed: str) -> None:
    assert printed in refused("td3", flag, "0")


def test_reinforce_rejects_a_run_of_another_algorithm(refused: Command, run: pathlib.Path) -> None:
    assert "is a run of a3c" in refused("reinforce", "--resume", str(run))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_rejected(refused: Command) -> None:
    assert "device cuda needs 1 GPU" in refused("a2c", "--device", "cuda")


@pytest.mark.parametrize("size", [0, 1, 100, 2000, -1, -1000])
def test_truncated_checkpoint_is_rejected(refused: Command, run: pathlib.Path, size: int) -> None:
    path = run / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:size])
    printed = refused("a3c", "--resume", str(run), "--total-timesteps", "10000")
    assert "is not a checkpoint of hogwild_rl, or it is damaged" in printed
    assert "damaged" in refused("evaluate", str(run))


def test_file_without_a_checkpoint_is_rejected(refused: Command, tmp_path: pathlib.Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.pt")
    assert "is not a checkpoint of hogwild_rl" in refused("evaluate", str(tmp_path / "foreign.pt"))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    assert "is not a checkpoint of hogwild_rl" in refused("evaluate", str(tmp_path / "module.pt"))


def test_evaluate_rejects_invalid_arguments(
    refused: Command, trained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = str(trained)
    assert "no/such does not exist" in refused("evaluate", "no/such")
    assert "holds no checkpoint" in refused("evaluate", str(tmp_path))
    assert "episodes must be at least 1, got 0" in refused("evaluate", run, "--episodes", "0")
    assert "observation_space" in refused("evaluate", run, "--env", "Acrobot-v1")
    assert "unknown environment" in refused("evaluate", run, "--env", "CartPol-v1")
    both = ["--video", str(tmp_path / "new"), "--render", "human"]
    assert "mutually exclusive" in refused("evaluate", run, *both)
    assert "run" in refused("evaluate").lower()


def test_a_video_replaces_no_file(
    refused: Command, trained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    pytest.importorskip("moviepy")
    assert "exists: name a new one" in refused("evaluate", str(trained), "--video", str(tmp_path))


def test_plot_rejects_invalid_arguments(
    refused: Command, run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert "give the folder of at least one run" in refused("plot")
    assert "no/such does not exist" in refused("plot", str(run), "no/such")
    assert f"{tmp_path} holds no run" in refused("plot", str(tmp_path))
    assert "must end in .png, .pdf, .svg, got x.gif" in refused("plot", "a", "--output", "x.gif")
    assert "hours" in refused("plot", str(run), "--x", "hours")
    two = refused("plot", str(run), "--labels", "a", "b")
    assert "1 runs need one label each, got 2" in two
    for output in ("/proc/curves.png", "README.md/curves.png", str(tmp_path / "no" / "curves.png")):
        assert f"output {output} cannot be written" in refused("plot", str(run), "--output", output)


def test_plot_replaces_no_file(refused: Command, run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    output = tmp_path / "curves.png"
    output.write_text("mine")
    assert f"{output} exists: name a new one" in refused("plot", str(run), "--output", str(output))
    assert output.read_text() == "mine"


@pytest.mark.parametrize(
    ("program", "flags", "hidden"),
    [
        ("a3c", ["--tensorboard"], "tensorboard"),
        ("a2c", ["--vectorization", "envpool"], "envpool"),
        ("evaluate", ["{run}", "--video", "{new}"], "moviepy"),
        ("plot", ["{run}", "--output", "{new}.png"], "matplotlib"),
    ],
)
def test_a_missing_extra_prints_the_install_command(
    refused: Command,
    run: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    flags: list[str],
    hidden: str,
) -> None:
    monkeypatch.setitem(sys.modules, hidden, None)
    given = [flag.format(run=run, new=tmp_path / "new") for flag in flags]
    assert f"pip install {hidden}" in refused(program, *given)


@pytest.mark.parametrize(
    ("content", "printed"),
    [
        ("", "no finite return yet"),
        ("time_s,steps,return_mean\n1.0,100,nan\n2.0,200,inf\n", "no finite return yet"),
        ("time_s,steps\n1.0,100\n", "cannot be read ('return_mean')"),
        ("time_s,steps,return_mean\n1.0,many,3.0\n", "cannot be read (could not convert"),
    ],
)
def test_plot_rejects_a_log_without_returns(
    refused: Command, run: pathlib.Path, content: str, printed: str
) -> None:
    (run / "progress.csv").write_text(content)
    assert printed in refused("plot", str(run))
    (run / "progress.csv").unlink()
    assert "holds no progress.csv" in refused("plot", str(run))


def test_rejected_commands_change_no_files(refused: Command, run: pathlib.Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    refused("a3c", "--run-dir", str(run))
    refused("a3c", "--resume", str(run))
    refused("a3c", "--resume", str(run), "--env", "Acrobot-v1", "--total-timesteps", "90000")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_error_of_a_program_is_one_line_without_traceback(tmp_path: pathlib.Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "hogwild_rl.a3c", "--env", "CartPol-v1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: unknown environment 'CartPol-v1'")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_flags_override_presets_and_resumed_settings(run: pathlib.Path) -> None:
    preset = a3c.Config(env="CartPole-v1", workers=2)
    assert preset.envs_per_worker == 64
    assert a3c.Config(env="CartPole-v1", workers=16).envs_per_worker == 8
    assert a3c.Config(env="CartPole-v1", workers=2, envs_per_worker=1).envs_per_worker == 1
    parsed = cli.parse(a3c.Config, "a3c", "", ["--workers", "4", "--n-steps", "5"])
    assert (parsed.workers, parsed.envs_per_worker, parsed.n_steps) == (4, 32, 5)
    assert parsed.learning_rate == a3c.Config(env="CartPole-v1", workers=4).learning_rate
    generic = cli.parse(a3c.Config, "a3c", "", ["--env=tests.envs:Chain-v0", "--workers=4"])
    assert (generic.env, generic.envs_per_worker) == ("tests.envs:Chain-v0", 4)
    resumed = cli.parse(a3c.Config, "a3c", "", ["--resume", str(run), "--gamma", "0.5"])
    assert (resumed.workers, resumed.total_timesteps, resumed.gamma) == (1, 3000, 0.5)


def test_settings_can_be_converted_to_json(tmp_path: pathlib.Path) -> None:
    config = a3c.Config(env=envs.Chain, hidden=(8, 8))
    plain = json.loads(json.dumps(config.to_json()))
    assert plain["env"] == "tests.envs:Chain"
    assert plain["hidden"] == [8, 8]


@pytest.mark.skipif(not pathlib.Path("/dev/shm").is_dir(), reason="shared memory elsewhere")
def test_small_shared_memory_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """It contains the free bytes and a remedy; the exit code is 2."""
    with pytest.raises(SystemExit) as exit_info:
        cli.run(lambda: shared_memory.zeros(2**50))
    assert exit_info.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "bytes free" in lines[0]
    assert "--shm-size" in lines[0]
