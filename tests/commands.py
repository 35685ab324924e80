"""Commands of users, executed as processes."""

import pathlib
import subprocess
from collections.abc import Mapping, Sequence


def execute(command: Sequence[str], folder: pathlib.Path, environment: Mapping[str, str]) -> str:
    """Runs a command that must succeed in a folder; returns its stdout."""
    result = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env=environment,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
