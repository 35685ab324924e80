"""Tests of the fork server: environments with processes, long folder names, and its own end."""

import contextlib
import functools
import multiprocessing
import os
import pathlib
import re
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing import forkserver as mp_forkserver
from typing import Any

import numpy as np
import pytest

from hogwild_rl import a2c, a3c
from hogwild_rl.envs.env_process import EnvironmentFailedError
from hogwild_rl.envs.subproc import ProcessVectorEnv
from hogwild_rl.hogwild import child, forkserver, processes
from hogwild_rl.hogwild.counters import Counters
from hogwild_rl.hogwild.supervisor import Restarts, Supervisor
from tests import envs


class Simulator(envs.Clock):
    """Clock with a process that never exits; its id is in a folder, renamed once it is closed."""

    def __init__(self, folder: pathlib.Path, method: str = "fork") -> None:
        super().__init__(terminates=True)
        self.process = multiprocessing.get_context(method).Process(target=signal.pause, daemon=True)
        self.process.start()
        self.file = folder / str(self.process.pid)
        self.file.touch()

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.file.rename(self.file.with_suffix(".closed"))


def running(folder: pathlib.Path) -> list[str]:
    """Ids of the simulators that have not exited."""
    return [each.name for each in folder.iterdir() if pathlib.Path("/proc", each.stem).exists()]


def not_closed(folder: pathlib.Path) -> list[str]:
    """Ids of the simulators whose environment has not closed them; multiprocessing may have."""
    return [each.name for each in folder.iterdir() if not each.suffix]


def test_environment_processes_close_their_environments(tmp_path: pathlib.Path) -> None:
    processes.preload("hogwild_rl.envs.env_process")
    venv = ProcessVectorEnv(functools.partial(Simulator, tmp_path), 2)
    try:
        venv.reset(seed=0)
        assert len(running(tmp_path)) == 2  # that of the instance made for its spaces is closed
    finally:
        venv.close()
    assert running(tmp_path) == not_closed(tmp_path) == []


class SlowToClose(envs.Clock):
    def close(self) -> None:
        time.sleep(3600)


def test_environments_that_do_not_close_are_killed_together() -> None:
    processes.preload("hogwild_rl.envs.env_process")
    venv = ProcessVectorEnv(envs.terminated_clock, 4)
    venv._make = functools.partial(SlowToClose, True)
    venv.reset(seed=0)
    began_s = time.monotonic()
    venv.close()
    assert 0.9 < time.monotonic() - began_s < 3
    assert not [each for each in multiprocessing.active_children() if "environment" in each.name]


@pytest.mark.long
@pytest.mark.parametrize("settings", [{"workers": 2}, {"num_envs": 2}])
def test_environments_with_processes_are_trained(
    settings: dict[str, int], tmp_path: pathlib.Path
) -> None:
    algorithm: Any = a3c if "workers" in settings else a2c
    if algorithm is a2c:
        settings["vectorization"] = "async"  # type: ignore[assignment]
    folder = tmp_path / "simulators"
    folder.mkdir()
    env = functools.partial(Simulator, folder)
    short = {"total_timesteps": 500, "quiet": True, "run_dir": str(tmp_path / "run")}
    agent = algorithm.train(algorithm.Config(env=env, **settings, **short))
    assert agent.checkpoint.counters.steps >= 500
    assert len(list(folder.iterdir())) >= 3
    assert running(folder) == not_closed(folder) == []


def test_long_name_of_the_temporary_folder_is_avoided_and_nothing_remains(start) -> None:
    with tempfile.TemporaryDirectory(prefix="x" * 100) as temporary:
        run = start("a3c", "--workers", "2", "--total-timesteps", "1000000000", TMPDIR=temporary)
        run.wait_until(run.training, 60)
        environments = (pathlib.Path(f"/proc/{pid}/environ").read_text() for pid in run.alive())
        found = re.search(f"{forkserver.VARIABLE}=\\d+ (\\S+?)\0", "".join(environments))
        assert found is not None
        assert list(pathlib.Path(found[1]).glob("listener-*"))
        run.process.kill()
        run.wait_until(lambda: not run.alive(), timeout_s=30)
        assert not pathlib.Path(found[1]).exists()
        assert list(pathlib.Path(temporary).iterdir()) == []


def kill_server() -> int:
    server = child.server_id()
    os.kill(server, signal.SIGKILL)
    return server


def wait_for_exit(pids: list[int]) -> None:
    deadline_s = time.monotonic() + 30
    for pid in pids:
        with contextlib.suppress(OSError):
            stat = pathlib.Path(f"/proc/{pid}/stat")
            while stat.read_text().rpartition(")")[2].split()[0] != "Z":
                assert time.monotonic() < deadline_s, f"process {pid} is still running"


def count_until(worker: processes.Worker, counters: Counters, goal: int) -> None:
    counts = counters.writer(worker.index)
    while not worker.should_stop() and counters.total("steps") < goal:
        counts.add_rollout(1, [])
        counts.lap("env")
        time.sleep(1e-4)


def test_workers_are_restarted_after_the_end_of_their_server() -> None:
    counters, failures = Counters(2), []
    with processes.Workers(count_until, (counters, 10**9), 2, seed=0) as workers:
        supervisor = Supervisor(workers, counters, max_restarts=1, step_timeout_s=60)
        deadline_s = time.monotonic() + 60

        def watch(until: Callable[[], bool]) -> None:
            while not until():
                assert time.monotonic() < deadline_s
                assert not supervisor.give_up_reason
                failures.extend(supervisor.watch(0.05))

        watch(lambda: bool(counters.rows["steps"].all()))
        pids = [each.process.pid for each in workers._children.values()]
        os.kill(pids[1], signal.SIGSTOP)  # it cannot exit by itself
        server = kill_server()
        watch(lambda: supervisor.replaced == 2)
        steps = counters.rows["steps"].copy()
        watch(lambda: bool((counters.rows["steps"] > steps).all()))
        wait_for_exit(pids)
        (failure,) = failures
        assert str(failure) == "the fork server was killed by SIGKILL"
        assert failure.server == server != child.server_id()
        kill_server()
        while not supervisor.give_up_reason:
            supervisor.watch(0.05)
    assert "the fork server was restarted 1 times within an hour" in supervisor.give_up_reason


