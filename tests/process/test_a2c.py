"""Tests of A2C runs: signals, environment processes, distributed ranks, memory."""

import functools
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

import hogwild_rl
from hogwild_rl import a2c
from hogwild_rl.collect.rollout import Collector, Rollout
from hogwild_rl.envs import make, vectorize
from hogwild_rl.hogwild.optimizers import SharedRMSprop
from hogwild_rl.hogwild.processes import Worker
from hogwild_rl.hogwild.shared_model import SharedModel, clip_by_global_norm_
from hogwild_rl.learn import losses
from hogwild_rl.learn.closed_form import ClosedForm

ASYNC = ("--vectorization", "async", "--num-envs", "4")


def test_run_trains_and_writes_checkpoint_and_log(start) -> None:
    run = start("a2c", "--total-timesteps", "20000")
    code, out, err = run.wait()
    assert code == 0, err
    assert "Warning" not in err
    assert "device cpu: " in out
    assert "vectorization native: " in out
    counters = hogwild_rl.load(run.folder).checkpoint.counters
    last = (run.folder / "progress.csv").read_text().splitlines()[-1].split(",")
    assert int(last[1]) == counters.steps >= 20000


def test_run_stops_at_a_custom_target_return(start) -> None:
    run = start("a2c", "--stop-when-solved", "--target-return", "40")
    code, out, err = run.wait()
    assert code == 0, err
    reached = re.search(r"solved: mean return ([\d.]+) .* after ([\d,]+) steps", out)
    assert 40 <= float(reached[1]) < 475
    assert int(reached[2].replace(",", "")) < 500_000


def test_ctrl_c_with_async_environments_saves_a_checkpoint_and_exits(start) -> None:
    run = start("a2c", "--total-timesteps", "1000000000", *ASYNC)
    run.wait_until(run.training, 60)
    assert len(run.alive()) >= 6  # parent, server, four environments
    os.killpg(run.process.pid, signal.SIGINT)
    code, out, err = run.wait()
    assert code == 130, err
    assert "Traceback" not in err
    assert f"hogwild_rl.a2c --resume {run.folder}" in out
    resumed = a2c.Config(resume=str(run.folder))
    assert resumed.vectorization == "async"


def test_environment_processes_exit_when_the_parent_is_killed(start) -> None:
    run = start("a2c", "--total-timesteps", "1000000000", *ASYNC)
    run.wait_until(run.training, 60)
    run.process.kill()
    run.wait_until(lambda: not run.alive(), timeout_s=2)


def test_exception_in_a_sync_environment_ends_the_run_with_a_checkpoint(start) -> None:
    run = start("a2c", "--env", "tests.envs:FaultyRaise-v0", "--vectorization", "sync")
    code, out, err = run.wait()
    assert code == 1
    assert "simulated failure" in err
    assert f"--resume {run.folder}" in out
    assert hogwild_rl.load(run.folder).checkpoint.counters.steps > 0


CONFIG = {
    "env": "CartPole-v1",
    "num_envs": 8,
    "vectorization": "sync",
    "n_steps": 8,
    "learning_rate": 1e-3,
    "lr_schedule": "constant",
    "total_timesteps": 20 * 64 - 300,
    "normalize_observations": True,
    "seed": 3,
}


def test_two_ranks_match_one_rank_with_all_environments(tmp_path) -> None:
    """Results agree up to floating-point reordering.

    All valid transitions, and all observations in the running moments, have equal weight.
    """
    folder = tmp_path / "ranks"
    program = (
        f"from hogwild_rl import a2c; a2c.train(a2c.Config(run_dir={str(folder)!r}, **{CONFIG}))"
    )
    for rank in start_ranks(program):
        _, err = rank.communicate(timeout=120)
        assert rank.returncode == 0, err.decode()
    saved = hogwild_rl.load(folder).checkpoint
    parameters, steps, episodes = train_one_rank(a2c.Config(**CONFIG), saved.counters.updates)
    assert saved.counters.updates > 10
    assert (saved.counters.steps, saved.counters.episodes) == (steps, episodes)
    for name, parameter in parameters.items():
        torch.testing.assert_close(saved.parameters[name], parameter, rtol=1e-4, atol=1e-5)


