"""Tests of non-finite numbers: reported and dropped, without effect on the parameters."""

import functools
import pathlib
import re
import time
from typing import Any

import numpy as np
import pytest
import torch

import hogwild_rl
from hogwild_rl import a2c
from hogwild_rl.collect.rollout import Collector
from hogwild_rl.envs import make, vectorize
from hogwild_rl.envs.codecs import ActionCodec, EnvCodec, ObservationCodec
from hogwild_rl.hogwild import processes
from hogwild_rl.hogwild.optimizers import SharedRMSprop
from hogwild_rl.hogwild.processes import Worker
from hogwild_rl.hogwild.shared_model import SharedModel
from hogwild_rl.learn.normalization import Normalization
from hogwild_rl.runs.checkpoint import Checkpointer
from hogwild_rl.runs.run import Run
from hogwild_rl.runs.state import TrainState
from tests import envs

pytestmark = pytest.mark.long


@pytest.mark.parametrize("program", ["a3c", "a2c"])
@pytest.mark.parametrize("fault", ["RareNan", "RareInfObs"])
def test_nonfinite_rollouts_are_dropped_and_training_continues(
    program: str, fault: str, start
) -> None:
    size = ("--workers", "1", "--envs-per-worker") if program == "a3c" else ("--num-envs",)
    flags = (*size, "2", "--env", f"tests.envs:Faulty{fault}-v0", "--total-timesteps", "12000")
    run = start(program, *flags, "--n-steps", "16")
    code, _, err = run.wait()
    assert code == 0, err
    counters = hogwild_rl.load(run.folder).checkpoint.counters
    # Once per 1,000 steps of each environment; both can be in the same rollout.
    assert 6 <= counters.dropped <= 12
    assert counters.updates > 300
    found = re.findall(r"worker 0, environment ([01]) \([\d,]+ earlier cases\): a reward", err)
    assert found
    parameters = hogwild_rl.load(run.folder).checkpoint.parameters
    assert all(bool(tensor.isfinite().all()) for tensor in parameters.values())


def test_a3c_run_fails_after_max_bad_updates(start) -> None:
    flags = ("--workers", "1", "--env", "tests.envs:FaultyNan-v0", "--max-bad-updates", "7")
    run = start("a3c", *flags)
    code, _, err = run.wait()
    assert code == 1
    assert "in a row were not finite, as many as max_bad_updates allows" in err
    assert str(run.folder / "checkpoint.pt") in err
    assert hogwild_rl.load(run.folder).checkpoint.counters.dropped >= 7


@pytest.mark.parametrize("given", [{"clip_rewards": 1.0}, {"normalize_rewards": True}], ids=str)
@pytest.mark.parametrize("program", ["a3c", "a2c", "ppo", "reinforce"])
def test_infinite_rewards_are_dropped_before_clipping_and_normalization(
    program: str, given: dict[str, Any], start
) -> None:
    size = {"a3c": ("--workers", "1", "--envs-per-worker"), "a2c": ("--num-envs",)}
    size["ppo"] = ("--n-steps", "16", "--num-envs")
    flags = (*size.get(program, ("--episodes",)), "2", "--env", "tests.envs:FaultyRareInf-v0")
    given = {f"--{name.replace('_', '-')}": value for name, value in given.items()}
    settings = [str(word) for pair in given.items() for word in pair if word is not True]
    run = start(program, *flags, *settings, "--total-timesteps", "12000")
    code, _, err = run.wait()
    assert code == 0, err
    assert "a reward or observation was not finite" in err
    assert hogwild_rl.load(run.folder).checkpoint.counters.dropped >= 5
    means = np.genfromtxt(run.folder / "progress.csv", delimiter=",", names=True)["return_mean"]
    assert np.isfinite(np.atleast_1d(means)[-1])


def test_td3_run_fails_after_max_bad_updates(start) -> None:
    flags = ("--env", "tests.envs:ContinuousNanLater-v0", "--learning-starts", "50")
    run = start("td3", *flags, "--hidden", "8", "--batch-size", "16", "--max-bad-updates", "5")
    code, _, err = run.wait()
    assert code == 1
    assert "in a row were not finite, as many as max_bad_updates allows" in err
    assert hogwild_rl.load(run.folder).checkpoint.counters.updates > 100


