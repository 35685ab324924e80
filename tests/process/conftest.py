"""Starts whole runs as processes, and sees to it that none outlives its test."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

ROOT = pathlib.Path(__file__).parents[2]


class Run:
    """A training process in a session of its own, so that all its descendants can be found."""

    def __init__(
        self,
        folder: pathlib.Path,
        program: str,
        *flags: str,
        warnings: str = "error",
        **variables: str,
    ) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-W", warnings, "-m", f"hogwild_rl.{program}"),
                *("--run-dir", str(folder), *flags),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        )

    def alive(self) -> list[int]:
        """Processes of this session that have not ended."""
        pids = []
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":
                pids.append(int(stat.parent.name))
        return pids

    def until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s"
            time.sleep(0.01)

    def trains(self) -> bool:
        log = self.folder / "progress.csv"
        return log.exists() and len(log.read_text().splitlines()) > 1

    def stands_still(self) -> bool:
        """Three rows of the log in which no step was taken."""
        rows = (self.folder / "progress.csv").read_text().splitlines()[1:] if self.trains() else []
        return len({row.split(",")[1] for row in rows[-3:]}) == 1 and len(rows) >= 3

    def end(self) -> tuple[int, str, str]:
        """Exit code, output and errors, once nobody of the session is left."""
        out, err = self.process.communicate(timeout=60)
        self.until(lambda: not self.alive(), timeout_s=5)
        return self.process.returncode, out, err


@pytest.fixture
def start(tmp_path: pathlib.Path):
    """Starts runs, and sees to it that none outlives its test or leaves anything in /dev/shm."""
    shm = set(pathlib.Path("/dev/shm").iterdir())
    runs: list[Run] = []

    def start(program: str, *flags: str, **options: str) -> Run:
        runs.append(Run(tmp_path / f"run{len(runs)}", program, *flags, **options))
        return runs[-1]

    yield start
    for run in runs:
        for pid in run.alive():
            os.kill(pid, signal.SIGKILL)
        run.process.communicate()
    assert not [path for path in set(pathlib.Path("/dev/shm").iterdir()) - shm if not in_use(path)]


def in_use(path: pathlib.Path) -> bool:
    """True if a process maps the file: it is then another program's, as no run is alive."""
    for maps in pathlib.Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if str(path) in maps.read_text():
                return True
    return False
