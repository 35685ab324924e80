"""Tests of devices, precision and CUDA graphs; those that need a GPU are skipped without one."""

import functools
import math
import pathlib
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import torch

from hogwild_rl import a2c, a3c, ddpg, td3
from hogwild_rl.collect.rollout import Collector, Rollout
from hogwild_rl.envs import make, vectorize
from hogwild_rl.envs.codecs import ActionCodec, EnvCodec, ObservationCodec
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild.counters import Counters
from hogwild_rl.hogwild.optimizers import SharedRMSprop
from hogwild_rl.hogwild.shared_model import SharedModel
from hogwild_rl.learn import cuda_graphs, losses
from hogwild_rl.models.actor_critic import ActorCritic, Architecture
from hogwild_rl.training import devices
from hogwild_rl.training.distributed import Ranks
from hogwild_rl.training.learner import Outcomes

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
CPU = torch.device("cpu")


def model_of(hidden: int = 64, bfloat16: bool = False) -> ActorCritic:
    env_info = make.inspect_env("CartPole-v1")
    generator = torch.Generator().manual_seed(0)
    shape = Architecture(hidden=(hidden, hidden), bfloat16=bfloat16)
    return ActorCritic(env_info.observation_space, env_info.action_space, shape, generator)


def rollout_of(n_steps: int = 16) -> Rollout:
    envs = vectorize.sequential("CartPole-v1", 4)
    env_codec = EnvCodec(
        ObservationCodec.of(envs.single_observation_space),
        ActionCodec.of(envs.single_action_space),
    )
    collector = Collector([envs], env_codec, n_steps, 3, lambda *_: None)
    generator = torch.Generator().manual_seed(3)
    return collector.collect(
        lambda rows, state: (torch.randint(2, (len(rows),), generator=generator), None)
    )


def test_small_networks_stay_on_the_cpu_and_the_reason_is_given() -> None:
    chosen = devices.choose("auto", model_of())
    assert chosen.device == CPU
    assert ("no GPU" in chosen.reason) or ("too few" in chosen.reason)
    assert devices.choose("cpu", model_of()).device == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_raises() -> None:
    with pytest.raises(UserError, match="device cuda needs 1 GPU"):
        devices.choose("cuda", model_of())


def test_small_models_use_one_thread_and_restore_the_count() -> None:
    before = torch.get_num_threads()
    with devices.limit_threads(model_of(), 16):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    for hidden, num_envs in ((1024, 16), (64, 1024)):
        with devices.limit_threads(model_of(hidden), num_envs):
            assert torch.get_num_threads() == before
        with devices.limit_threads(model_of(hidden), num_envs, on_gpu=True):
            assert torch.get_num_threads() == 1
        torch.set_num_threads(6)
        with devices.limit_threads(model_of(hidden), num_envs, most=4):
            assert torch.get_num_threads() == 4
        assert torch.get_num_threads() == 6
        torch.set_num_threads(before)


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def updated(tuner: Generator[None, float, None], durations: dict[int, float], count: int) -> Any:
    """Numbers of threads of `count` updates, whose duration depends on the number of threads."""
    used = []
    for _ in range(count):
        used.append(torch.get_num_threads())
        tuner.send(durations[used[-1]])
    return used


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize("best", [1, 2, 4])
def test_the_fastest_number_of_threads_is_used_after_ten_updates_with_each(best: int) -> None:
    tuner = devices.tuned_threads()
    next(tuner)
    durations = {count: 1.0 if count == best else 1.5 for count in (1, 2, 4)}
    assert updated(tuner, durations, 130) == [1] * 10 + [2] * 10 + [4] * 10 + [best] * 100


@pytest.mark.usefixtures("four_threads")
def test_a_few_slow_updates_do_not_change_the_number_of_threads() -> None:
    tuner = devices.tuned_threads()
    next(tuner)
    idle = {1: 3.0, 2: 2.0, 4: 4.0}
    for count in (1, 2, 4):
        assert updated(tuner, idle, 6) == [count] * 6
        for _ in range(4):
            tuner.send(100.0 if count == 2 else idle[count])
    for _ in range(5):
        assert updated(tuner, idle, 20) == [2] * 20
        for _ in range(2):
            tuner.send(100.0)


@pytest.mark.usefixtures("four_threads")
def test_the_number_of_threads_is_measured_again_after_three_slow_updates() -> None:
    tuner = devices.tuned_threads()
    next(tuner)
    idle, busy = {1: 3.0, 2: 2.0, 4: 4.0}, {1: 6.0, 2: 10.1, 4: 10.1}
    updated(tuner, idle, 40)
    assert updated(tuner, busy, 3) == [2] * 3
    assert updated(tuner, busy, 50) == [1] * 10 + [2] * 10 + [4] * 10 + [1] * 20
    assert updated(tuner, {1: 30.0}, 3) == [1] * 3  # not above five times the new best, 6
    assert updated(tuner, {1: 30.1}, 4) == [1] * 4
    updated(tuner, idle, 29)
    assert torch.get_num_threads() == 2