@pytest.mark.parametrize("fault", ["RareNan", "RareInfObs"])
def test_only_the_nonfinite_environment_is_reset(fault: str) -> None:
    vector_env = vectorize.sequential(functools.partial(envs.Faulty, fault), 3)
    for b, single in enumerate(vector_env.envs):
        single.unwrapped._taken = 100 * b  # so that they fail at different steps
    env_codec = EnvCodec(
        ObservationCodec.of(vector_env.single_observation_space),
        ActionCodec.of(vector_env.single_action_space),
    )
    collector = Collector([vector_env], env_codec, 50, 0, lambda *_: None)
    actions = torch.ones(3, dtype=torch.int64)
    nonfinite: list[int] = []
    for _ in range(80):
        rollout = collector.collect(lambda _, __: (actions, None))
        for b in nonfinite:  # in the previous rollout
            assert not rollout.valid[0, b]
            assert rollout.observations[0].isfinite().all()
            assert rollout.observations[1, b].tolist() == [1, 0, 0, 0, 0]
        # The fourth step has reward 1, the others 0; the fifth only resets.
        finite = [b for b in range(3) if b not in nonfinite + collector.nonfinite_envs]
        assert rollout.rewards[:, finite].sum(0).eq(10).all()
        nonfinite = list(collector.nonfinite_envs)
        assert len(nonfinite) <= 1
        assert all(np.isfinite(episode).all() for episode in collector.episodes)


def test_run_continues_after_parameters_are_restored(tmp_path: pathlib.Path, capsys) -> None:
    """The dropped updates do not end the run, and the restored parameters are saved."""
    settings: dict[str, Any] = {"total_timesteps": 1_000, "hidden": (8,), "checkpoint_every": 1e-3}
    config = a2c.Config(num_envs=2, run_dir=str(tmp_path / "run"), **settings)
    run = Run("a2c", config)
    shared = SharedModel(config.model(run.env))
    normalization = config.normalization(run.env, workers=2)
    state = TrainState(shared, SharedRMSprop(shared), normalization, workers=2)
    run.open(state)
    good, counters = shared.flat.clone(), state.counters
    writers = [counters.writer(0), counters.writer(1)]
    writers[0].add_nonfinite([1, 1])
    for _ in range(200):
        writers[0].add_dropped()
    shared.flat[7] = torch.nan
    time.sleep(0.01)
    run.observe(counters)
    printed = capsys.readouterr().err
    assert "the parameters were not finite: restored" in printed
    assert "worker 0, environment 1 (1 earlier cases)" in printed
    assert torch.equal(shared.flat, good)
    saved = hogwild_rl.load(tmp_path / "run").checkpoint.parameters
    assert all(bool(tensor.isfinite().all()) for tensor in saved.values())
    writers[0].add_update(0)
    writers[1].add_nonfinite([0])
    time.sleep(0.01)
    run.observe(counters)
    assert "worker 1, environment 0 (2 earlier cases)" in capsys.readouterr().err
    run.close(counters, failed=False)


def shared_state(folder: pathlib.Path, hidden: int) -> tuple[TrainState, Checkpointer]:
    """State of a finished run in shared memory, and its checkpointer."""
    settings: dict[str, Any] = {"total_timesteps": 1_000, "hidden": (hidden,), "quiet": True}
    agent = a2c.train(a2c.Config(num_envs=2, run_dir=str(folder), **settings))
    shared = SharedModel(agent.model.requires_grad_(True))
    optimizer = SharedRMSprop(shared)
    optimizer.load_state_dict(agent.checkpoint.optimizer)
    env_info = make.inspect_env("CartPole-v1")
    normalization = Normalization(
        1, ObservationCodec.of(env_info.observation_space), observations=False, rewards=False
    )
    state = TrainState(shared, optimizer, normalization, workers=1)
    return state, Checkpointer("a2c", agent.checkpoint.settings, env_info, state, 1)


def change(worker: Worker, model: SharedModel[Any]) -> None:
    """Changes all parameters without end."""
    while not worker.should_stop():
        model.flat.mul_(1.001)
        model.flat.div_(1.001)


def test_checkpointer_does_not_restore_parameters_that_change(tmp_path: pathlib.Path) -> None:
    """A value that changes between two reads differs from itself, as NaN does."""
    state, checkpointer = shared_state(tmp_path / "run", hidden=2_000)
    with processes.Workers(change, (state.model,), 1, seed=0) as workers:
        before, end_s = state.model.flat.clone(), time.monotonic() + 60
        while torch.equal(state.model.flat, before) and time.monotonic() < end_s:
            workers.wait(0.05)
        assert not any(checkpointer.guard() for _ in range(1_000))
        workers.stop(10.0)


def test_checkpointer_restores_nonfinite_parameters(tmp_path: pathlib.Path) -> None:
    """Parameters and optimizer state are overwritten from outside."""
    state, checkpointer = shared_state(tmp_path / "run", hidden=8)
    shared, optimizer = state.model, state.optimizer
    assert not checkpointer.guard()
    good, statistics = shared.flat.clone(), optimizer.state[shared.parameter]["square_avg"].clone()
    shared.flat[7] = torch.nan
    optimizer.state[shared.parameter]["square_avg"].fill_(torch.inf)
    assert checkpointer.guard()
    assert torch.equal(shared.flat, good)
    assert torch.equal(optimizer.state[shared.parameter]["square_avg"], statistics)
    assert not checkpointer.guard()