def test_server_killed_while_it_starts_a_worker_is_reported_and_restarted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counters, read_signed = Counters(1), mp_forkserver.read_signed

    def killed(sentinel: int) -> int:
        monkeypatch.setattr(mp_forkserver, "read_signed", read_signed)
        kill_server()
        return read_signed(sentinel)

    with processes.Workers(count_until, (counters, 1000), 1, seed=0) as workers:
        supervisor = Supervisor(workers, counters, max_restarts=100, step_timeout_s=60)
        workers._children.pop(0).close()
        os.kill(child.server_id(), signal.SIGSTOP)  # it sends no id of a process
        monkeypatch.setattr(mp_forkserver, "read_signed", killed)
        workers.replace(0)
        assert workers.running == [0]
        failures = supervisor.watch(0.05)
        while supervisor.running:
            failures += supervisor.watch(0.05)
    assert [str(failure) for failure in failures] == ["the fork server was killed by SIGKILL"]
    assert counters.total("steps") >= 1000


def test_server_may_end_after_the_start_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It closes its files, which the start notices, before it has exited."""
    processes.preload(__name__)
    server, waitid = child.server_id(), os.waitid

    def not_yet(*_: int) -> None:
        monkeypatch.setattr(os, "waitid", waitid)
        kill_server()
        waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(os, "waitid", not_yet)
    failure = child.start_failure("worker", 0, EOFError())
    assert (failure.server, failure.exit_code) == (server, -signal.SIGKILL)


def test_exit_code_255_is_no_end_of_the_server() -> None:
    processes.preload(__name__)
    process = child.Child("worker", 3, os._exit, 255)
    process.process.join(60)
    failure = process.failure()
    assert (failure.server, str(failure)) == (0, "worker 3 failed with exit code 255")
    assert child.server_exit_code(child.server_id()) is None


def test_environments_are_restarted_after_the_end_of_their_server() -> None:
    processes.preload("hogwild_rl.envs.env_process")
    failures: list[EnvironmentFailedError] = []

    def failed(failure: EnvironmentFailedError) -> float:
        failures.append(failure)
        return 0.0

    with contextlib.closing(ProcessVectorEnv(envs.terminated_clock, 3, failed=failed)) as venv:
        venv.reset(seed=0)
        pids = [each._child.process.pid for each in venv._processes.values()]
        os.kill(pids[2], signal.SIGSTOP)
        server, actions = kill_server(), np.zeros(3, dtype=np.int64)
        while child.server_exit_code(server) is None:
            pass
        venv.step(actions)
        deadline_s = time.monotonic() + 60
        while venv.lost.any():
            assert time.monotonic() < deadline_s
            venv.step(actions)
        assert len(venv._processes) == 3
    assert {(each.failure.index, each.failure.server) for each in failures} == {
        (index, server) for index in range(3)
    }
    assert len(failures) == 3
    wait_for_exit(pids)


def test_end_of_the_server_counts_once_and_as_no_failure_of_its_processes() -> None:
    restarts = Restarts(range(2), max_restarts=3)
    for server in (5, 6, 7, 8):
        assert not restarts.give_up_reason
        first = server % 2
        for index in (first, 1 - first):
            failure = child.Failure(index, -9, "", server=server)
            assert restarts.is_recorded(failure) == (index != first)
            assert restarts.pause_s(failure, progressed=False) == 0
    assert "the fork server was restarted 3 times within an hour" in restarts.give_up_reason


def server_of(run: Any) -> list[int]:
    """Id of the running fork server of a run, if there is one."""
    found = []
    for pid in run.alive():
        with contextlib.suppress(OSError):
            folder = pathlib.Path("/proc", str(pid))
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if b"forkserver" in (folder / "cmdline").read_bytes() and parent == run.process.pid:
                found.append(pid)
    return found


def log_rows(run: Any) -> int:
    return len((run.folder / "progress.csv").read_text().splitlines())


@pytest.mark.long
@pytest.mark.parametrize(
    "flags", [("a3c", "--workers", "2"), ("a2c", "--num-envs", "2", "--vectorization", "async")]
)
def test_run_survives_ten_kills_of_the_server(start, flags: tuple[str, ...]) -> None:
    run = start(*flags, "--total-timesteps", "1000000000")
    run.wait_until(run.training, 60)
    killed: set[int] = set()
    for _ in range(10):
        run.wait_until(lambda: bool(set(server_of(run)) - killed), 60)
        (server,) = set(server_of(run)) - killed
        os.kill(server, signal.SIGKILL)
        killed.add(server)
        time.sleep(2)  # the interval of the kills
    rows = log_rows(run)
    run.wait_until(lambda: log_rows(run) > rows + 3 and not run.is_stalled(), 60)
    os.killpg(run.process.pid, signal.SIGINT)
    code, _, err = run.wait()  # all processes have exited
    assert code == 130, err
    log = [line.split(" ", 2)[2] for line in (run.folder / "failures.log").read_text().splitlines()]
    assert log == ["the fork server was killed by SIGKILL"] * 10
