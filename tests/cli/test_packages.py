"""Tests of the wheel and the source distribution: contents, metadata, and the console script."""

import os
import pathlib
import sys
import sysconfig
import tarfile
import venv

import pytest

from tests import commands

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

ROOT = pathlib.Path(__file__).parents[2]


def run(*command: str, folder: pathlib.Path) -> str:
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return commands.execute(command, folder, outside)


def test_packages_are_complete_and_their_commands_run(tmp_path: pathlib.Path) -> None:
    dist = str(tmp_path / "dist")
    run(
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        dist,
        str(ROOT),
        folder=tmp_path,
    )
    (wheel,), (source,) = tmp_path.glob("dist/*.whl"), tmp_path.glob("dist/*.tar.gz")
    run(
        sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(source), folder=tmp_path
    )
    with tarfile.open(source) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"tests/envs.py", "constraints.txt", "CHANGELOG.md", "LICENSE", "bin/test"} <= names
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv/bin/python")
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", str(wheel), folder=tmp_path)
    packages = run(python, "-c", "import site; print(site.getsitepackages()[0])", folder=tmp_path)
    dependencies = sysconfig.get_path("purelib")  # without the editable install of this project
    (pathlib.Path(packages.strip()) / "dependencies.pth").write_text(dependencies)
    script = str(tmp_path / "venv/bin/hogwild-rl")
    place = run(python, "-c", "import hogwild_rl; print(hogwild_rl.__file__)", folder=tmp_path)
    assert place.startswith(packages.strip())
    assert "fault tolerance:" in run(script, "a3c", "--help", folder=tmp_path)
    flags = ("--workers", "2", "--total-timesteps", "2000", "--run-dir", "run")
    run(script, "a3c", *flags, folder=tmp_path)
    run(script, "evaluate", "run", "--episodes", "1", folder=tmp_path)
    run(python, "-m", "hogwild_rl.a3c", "--help", folder=tmp_path)