def test_one_thread_stays_one_thread() -> None:
    before = torch.get_num_threads()
    with devices.limit_threads(model_of(), 16):
        tuner = devices.tuned_threads()
        next(tuner)
        assert set(updated(tuner, {1: 1.0}, 20) + updated(tuner, {1: 9.0}, 20)) == {1}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("program", [ddpg, td3], ids=["ddpg", "td3"])
def test_durations_of_all_updates_select_the_number_of_threads(
    program: Any, tmp_path: pathlib.Path, monkeypatch: Any
) -> None:
    durations: list[float] = []

    def tuned_threads() -> Generator[None, float, None]:
        torch.set_num_threads(3)
        while True:
            durations.append((yield))

    monkeypatch.setattr(devices, "tuned_threads", tuned_threads)
    before = torch.get_num_threads()
    settings = {"total_timesteps": 200, "learning_starts": 150, "batch_size": 16, "quiet": True}
    agent = program.train(program.Config(run_dir=str(tmp_path / "run"), **settings))
    assert len(durations) == agent.checkpoint.counters.updates > 10
    assert min(durations) > 0
    assert torch.get_num_threads() == before


def test_bfloat16_keeps_parameters_and_losses_in_float32() -> None:
    rollout, config = rollout_of(), a2c.Config()
    values = []
    for bfloat16 in (False, True):
        shared = SharedModel(model_of(bfloat16=bfloat16))
        loss = losses.actor_critic_loss(shared.module, rollout, config).total
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
        ("CartPole-v1", "on the CPU bfloat16 is faster for images only"),
        ("tests.envs:Images-v0", "this processor has no bfloat16"),
    ],
)
def test_bfloat16_run_trains_or_reports_float32(
    program: Any, env: str, declined: str, tmp_path: pathlib.Path, capsys: Any
) -> None:
    config = program.Config(
        env=env, precision="bfloat16", total_timesteps=5000, run_dir=str(tmp_path / "run")
    )
    precision = devices.bfloat16("bfloat16", make.inspect_env(env))
    assert precision.reason in ("", declined)
    assert precision.on == (precision.reason == "")
    agent = program.train(config)
    printed = f"precision float32: {declined}" in capsys.readouterr().out
    assert printed == (not precision.on)
    assert all(p.isfinite().all() for p in agent.checkpoint.parameters.values())
    assert agent.checkpoint.counters.dropped == 0


@pytest.mark.parametrize("native", [False, True])
def test_bfloat16_on_the_cpu_needs_images_and_on_a_gpu_native_support(
    native: bool, monkeypatch: Any
) -> None:
    calls: list[bool] = []

    def is_supported(including_emulation: bool = True) -> bool:
        calls.append(including_emulation)
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    env_info = make.inspect_env("CartPole-v1")
    assert not devices.bfloat16("bfloat16", env_info).on
    assert calls == []
    precision = devices.bfloat16("bfloat16", env_info, "cuda")
    assert (precision.on, precision.reason) == (
        (True, "") if native else (False, "this GPU has no bfloat16")
    )
    assert devices.bfloat16("float32", env_info, "cuda") == devices.Precision(on=False)


