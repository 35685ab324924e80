"""Tests of resource limits: reported with a remedy before a worker starts."""

import errno
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest

from hogwild_rl import a3c
from hogwild_rl.config import cli, resources
from hogwild_rl.errors import UserError
from tests import envs
from tests.cli.conftest import ROOT, Command

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits are counted on Linux only")


@linux
@pytest.mark.parametrize(
    ("program", "flags", "files", "remedy"),
    [
        ("a3c", ["--workers", "64"], 224, "or give fewer workers"),
        ("td3", ["--workers", "64"], 224, "or give fewer workers"),
        (
            "a2c",
            ["--num-envs", "48", "--vectorization", "async"],
            224,
            "or give a smaller num_envs",
        ),
    ],
)
def test_insufficient_open_files_are_reported(
    program: str,
    flags: list[str],
    files: int,
    remedy: str,
    refused_unprivileged: Command,
    public: pathlib.Path,
) -> None:
    """The process has a real limit, of which about 100 files are left."""
    public.chmod(0o777)
    flags = [*flags, "--run-dir", str(public / "run")]
    error = refused_unprivileged(program, *flags, name="RLIMIT_NOFILE", left=128)
    assert re.search(rf"\d .*need {files} open files, 1\d\d are left of the 128 that", error), error
    assert "ulimit -n 256 as root, " + remedy in error
    assert not (public / "run").exists()


@linux
@pytest.mark.parametrize("left", [0, 50])
def test_insufficient_processes_are_reported(
    left: int, refused_unprivileged: Command, public: pathlib.Path
) -> None:
    """The process has a real limit and an unprivileged user, since root has no limit."""
    public.chmod(0o777)
    flags = ("--workers", "64", "--run-dir", str(public / "run"))
    error = refused_unprivileged("a3c", *flags, name="RLIMIT_NPROC", left=left)
    assert re.search(r"workers 64 need 200 processes and threads, \d+ are left of the \d+", error)
    assert re.search(r"that user \d+ may have: ulimit -u \d+ as root, or give fewer", error)
    assert not (public / "run").exists()


@linux
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user with no other process")
def test_reported_number_of_available_processes_can_be_started() -> None:
    """The kernel's limit agrees with the computed number."""
    program = """
import os, resource, subprocess
from hogwild_rl.config import resources
os.setgroups([])
os.setresuid(64322, 64322, 64322)
resource.setrlimit(resource.RLIMIT_NPROC, (resources.count_tasks(64322) + 5,) * 2)
print(resources.process_limits()[0].left)
started = []
try:
    while len(started) < 20:
        started.append(subprocess.Popen(["sleep", "60"]))
except BlockingIOError:
    print(len(started), resources.process_limits()[0].left)
for process in started:
    process.kill()
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        },
    )
    assert result.stdout.split() == ["5", "5", "0"], result


@pytest.mark.parametrize(
    ("membership", "folders", "expected"),
    [
        ("0::/\n", {"": ("100", "40")}, [60]),
        ("0::/\n", {"": ("max", "40")}, []),
        ("0::/a/b\n", {"": ("500", "40"), "a": ("100", "30"), "a/b": ("max", "7")}, [70, 460]),
        ("3:cpu:/x\n2:pids:/x\n0::/\n", {"pids": ("64", "60"), "pids/x": ("32", "30")}, [2, 4]),
        ("2:pids:/docker/of/another\n", {"pids": ("64", "80")}, [0]),
        ("2:cpu:/\n", {"pids": ("64", "60")}, []),
        ("nonsense\n", {"": ("100", "40")}, []),
    ],
)
def test_process_limits_of_control_groups_are_read(
    membership: str,
    folders: dict[str, tuple[str, str]],
    expected: list[int],
    tmp_path: pathlib.Path,
) -> None:
    """Versions 1 and 2, nested, without a limit, and with the host's path inside a container."""
    (tmp_path / "cgroup").write_text(membership)
    for name, (total, used) in folders.items():
        folder = tmp_path / "fs" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pids.max").write_text(f"{total}\n")
        (folder / "pids.current").write_text(f"{used}\n")
    found = list(resources.groups(tmp_path / "cgroup", tmp_path / "fs"))
    assert [limit.left for limit in found] == expected
    for limit in found:
        printed = limit.exceeded(1000)
        enough = re.search(r"docker run --pids-limit (\d+)$", printed)
        assert enough, printed
        assert int(enough[1]) >= limit.used + 1000


