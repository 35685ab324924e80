"""Tests that all commands and programs in the README run unchanged."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.long

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def execute(command: list[str], folder: pathlib.Path) -> str:
    result = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("program", blocks("python"))
def test_readme_programs_run(program: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "program.py").write_text(program)
    execute([sys.executable, "-W", "error", "program.py"], tmp_path)


def test_readme_commands_run_in_order(tmp_path: pathlib.Path) -> None:
    """All `python -m hogwild_rl` commands, in the order of the README."""
    commands = [
        line.split("#")[0].strip()
        for line in "\n".join(blocks("bash")).splitlines()
        if line.startswith("python -m hogwild_rl.")
    ]
    assert any("evaluate" in command for command in commands)
    assert any("plot" in command for command in commands)
    assert any("--resume" in command for command in commands)
    for command in commands:
        execute(command.split(), tmp_path)


def test_flags_in_the_readme_exist(tmp_path: pathlib.Path) -> None:
    known = "--standalone --nproc-per-node"  # torchrun's
    for program in ("a2c", "a3c", "ddpg", "evaluate", "plot", "reinforce", "td3"):
        known += execute([sys.executable, "-m", f"hogwild_rl.{program}", "--help"], tmp_path)
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)):
        assert flag in known, flag


def test_evaluate_writes_one_video_per_episode(tmp_path: pathlib.Path) -> None:
    module = [sys.executable, "-W", "error", "-m"]
    run = ["--run-dir", "run", "--workers", "1", "--total-timesteps", "2000"]
    execute([*module, "hogwild_rl.a3c", *run], tmp_path)
    play = ["run", "--video", "videos", "--episodes", "2"]
    execute([sys.executable, "-m", "hogwild_rl.evaluate", *play], tmp_path)
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 2
