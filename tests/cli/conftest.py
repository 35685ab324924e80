"""Programs that must refuse what they are given, and a short run to be damaged."""

import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import pytest

from hogwild_rl import a2c, a3c, ddpg, evaluate, plot, reinforce, td3
from hogwild_rl.runs import cli

PROGRAMS = {
    "a2c": a2c.main,
    "a3c": a3c.main,
    "ddpg": ddpg.main,
    "evaluate": evaluate.main,
    "plot": plot.main,
    "reinforce": reinforce.main,
    "td3": td3.main,
}

Command = Callable[..., str]


@pytest.fixture
def one_line(capsys: pytest.CaptureFixture[str]) -> Callable[[Callable[[], Any]], str]:
    """Runs what must be refused as a program's main function, and returns the one line it says."""

    def one_line(main: Callable[[], Any]) -> str:
        with pytest.raises(SystemExit) as ending:
            cli.run(main)
        captured = capsys.readouterr()
        assert ending.value.code == 2, captured
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        assert captured.err.startswith("error: ")
        return captured.err

    return one_line


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, one_line: Callable[[Callable[[], Any]], str]
) -> Command:
    """Runs a program that must refuse its flags, and returns the one line it says."""

    def refused(program: str, *flags: str) -> str:
        monkeypatch.setattr(sys, "argv", [program, *flags])
        return one_line(PROGRAMS[program])

    return refused


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of a short run on CartPole-v1."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    a3c.train(a3c.Config(workers=1, total_timesteps=3000, run_dir=str(folder)))
    return folder


@pytest.fixture
def run(trained: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of that run, to be damaged."""
    return pathlib.Path(shutil.copytree(trained, tmp_path / "run"))
