"""Devices, precision and CUDA graphs; what needs a GPU is skipped where there is none."""

import functools
import pathlib
from typing import Any

import pytest
import torch

from hogwild_rl import UserError, a2c, a3c
from hogwild_rl.envs import vector
from hogwild_rl.envs.actions import ActionCodec
from hogwild_rl.envs.observations import ObservationCodec
from hogwild_rl.hogwild.model import SharedModel
from hogwild_rl.hogwild.optim import SharedRMSprop
from hogwild_rl.learning import graphs, losses
from hogwild_rl.learning.interface import Interface
from hogwild_rl.learning.rollout import Collector, Rollout
from hogwild_rl.models.actor_critic import ActorCritic, Architecture
from hogwild_rl.runs import devices

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
CPU = torch.device("cpu")


def model_of(hidden: int = 64, bfloat16: bool = False) -> ActorCritic:
    facts = vector.inspect("CartPole-v1")
    generator = torch.Generator().manual_seed(0)
    shape = Architecture(hidden=(hidden, hidden), bfloat16=bfloat16)
    return ActorCritic(facts.observation_space, facts.action_space, shape, generator)


def rollout_of(n_steps: int = 16) -> Rollout:
    envs = vector.in_turn("CartPole-v1", 4)
    interface = Interface(
        ObservationCodec.of(envs.single_observation_space),
        ActionCodec.of(envs.single_action_space),
    )
    collector = Collector([envs], interface, n_steps, 3, lambda phase: None)
    generator = torch.Generator().manual_seed(3)
    return collector.collect(
        lambda rows, state: (torch.randint(2, (len(rows),), generator=generator), None)
    )


def test_small_networks_stay_on_the_cpu_and_it_is_said_why() -> None:
    chosen = devices.choose("auto", model_of())
    assert chosen.device == CPU
    assert ("no GPU" in chosen.reason) or ("too few" in chosen.reason)
    assert devices.choose("cpu", model_of()).device == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="device cuda needs 1 GPU"):
        devices.choose("cuda", model_of())


def test_little_work_takes_one_thread_and_gives_the_others_back() -> None:
    before = torch.get_num_threads()
    with devices.few_threads(model_of(), 16):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    for hidden, num_envs in ((1024, 16), (64, 1024)):
        with devices.few_threads(model_of(hidden), num_envs):
            assert torch.get_num_threads() == before


def test_bfloat16_keeps_parameters_and_losses_float32_and_comes_close() -> None:
    rollout, config = rollout_of(), a2c.Config()
    values = []
    for bfloat16 in (False, True):
        shared = SharedModel(model_of(bfloat16=bfloat16))
        loss = losses.of_rollout(shared.module, rollout, config)
        gradient = shared.gradient(loss)
        assert loss.dtype == gradient.dtype == torch.float32
        assert all(p.dtype == torch.float32 for p in shared.module.parameters())
        values.append((float(loss.detach()), gradient.clone()))
    assert values[0][0] == pytest.approx(values[1][0], rel=0.02)
    assert values[0][0] != values[1][0]
    cosine = torch.nn.functional.cosine_similarity(values[0][1], values[1][1], dim=0)
    assert cosine > 0.99


@pytest.mark.parametrize("program", [a2c, a3c], ids=["a2c", "a3c"])
@pytest.mark.parametrize(
    ("env", "declined"),
    [
        ("CartPole-v1", "on the CPU it only pays for images"),
        ("tests.envs:Pictures-v0", "this processor has no bfloat16"),
    ],
)
def test_a_run_in_bfloat16_trains_or_says_why_not(
    program: Any, env: str, declined: str, tmp_path: pathlib.Path, capsys: Any
) -> None:
    config = program.Config(
        env=env, precision="bfloat16", total_timesteps=5000, run_dir=str(tmp_path / "run")
    )
    precision = devices.bfloat16("bfloat16", vector.inspect(env))
    assert precision.reason in ("", declined)
    assert precision.on == (precision.reason == "")
    agent = program.train(config)
    told = f"precision float32: {declined}" in capsys.readouterr().out
    assert told == (not precision.on)
    assert all(p.isfinite().all() for p in agent.checkpoint.parameters.values())
    assert agent.checkpoint.counters.dropped == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_bfloat16_on_the_cpu_is_for_images_only() -> None:
    """And on a GPU for whatever there is."""
    facts = vector.inspect("CartPole-v1")
    assert not devices.bfloat16("bfloat16", facts).on
    assert not devices.bfloat16("bfloat16", facts, "auto").on
    assert devices.bfloat16("bfloat16", facts, "cuda").on
    assert devices.bfloat16("float32", facts, "cuda") == devices.Precision(on=False)


@pytest.mark.gpu
@NO_GPU
def test_a_step_on_the_gpu_equals_one_on_the_cpu() -> None:
    rollout, config = rollout_of(), a2c.Config()
    flats = []
    for device in (CPU, torch.device("cuda")):
        shared = SharedModel(model_of(), device)
        optimizer = SharedRMSprop(shared, 1e-3, 0.99, 1e-5)
        there = Rollout(**{name: tensor.to(device) for name, tensor in vars(rollout).items()})
        for _ in range(3):
            optimizer.apply(shared.gradient(losses.of_rollout(shared.module, there, config)))
        flats.append(shared.flat.cpu())
    torch.testing.assert_close(flats[0], flats[1], rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@NO_GPU
def test_graphs_equal_eager() -> None:
    """Acting and gradients, over several calls with new inputs."""
    device, config = torch.device("cuda"), a2c.Config()
    shared = SharedModel(model_of(), device)
    static = Rollout(**{name: tensor.to(device) for name, tensor in vars(rollout_of()).items()})

    def gradient() -> torch.Tensor:
        return shared.gradient(losses.of_rollout(shared.module, static, config))

    captured = graphs.Captured(gradient)
    for _ in range(3):
        static.observations.normal_()
        replayed = captured().clone()
        torch.testing.assert_close(replayed, gradient())
    streams = [torch.Generator(device).manual_seed(1) for _ in range(2)]
    act = functools.partial(shared.module.act, generator=streams[0])
    replayed_act = graphs.captured_act(
        functools.partial(shared.module.act, generator=streams[1]),
        static,
        static.actions.shape[1],
        streams[1],
    )
    with torch.inference_mode():
        for row in static.observations:
            assert torch.equal(act(row, None)[0], replayed_act(row, static.state)[0])


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_on_the_gpu_trains(tmp_path: pathlib.Path, compiled: bool) -> None:
    agent = a2c.train(
        a2c.Config(
            device="cuda",
            compile=compiled,
            total_timesteps=50_000,
            run_dir=str(tmp_path / "run"),
            quiet=True,
        )
    )
    assert all(p.isfinite().all() for p in agent.checkpoint.parameters.values())
    assert agent.checkpoint.counters.dropped == 0