@pytest.mark.parametrize(
    ("found", "local", "hidden", "reason"),
    [
        (0, 0, 1024, "no GPU found"),
        (1, 0, 1024, ""),
        (1, 1, 1024, "not every rank has a GPU of its own"),
        (2, 1, 1024, ""),
        (1, 0, 64, "too few"),
    ],
)
def test_auto_selects_this_ranks_gpu_for_large_networks(
    found: int, local: int, hidden: int, reason: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    chosen = devices.choose("auto", model_of(hidden), Ranks(index=local, local=local))
    if reason:
        assert chosen.device == CPU
        assert reason in chosen.reason
    else:
        assert chosen.device == torch.device("cuda", local)


def test_frozen_parameters_do_not_count_in_the_choice_of_a_device(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    model = model_of(500)
    assert devices.choose("auto", model).device.type == "cuda"
    model.value_body.requires_grad_(False)
    assert devices.choose("auto", model).device == CPU


def test_out_of_gpu_memory_raises_one_line() -> None:
    printed = "num_envs 64 and n_steps 5 need more memory than the GPU has: reduce them"
    with (
        pytest.raises(UserError, match=printed),
        devices.enough_memory("num_envs 64 and n_steps 5"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.mark.parametrize(("compiled", "expected"), [("auto", "cuda"), (True, "both"), (False, "")])
def test_graphs_are_captured_on_a_gpu_by_default(compiled: Any, expected: str) -> None:
    config = a2c.Config(compile=compiled)
    assert config.compiles(torch.device("cuda", 0)) == (expected != "")
    assert config.compiles(torch.device("meta")) == (expected == "both")
    if compiled is True:
        with pytest.raises(UserError, match="this run is on the CPU: leave it out"):
            config.compiles(CPU)
    else:
        assert not config.compiles(CPU)


@pytest.mark.parametrize(
    ("settings", "count", "overlapping", "groups"),
    [
        ({"num_envs": 32}, 1, True, 2),
        ({"num_envs": 31}, 1, True, 1),
        ({"num_envs": 33}, 1, True, 1),
        ({"num_envs": 34}, 2, True, 1),
        ({"num_envs": 36}, 2, True, 2),
        ({"num_envs": 32}, 1, False, 1),
        ({"num_envs": 32, "env_groups": 4}, 1, False, 4),
    ],
)
def test_two_groups_are_the_default_if_acting_and_stepping_overlap(
    settings: Any, count: int, overlapping: bool, groups: int
) -> None:
    config = a2c.Config(**settings)
    assert a2c.number_of_groups(config, Ranks(count=count), overlapping) == groups


@pytest.mark.parametrize("applied", [[True, False, True], [False], []])
def test_outcomes_are_counted_one_step_late_and_completely_by_finish(applied: Any) -> None:
    counters = Counters(1)
    outcomes = Outcomes(counters.writer(0), CPU)
    norm = torch.tensor(0.0)  # one tensor, overwritten by every step
    for number, each in enumerate(applied):
        outcomes.add(norm.fill_(1.5 if each else math.nan))
        assert counters.total("updates") + counters.total("dropped") == number
    for _ in range(2):
        outcomes.finish()
        assert counters.total("updates") == sum(applied)
        assert counters.total("dropped") == len(applied) - sum(applied)
    assert outcomes.norm == pytest.approx(1.5 if applied and applied[-1] else math.nan, nan_ok=True)


@pytest.mark.gpu
@needs_gpu
def test_updates_on_the_gpu_equal_those_on_the_cpu() -> None:
    rollout, config = rollout_of(), a2c.Config()
    flats = []
    for device in (CPU, torch.device("cuda")):
        shared = SharedModel(model_of(), device)
        optimizer = SharedRMSprop(shared, 1e-3, 0.99, 1e-5)
        moved = Rollout(**{name: tensor.to(device) for name, tensor in vars(rollout).items()})
        for _ in range(3):
            optimizer.apply(
                shared.gradient(losses.actor_critic_loss(shared.module, moved, config).total)
            )
        flats.append(shared.flat.cpu())
    torch.testing.assert_close(flats[0], flats[1], rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@needs_gpu
def test_captured_graphs_equal_eager_execution() -> None:
    """Compares acting, gradients and optimizer steps in several calls with new inputs."""
    device, config = torch.device("cuda"), a2c.Config()
    shared = SharedModel(model_of(), device)
    static = Rollout(**{name: tensor.to(device) for name, tensor in vars(rollout_of()).items()})

    def gradient() -> torch.Tensor:
        return shared.gradient(losses.actor_critic_loss(shared.module, static, config).total)

    captured = cuda_graphs.Captured(gradient, device)
    for _ in range(3):
        static.observations.normal_()
        replayed = captured().clone()
        torch.testing.assert_close(replayed, gradient())
    optimizer, eager = (SharedRMSprop(shared, 1e-3), SharedRMSprop(SharedModel(model_of(), device)))
    before = [tensor.clone() for tensor in optimizer.tensors]
    gradients = torch.zeros_like(shared.gradient.flat)
    step = cuda_graphs.Captured(
        lambda: optimizer.apply_if_finite(gradients, 0.5), device, changes=optimizer.tensors
    )
    assert all(map(torch.equal, optimizer.tensors, before))
    for rate, value in ((1e-3, 1.0), (1e-2, float("nan")), (1e-2, 2.0), (1e-2, float("inf"))):
        optimizer.learning_rate = eager.learning_rate = rate
        gradients.fill_(value)
        norms = step(), eager.apply_if_finite(torch.full_like(gradients, value), 0.5)
        assert torch.equal(norms[0].isfinite(), norms[1].isfinite())
        assert bool(shared.flat.isfinite().all())
    for one, other in zip(optimizer.tensors, eager.tensors, strict=True):
        torch.testing.assert_close(one, other)
    generators = [torch.Generator(device).manual_seed(1) for _ in range(2)]
    act = functools.partial(shared.module.act, generator=generators[0])
    replayed_act = cuda_graphs.captured_act(
        functools.partial(shared.module.act, generator=generators[1]),
        static,
        static.actions.shape[1],
        generators[1],
    )
    with torch.inference_mode():
        for row in static.observations:
            assert torch.equal(act(row, None)[0], replayed_act(row, static.state)[0])


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("program", [ddpg, td3], ids=["ddpg", "td3"])
def test_captured_off_policy_training_equals_eager_training(
    program: Any, tmp_path: pathlib.Path
) -> None:
    parameters = []
    for compiled in (False, True):
        config = program.Config(
            env="Pendulum-v1",
            device="cuda",
            compile=compiled,
            total_timesteps=400,
            learning_starts=300,
            run_dir=str(tmp_path / str(compiled)),
            quiet=True,
        )
        checkpoint = program.train(config).checkpoint
        assert checkpoint.counters.dropped == 0
        assert checkpoint.counters.updates > 90
        parameters.append(checkpoint.parameters)
    for name, tensor in parameters[0].items():
        torch.testing.assert_close(parameters[1][name], tensor, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_gpu_run_trains(tmp_path: pathlib.Path, compiled: bool) -> None:
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
