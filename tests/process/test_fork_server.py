"""Tests of the fork server: environments with processes, long folder names, and its own end."""

import functools
import multiprocessing
import pathlib
import re
import signal
import tempfile
import time
from typing import Any

import pytest

from hogwild_rl import a2c, a3c
from hogwild_rl.envs.subproc import ProcessVectorEnv
from hogwild_rl.hogwild import forkserver, processes
from tests import envs


class Simulator(envs.Clock):
    """Clock with a process of its own, which writes its id to a folder and never exits."""

    def __init__(self, folder: pathlib.Path, method: str = "fork") -> None:
        super().__init__(terminates=True)
        self.process = multiprocessing.get_context(method).Process(target=signal.pause, daemon=True)
        self.process.start()
        (folder / str(self.process.pid)).touch()

    def close(self) -> None:
        self.process.kill()
        self.process.join()


def running(folder: pathlib.Path) -> list[str]:
    """Ids of the simulators that have not exited."""
    return [each.name for each in folder.iterdir() if pathlib.Path("/proc", each.name).exists()]


def test_environment_processes_close_their_environments(tmp_path: pathlib.Path) -> None:
    processes.preload("hogwild_rl.envs.env_process")
    venv = ProcessVectorEnv(functools.partial(Simulator, tmp_path), 2)
    try:
        venv.reset(seed=0)
        assert len(running(tmp_path)) == 2  # that of the instance made for its spaces is closed
    finally:
        venv.close()
    assert running(tmp_path) == []


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
    assert running(folder) == []


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