# The only GPU belongs to rank 0, so that both ranks choose the CPU.
AGREE = """
import torch
from hogwild_rl.training import devices
from hogwild_rl.training.distributed import Ranks

torch.cuda.device_count = lambda: 1
ranks = Ranks.here()
answers = [ranks.agree(name, yes) for name, yes in (("one", True), ("two", ranks.index == 0))]
chosen = devices.choose("auto", torch.nn.Linear(1000, 1000), ranks)
assert answers == [True, False], answers
assert chosen.device == torch.device("cpu"), chosen
with ranks.joined(chosen.device):
    ranks.wants_to_stop = lambda: ranks.index == 1 and len(gathered) == 19
    gathered = []
    for _ in range(20):
        assert not ranks.stopping
        gathered.append(ranks.combine(torch.ones(2), 5, [(1.0, ranks.index)]))
    assert ranks.stopping  # also on rank 0
    last = ranks.gather()
assert [steps for steps, _ in gathered] == [10] * 20
assert [len(episodes) for _, episodes in gathered] == [0] * 15 + [32] + [0] * 4
assert sorted(last) == [(1.0, 0)] * 4 + [(1.0, 1)] * 4
"""


def test_ranks_agree_on_a_device_and_exchange_episodes_periodically() -> None:
    for rank in start_ranks(AGREE):
        _, err = rank.communicate(timeout=60)
        assert rank.returncode == 0, err.decode()


def start_ranks(program: str) -> list[subprocess.Popen[bytes]]:
    """Starts two processes of one run, as torchrun does on one machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in (0, 1)
    ]


def train_one_rank(config: a2c.Config, updates: int) -> tuple[dict[str, torch.Tensor], int, int]:
    """Reference: environments and random streams of both ranks in one rollout and one loss."""
    env_info = make.inspect_env(config.env)
    model = config.model(env_info)
    normalization = config.normalization(env_info, workers=2)
    shared = SharedModel(model)
    optimizer = SharedRMSprop(shared, config.learning_rate, config.rms_alpha, config.rms_eps)
    collectors, generators, normalizers = [], [], []
    for rank in (0, 1):
        env_seed, action_seed = Worker(rank, 0, config.seed, bool).random_seeds(2)
        envs = vectorize.sequential(config.env, config.num_envs // 2)
        normalizers.append(config.normalizer(normalization, rank))
        env_codec = config.env_codec(env_info, normalizers[-1])
        collectors.append(
            Collector([envs], env_codec, config.n_steps, env_seed, lambda *_: None, arrays=True)
        )
        generators.append(np.random.Generator(np.random.PCG64(action_seed)))
    act = ClosedForm(model, shared.gradient.flat).act
    steps = episodes = 0
    for _ in range(updates):
        rollouts = []
        normalization.write_to(model)
        for collector, generator in zip(collectors, generators, strict=True):
            rollouts.append(collector.collect(functools.partial(act, generator=generator)))
            steps += collector.steps
            episodes += len(collector.episodes)
        for normalizer, rollout in zip(normalizers, rollouts, strict=True):
            normalizer.add(rollout)
        merged = Rollout(
            **{key: torch.cat([vars(r)[key] for r in rollouts], 1) for key in vars(rollouts[0])}
        )
        gradient = shared.gradient(losses.actor_critic_loss(model, merged, config).total)
        clip_by_global_norm_(gradient, config.max_grad_norm)
        optimizer.apply(gradient)
    normalization.write_to(model)
    return model.state_dict(), steps, episodes


@pytest.mark.slow
def test_torchrun_with_two_ranks_solves_cartpole(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "hogwild_rl.a2c", "--stop-when-solved"),
            *("--run-dir", str(folder)),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("solved: ") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_during_a_run(start) -> None:
    """Heap fragmentation by small blocks of Box2D took 600 bytes per step."""
    pytest.importorskip("Box2D")

    def resident_mb() -> float:
        status = pathlib.Path(f"/proc/{run.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def steps() -> int:
        rows = (run.folder / "progress.csv").read_text().splitlines() if run.training() else []
        return int(rows[-1].split(",")[1]) if len(rows) > 1 else 0

    flags = ("--env", "LunarLander-v3", "--total-timesteps", "1000000000")
    run = start("a2c", *flags, warnings="default")  # Box2D itself warns
    run.wait_until(lambda: steps() > 150_000, 110)
    before = resident_mb()
    run.wait_until(lambda: steps() > 450_000, 200)
    assert resident_mb() - before < 90  # 180 if freed memory is not returned to the system
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.wait()[0] == 130