def test_limit_is_exceeded_only_beyond_what_is_left() -> None:
    limit = resources.Limit(total=100, used=40, whose="a process", remedy="ulimit -n {}")
    assert limit.exceeded(60) == ""
    assert limit.exceeded(61) == "60 are left of the 100 that a process may have: ulimit -n 128"


class PickledOnce:
    """Environment factory that can be pickled once, for the check, but not for a worker."""

    num_pickled = 0

    def __call__(self) -> envs.Chain:
        return envs.Chain()

    def __reduce__(self) -> tuple[Any, ...]:
        self.num_pickled += 1
        if self.num_pickled > 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return PickledOnce, ()


def test_failed_start_of_workers_ends_the_run_with_a_checkpoint(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other processes may have used the resource since the check."""
    folder = tmp_path / "run"
    config = a3c.Config(env=PickledOnce(), workers=1, run_dir=str(folder), quiet=True)
    with pytest.raises(SystemExit) as exit_info:
        cli.run(lambda: a3c.train(config) and None)
    assert exit_info.value.code == 1
    printed = capsys.readouterr().err
    assert printed == "the workers cannot be started ([Errno 24] Too many open files)\n"
    assert (folder / "checkpoint.pt").exists()


def test_check_memory_rejects_more_than_the_machine_has() -> None:
    with pytest.raises(UserError, match=r"^that takes 1,000,000\.00 GB, the machine has .*: less$"):
        resources.check_memory("that", 10**15, "less")
    resources.check_memory("that", 1, "less")


@pytest.mark.parametrize(
    ("program", "flags", "printed"),
    [
        ("a3c", ["--n-steps", "9" * 12], "a rollout of 128 environments and n_steps 999,"),
        ("a2c", ["--num-envs", "9" * 12], "give a smaller n_steps, or fewer environments"),
        ("a3c", ["--envs-per-worker", "9" * 12], "give a smaller n_steps, or fewer environments"),
        ("a3c", ["--hidden", "9" * 7, "9" * 7], "hidden (9999999, 9999999) takes"),
        ("a2c", ["--lstm", "9" * 7], "and lstm 9999999 takes"),
        ("reinforce", ["--hidden", "9" * 7, "9" * 7], "give smaller layers"),
        ("td3", ["--hidden", "9" * 7, "9" * 7], "give smaller layers"),
    ],
)
def test_settings_that_exceed_the_memory_are_rejected(
    refused: Command, program: str, flags: list[str], printed: str, tmp_path: pathlib.Path
) -> None:
    flags = [*flags, "--run-dir", str(tmp_path / "run")]
    assert printed in refused(program, *flags)
    assert not (tmp_path / "run").exists()


def _can_mount_shm() -> bool:
    """True if this process can mount a small private /dev/shm."""
    if shutil.which("unshare") is None:
        return False
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    command = ["unshare", "--mount", "sh", "-c", mount]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _can_mount_shm(), reason="only root can make /dev/shm small")
@pytest.mark.parametrize(
    "hidden",
    [("512", "512"), ("300", "300")],
    ids=["parameters", "statistics"],  # first allocation that does not fit
)
def test_insufficient_shared_memory_is_reported_before_a_worker_starts(
    hidden: tuple[str, str], tmp_path: pathlib.Path
) -> None:
    """The complete program with a /dev/shm of 1 MB, as in a container."""
    program = f"{sys.executable} -m hogwild_rl.a3c --workers 2 --hidden {' '.join(hidden)}"
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{mount} && exec {program} --run-dir run"],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 2, result.stderr
    assert re.fullmatch(
        r"error: /dev/shm has [\d,]+ bytes free, [\d,]+ are needed: make it larger "
        r"\(docker run --shm-size=\dm\), or give smaller layers\n",
        result.stderr,
    ), result.stderr
    assert not (tmp_path / "run").exists()
