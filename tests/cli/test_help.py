"""Tests of the console script, the help of every program, and the doctor."""

import importlib.metadata
import os
import pathlib
import subprocess
import sys

import pytest

from hogwild_rl import __main__ as console
from hogwild_rl.config import base, cli

PROGRAMS = ("a2c", "a3c", "ddpg", "ppo", "reinforce", "td3")
SCRIPT = str(pathlib.Path(sys.executable).with_name("hogwild-rl"))


def run(*command: str, columns: str = "80") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": columns}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=environment
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_fits_and_has_every_flag_in_a_group(program: str) -> None:
    result = run(sys.executable, "-m", f"hogwild_rl.{program}", "--help")
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stderr
    assert len(lines) <= 160
    assert max(map(len, lines)) <= 80
    titles = [line[:-1] for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles == [title for title in cli._GROUPS if title in titles]
    assert len(titles) >= 5
    module = __import__(f"hogwild_rl.{program}", fromlist=["Config"])
    for name in module.Config.__dataclass_fields__:
        flag = f"  --{name.replace('_', '-')}"
        assert sum(line.startswith((f"{flag} ", f"{flag},")) for line in lines) == 1, name


def test_help_does_not_depend_on_the_terminal() -> None:
    texts = {run(SCRIPT, "a3c", "--help", columns=columns).stdout for columns in ("30", "300")}
    assert len(texts) == 1


def test_groups_name_existing_settings() -> None:
    modules = [__import__(f"hogwild_rl.{name}", fromlist=["Config"]) for name in PROGRAMS]
    known = {name for module in modules for name in module.Config.__dataclass_fields__}
    assert {name for names in cli._GROUPS.values() for name in names.split()} <= known


def test_console_script_runs_its_commands() -> None:
    assert {"a3c", "evaluate", "doctor"} <= set(run(SCRIPT).stdout.split())
    assert run(SCRIPT, "evaluate", "--help").returncode == 0
    wrong = run(SCRIPT, "a4c")
    assert wrong.returncode == 2
    assert wrong.stderr == f"error: unknown command 'a4c': give {', '.join(console.COMMANDS)}\n"


def test_console_script_trains_in_worker_processes(tmp_path: pathlib.Path) -> None:
    folder = str(tmp_path / "run")
    flags = ["--workers", "2", "--total-timesteps", "2000", "--run-dir", folder]
    result = run(SCRIPT, "a3c", *flags)
    assert result.returncode == 0, result.stderr
    assert run(SCRIPT, "evaluate", folder, "--episodes", "1").returncode == 0


def test_doctor_prints_facts_and_marks_problems() -> None:
    result = run(SCRIPT, "doctor")
    lines = result.stdout.splitlines()
    assert f"torch {importlib.metadata.version('torch')}" in lines
    assert any(line.startswith(f"cores {base.usable_cores()} usable") for line in lines)
    assert result.returncode == any(line.startswith("!") for line in lines)
    limited = run("bash", "-c", f"ulimit -n 20; {sys.executable} -m hogwild_rl.doctor")
    assert limited.returncode == 1
    assert "! workers" in limited.stdout
    assert run(SCRIPT, "doctor", "--now").returncode == 2
