"""Tests of DDPG and TD3 runs: one or several workers, checkpoints, resume and failures."""

import os
import pathlib
import signal
from typing import Any

import numpy as np
import pytest
import torch

import hogwild_rl
from hogwild_rl import ddpg, td3

pytestmark = pytest.mark.long

SMALL: dict[str, Any] = {
    "env": "tests.envs:Continuous-v0",
    "hidden": (8,),
    "batch_size": 16,
    "buffer_size": 2_000,
    "learning_starts": 100,
    "total_timesteps": 1_000,
    "quiet": True,
}
FLAGS = ("--hidden", "8", "--batch-size", "16", "--buffer-size", "4000", "--learning-starts", "100")
PROGRAMS = {"ddpg": ddpg, "td3": td3}


def trained(program: str, folder: pathlib.Path, **given: Any) -> Any:
    module: Any = PROGRAMS[program]
    return module.train(module.Config(**{**SMALL, "run_dir": str(folder), **given}))


def equal(first: Any, second: Any) -> bool:
    pairs = zip(first.items(), second.items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    "given",
    [{}, {"noise": "ou", "noise_std": 0.5}, {"envs_per_worker": 3, "gradient_steps": -1}],
    ids=str,
)
def test_runs_with_one_worker_and_equal_seeds_are_bitwise_equal(
    program: str, given: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    first, second = (trained(program, tmp_path / name, **given).checkpoint for name in "ab")
    other = trained(program, tmp_path / "c", seed=1, **given).checkpoint
    assert equal(first.parameters, second.parameters)
    assert not equal(first.parameters, other.parameters)
    for name in ("steps", "updates", "episodes", "dropped"):
        assert getattr(first.counters, name) == getattr(second.counters, name)


@pytest.mark.parametrize("program", PROGRAMS)
def test_steps_and_updates_are_counted(program: str, tmp_path: pathlib.Path) -> None:
    counters = trained(program, tmp_path / "one").checkpoint.counters
    assert counters.steps == 1_000
    assert counters.updates == 1_000 - 100 + 1  # one per step from step 100 on
    # Three environments; after every second vector step, one update per transition.
    given = {"envs_per_worker": 3, "train_every": 2, "gradient_steps": -1, "learning_starts": 60}
    counters = trained(program, tmp_path / "three", **given).checkpoint.counters
    assert 1_000 <= counters.steps < 1_006
    assert counters.steps - 66 <= counters.updates <= counters.steps - 54


@pytest.mark.parametrize("program", PROGRAMS)
def test_several_workers_share_one_model(program: str, start) -> None:
    flags = ("--env", "tests.envs:Continuous-v0", "--workers", "3", "--total-timesteps", "3000")
    code, out, err = start(program, *flags, *FLAGS).wait()
    assert code == 0, err
    assert "a replay buffer of 4,000 transitions takes" in out
    run = start(program, *flags, *FLAGS, "--seed", "1")
    assert run.wait()[0] == 0
    agent = hogwild_rl.load(run.folder)
    counters = agent.checkpoint.counters
    assert 3_000 <= counters.steps < 3_003
    assert counters.updates == pytest.approx(counters.steps - 100, abs=10)
    staleness = np.loadtxt(run.folder / "staleness.csv", delimiter=",", skiprows=1)
    assert staleness[:, 1].sum() == counters.updates
    assert staleness[1:, 1].sum() > 0  # workers updated concurrently
    targets = [name for name in agent.checkpoint.parameters if ".target." in name]
    assert targets
    for name in targets:  # target networks lag behind the online networks
        online = agent.checkpoint.parameters[name.replace(".target.", ".online.")]
        assert not torch.equal(agent.checkpoint.parameters[name], online)


@pytest.mark.parametrize("workers", [1, 2])
def test_save_replay_restores_buffers(workers: int, start, tmp_path: pathlib.Path) -> None:
    flags = ("--env", "tests.envs:Continuous-v0", "--workers", str(workers), "--save-replay")
    run = start("td3", *flags, *FLAGS, "--total-timesteps", "1000")
    assert run.wait()[0] == 0
    files = sorted(path.name for path in run.folder.glob("replay_*.pt"))
    assert files == [f"replay_{worker}.pt" for worker in range(workers)]
    stored = [torch.load(run.folder / name, weights_only=True)["_kept"] for name in files]
    assert sum(stored) == hogwild_rl.load(run.folder).checkpoint.counters.steps

    settings = {"resume": str(run.folder), "total_timesteps": 1_200, "quiet": True}
    td3.train(td3.Config(allow_import=True, **settings))
    counters = hogwild_rl.load(run.folder).checkpoint.counters
    assert counters.updates == pytest.approx(counters.steps - 100, abs=10)  # no second warm-up
    stored = [torch.load(run.folder / name, weights_only=True)["_kept"] for name in files]
    assert sum(stored) == counters.steps


def test_missing_replay_buffer_is_reported(start, tmp_path: pathlib.Path, capsys) -> None:
    trained("ddpg", tmp_path / "run")
    resumed = {"resume": str(tmp_path / "run"), "allow_import": True, "quiet": False}
    ddpg.train(ddpg.Config(total_timesteps=1_500, **resumed))
    assert (
        "the replay buffer was not saved (--save-replay): it starts empty"
        in capsys.readouterr().out
    )
    counters = hogwild_rl.load(tmp_path / "run").checkpoint.counters
    assert counters.steps == 1_500
    assert counters.updates == 901 + 401  # the new replay buffer fills first


def test_replay_buffer_of_other_settings_is_reported(start, tmp_path: pathlib.Path, capsys) -> None:
    trained("ddpg", tmp_path / "run", save_replay=True)
    resumed = {"resume": str(tmp_path / "run"), "allow_import": True, "buffer_size": 3_000}
    ddpg.train(ddpg.Config(total_timesteps=1_100, **resumed))
    assert (
        "replay_0.pt has other settings: the replay buffer starts empty" in capsys.readouterr().err
    )


def test_resume_accepts_a_new_learning_rate(tmp_path: pathlib.Path) -> None:
    trained("td3", tmp_path / "run")
    settings = {"total_timesteps": 1_300, "quiet": True, "learning_rate": 0.125}
    settings["env"] = SMALL["env"]  # explicit, so that its module may be imported
    agent = td3.train(td3.Config(resume=str(tmp_path / "run"), **settings))
    for part in ("actor", "critics"):
        assert agent.checkpoint.optimizer[part]["param_groups"][0]["lr"] == 0.125
        assert agent.checkpoint.optimizer[part]["state"][0]["step"] > 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_saves_a_checkpoint_and_exits(workers: str, start) -> None:
    flags = ("--env", "tests.envs:Continuous-v0", "--workers", workers, *FLAGS)
    run = start("ddpg", *flags, "--total-timesteps", "1000000000")
    run.wait_until(run.training, 60)
    os.killpg(run.process.pid, signal.SIGINT)
    code, out, err = run.wait()
    assert code == 130, err
    assert "Traceback" not in err
    assert f"hogwild_rl.ddpg --resume {run.folder}" in out
    assert hogwild_rl.load(run.folder).checkpoint.counters.steps > 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_exception_in_an_environment_ends_the_run_with_a_checkpoint(workers: str, start) -> None:
    flags = ("--env", "tests.envs:ContinuousRaise-v0", "--workers", workers, *FLAGS)
    run = start("td3", *flags, "--max-restarts", "0")
    code, out, err = run.wait()
    assert code == 1
    assert "simulated failure" in err
    assert f"--resume {run.folder}" in out
    assert hogwild_rl.load(run.folder).checkpoint.counters.steps > 0


@pytest.mark.parametrize("fault", ["RareNan", "RareInfObs"])
def test_nonfinite_transitions_are_reported_and_not_stored(fault: str, start) -> None:
    flags = ("--env", f"tests.envs:Continuous{fault}-v0", "--save-replay", *FLAGS)
    run = start("td3", *flags, "--total-timesteps", "3500", "--buffer-size", "20000")
    code, _, err = run.wait()
    assert code == 0, err
    saved = hogwild_rl.load(run.folder).checkpoint
    assert saved.counters.dropped == 3  # every 1,000th step
    assert "worker 0, environment 0 (0 earlier cases): a reward or observation" in err
    stored = torch.load(run.folder / "replay_0.pt", weights_only=True)
    assert all(bool(stored[name].isfinite().all()) for name in ("_observations", "_actions"))
    assert stored["_kept"] == saved.counters.steps - 3
    assert all(bool(tensor.isfinite().all()) for tensor in saved.parameters.values())


@pytest.mark.parametrize("program", PROGRAMS)
def test_agent_can_be_saved_loaded_and_evaluated(program: str, tmp_path: pathlib.Path) -> None:
    agent = trained(program, tmp_path / "run", env="Pendulum-v1", total_timesteps=300)
    agent.save(tmp_path / "agent.pt")
    loaded = hogwild_rl.load(tmp_path / "agent.pt")
    env = agent.make_env()
    observation, _ = env.reset(seed=0)
    action = agent.act(observation)
    assert env.action_space.contains(action)
    assert np.array_equal(action, loaded.act(observation, deterministic=False))
    assert agent.evaluate(1, seed=3) == loaded.evaluate(1, seed=3)
