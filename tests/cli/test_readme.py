"""Tests that all commands and programs in README.md and docs/ run unchanged."""

import os
import pathlib
import re
import sys

import pytest

from tests import commands

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page.name: page.read_text() for page in PAGES}
COMMANDS = ("a2c", "a3c", "ddpg", "evaluate", "plot", "ppo", "reinforce", "td3")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT[page], re.DOTALL)


def execute(command: list[str], folder: pathlib.Path) -> str:
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    return commands.execute(command, folder, {**os.environ, "PATH": path})


@pytest.mark.parametrize(
    ("page", "program"), [(page, code) for page in TEXT for code in blocks(page, "python")]
)
def test_programs_run(page: str, program: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "program.py").write_text(program)
    execute([sys.executable, "-W", "error", "program.py"], tmp_path)


@pytest.mark.parametrize("page", [page for page in TEXT if blocks(page, "bash")])
def test_commands_run_in_order(page: str, tmp_path: pathlib.Path) -> None:
    """Runs all commands of a page but those that install packages or test the repository."""
    lines = "\n".join(blocks(page, "bash")).splitlines()
    commands = [line.split("#")[0].split() for line in lines]
    skipped = ("pip", "bin/test", "bin/a3c")
    commands = [command for command in commands if command and command[0] not in skipped]
    assert commands or page == "index.md"
    for command in commands:
        command[0] = str(pathlib.Path(sys.executable).with_name(command[0]))
        execute(command, tmp_path)


def test_bin_scripts_run(tmp_path: pathlib.Path) -> None:
    """Runs bin/a3c and bin/evaluate of the README; bin/test runs this test."""
    run = str(tmp_path / "run")
    execute([str(ROOT / "bin/a3c"), "--total-timesteps", "2000", "--run-dir", run], tmp_path)
    execute([str(ROOT / "bin/evaluate"), run, "--episodes", "1"], tmp_path)


def test_flags_in_the_documents_exist(tmp_path: pathlib.Path) -> None:
    known = {"--standalone", "--nproc-per-node", "--index-url", "--shm-size", "--help"}
    for program in COMMANDS:
        text = execute([sys.executable, "-m", f"hogwild_rl.{program}", "--help"], tmp_path)
        known |= set(re.findall(r"--[a-z][a-z-]+", text))
    for page, text in TEXT.items():
        flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
        assert flags <= known, (page, flags - known)


def test_evaluate_writes_one_video_per_episode(tmp_path: pathlib.Path) -> None:
    module = [sys.executable, "-W", "error", "-m"]
    run = ["--run-dir", "run", "--workers", "1", "--total-timesteps", "2000"]
    execute([*module, "hogwild_rl.a3c", *run], tmp_path)
    play = ["run", "--video", "videos", "--episodes", "2"]
    execute([sys.executable, "-m", "hogwild_rl.evaluate", *play], tmp_path)
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 2
