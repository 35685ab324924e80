"""Fixtures: programs that must reject their input, and a short run to be damaged."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hogwild_rl import a2c, a3c, ddpg, evaluate, plot, ppo, reinforce, td3
from hogwild_rl.config import cli

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = {
    "a2c": a2c.main,
    "a3c": a3c.main,
    "ddpg": ddpg.main,
    "evaluate": evaluate.main,
    "plot": plot.main,
    "ppo": ppo.main,
    "reinforce": reinforce.main,
    "td3": td3.main,
}

Command = Callable[..., str]


@pytest.fixture
def error_line(capsys: pytest.CaptureFixture[str]) -> Callable[[Callable[[], Any]], str]:
    """Runs a main function that must reject its input; returns the one-line error."""

    def error_line(main: Callable[[], Any]) -> str:
        with pytest.raises(SystemExit) as exit_info:
            cli.run(main)
        captured = capsys.readouterr()
        assert exit_info.value.code == 2, captured
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        assert captured.err.startswith("error: ")
        return captured.err

    return error_line


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, error_line: Callable[[Callable[[], Any]], str]
) -> Command:
    """Runs a program that must reject its flags; returns the one-line error."""

    def refused(program: str, *flags: str) -> str:
        monkeypatch.setattr(sys, "argv", [program, *flags])
        return error_line(PROGRAMS[program])

    return refused


@pytest.fixture
def public() -> Iterator[pathlib.Path]:
    """Folder that other users can read, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder).chmod(0o755)
        yield pathlib.Path(folder)


# Root can read every file and has no limits. After its imports, the program therefore changes to a
# user id without other processes.
_UNPRIVILEGED = """
import os, resource, sys
import multiprocessing.forkserver, multiprocessing.popen_forkserver
from hogwild_rl import a2c, a3c, evaluate, plot, td3
from hogwild_rl.config import cli, resources
from hogwild_rl.hogwild import processes

user, program, name, left, *flags = sys.argv[1:]
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid(int(user), int(user), int(user))
    os.setresuid(int(user), int(user), int(user))
if name:
    total = int(left) + (resources.count_tasks(os.getuid()) if name == "RLIMIT_NPROC" else 0)
    resource.setrlimit(getattr(resource, name), (total, total))
if name == "RLIMIT_NPROC" and not int(left):  # as `python -m hogwild_rl.a3c` does
    processes.preload("hogwild_rl.runs.run")
sys.argv = [program, *flags]
cli.run(vars()[program].main)
"""


@pytest.fixture
def refused_unprivileged(tmp_path: pathlib.Path) -> Command:
    """Like `refused`, in an unprivileged process with `left` units of resource `name`."""

    def refused_unprivileged(program: str, *flags: str, name: str = "", left: int = 0) -> str:
        result = subprocess.run(
            [sys.executable, "-c", _UNPRIVILEGED, "64321", program, name, str(left), *flags],
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd="/",
        )
        assert result.returncode == 2, result.stderr
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.startswith("error: ")
        return result.stderr

    return refused_unprivileged


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Folder of a short run on CartPole-v1."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    a3c.train(a3c.Config(workers=1, total_timesteps=3000, run_dir=str(folder)))
    return folder


@pytest.fixture
def run(trained: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """Copy of that run, to be damaged."""
    return pathlib.Path(shutil.copytree(trained, tmp_path / "run"))
