"""Fixture that starts training runs as processes and kills them after the test."""

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
    """Training process in its own session, which identifies all its descendants."""

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
        """Ids of the processes of this session that have not exited."""
        pids = []
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":
                pids.append(int(stat.parent.name))
        return pids

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"condition not met within {timeout_s} s"
            time.sleep(0.01)

    def kill_youngest(self) -> None:
        """Kills the youngest process, a worker or environment, and waits for its replacement."""
        before = set(self.alive())
        victim = max(before)
        os.kill(victim, signal.SIGKILL)
        self.wait_until(lambda: len(set(self.alive()) - {victim}) == len(before), timeout_s=10)

    def training(self) -> bool:
        log = self.folder / "progress.csv"
        return log.exists() and len(log.read_text().splitlines()) > 1

    def is_stalled(self) -> bool:
        """True if the last three log rows have equal step counts."""
        log = self.folder / "progress.csv"
        rows = log.read_text().splitlines()[1:] if self.training() else []
        return len({row.split(",")[1] for row in rows[-3:]}) == 1 and len(rows) >= 3

    def wait(self) -> tuple[int, str, str]:
        """Exit code, stdout and stderr, after all processes of the session have exited."""
        out, err = self.process.communicate(timeout=60)
        self.wait_until(lambda: not self.alive(), timeout_s=5)
        return self.process.returncode, out, err


@pytest.fixture
def start(tmp_path: pathlib.Path):
    """Starts runs; kills them after the test and checks that /dev/shm has no new files."""
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
    """True if a process maps the file; it is another program's, as all runs have exited."""
    for maps in pathlib.Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if str(path) in maps.read_text():
                return True
    return False
