"""Tests of the shared optimizers against their formulas in float64 and against torch.optim."""

import io
import math
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hogwild_rl.hogwild.optimizers import (
    SharedAdam,
    SharedOptimizer,
    SharedRMSprop,
    SharedSGD,
    largest_quotient,
)
from hogwild_rl.hogwild.shared_model import SharedModel, clip_by_global_norm_

STEPS = 50
Make = Callable[[SharedModel[Any]], SharedOptimizer]

MAKERS: dict[str, Make] = {
    "rmsprop": lambda model: SharedRMSprop(model, lr=1e-2),
    "rmsprop_momentum": lambda model: SharedRMSprop(model, lr=1e-2, momentum=0.9),
    "adam": lambda model: SharedAdam(model, lr=1e-2),
    "sgd": lambda model: SharedSGD(model, lr=1e-2),
    "sgd_momentum": lambda model: SharedSGD(model, lr=1e-2, momentum=0.9),
}
every_optimizer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def shared_model(seed: int = 0) -> SharedModel[nn.Linear]:
    """Returns a linear layer with parameters in [-1/2, 1/2), precise to 1e-6 in float32."""
    module, generator = nn.Linear(5, 3), torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5, generator)
    return SharedModel(module)


def random_gradients(steps: int = STEPS, size: int = 18) -> Tensor:
    """Returns gradients whose elements differ by four orders of magnitude."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(steps, size, generator=generator) * torch.logspace(-3, 1, size)


def applied(optimizer: SharedOptimizer, gradients: Tensor) -> Tensor:
    """Applies the gradients in turn and returns the parameters."""
    for gradient in gradients:
        optimizer.apply(gradient.clone())
    return optimizer.parameter.detach().clone()


def torch_applied(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], start: Tensor, gradients: Tensor
) -> Tensor:
    """Applies the gradients with torch's optimizer and returns the parameters."""
    parameter = nn.Parameter(start.detach().clone())
    optimizer = make([parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def state_of(optimizer: SharedOptimizer) -> dict[str, Tensor]:
    """Returns the statistics of the flat parameter."""
    return dict(optimizer.state[optimizer.parameter])


def pickled(optimizer: SharedOptimizer) -> SharedOptimizer:
    """Returns the copy that a worker process would receive."""
    copy: SharedOptimizer = pickle.loads(ForkingPickler.dumps(optimizer))
    assert copy.parameter is not optimizer.parameter
    return copy


def save_and_load(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Returns a state_dict after saving it to a file and loading it."""
    stream = io.BytesIO()
    torch.save(state_dict, stream)
    stream.seek(0)
    read: dict[str, Any] = torch.load(stream, weights_only=True)
    return read


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("eps", [0.1, 1e-5])
def test_rmsprop_equals_its_formula(momentum: float, eps: float) -> None:
    """RMSprop with momentum: g ← α g + (1−α) Δθ², m ← μ m + Δθ/√(g+ε), θ ← θ − η m."""
    model, gradients = shared_model(), random_gradients()
    theta = model.parameter.detach().numpy().astype(np.float64)
    square, buffer = np.zeros_like(theta), np.zeros_like(theta)
    for gradient in gradients.numpy().astype(np.float64):
        square = 0.95 * square + 0.05 * gradient**2
        buffer = momentum * buffer + gradient / np.sqrt(square + eps)
        theta = theta - 1e-3 * buffer
    optimizer = SharedRMSprop(model, lr=1e-3, alpha=0.95, eps=eps, momentum=momentum)
    np.testing.assert_allclose(applied(optimizer, gradients).numpy(), theta, rtol=0, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("eps", [0.1, 1e-8])
def test_rmsprop_with_eps_outside_the_root_equals_torch_s(momentum: float, eps: float) -> None:
    """eps_inside_root=False is bit-identical to torch.optim.RMSprop."""
    model, gradients = shared_model(), random_gradients()
    expected = torch_applied(
        lambda p: torch.optim.RMSprop(
            p, lr=1e-2, alpha=0.9, eps=eps, momentum=momentum, foreach=False
        ),
        model.parameter,
        gradients,
    )
    optimizer = SharedRMSprop(
        model, lr=1e-2, alpha=0.9, eps=eps, momentum=momentum, eps_inside_root=False
    )
    assert torch.equal(applied(optimizer, gradients), expected)


def test_eps_is_inside_the_root_by_default() -> None:
    """An equal ε inside and outside the root gives different steps."""
    gradients = random_gradients(steps=3)
    by_default = applied(SharedRMSprop(shared_model(), eps=0.1), gradients)
    inside = applied(SharedRMSprop(shared_model(), eps=0.1, eps_inside_root=True), gradients)
    outside = applied(SharedRMSprop(shared_model(), eps=0.1, eps_inside_root=False), gradients)
    assert torch.equal(by_default, inside)
    assert not torch.allclose(inside, outside, rtol=0, atol=1e-5)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    ("betas", "eps"), [((0.9, 0.999), 1e-8), ((0.5, 0.9), 1e-3), ((0.0, 0.99), 1e-8)]
)
def test_adam_equals_torch_s(betas: tuple[float, float], eps: float, alone: bool) -> None:
    """SharedAdam equals torch.optim.Adam to 1e-6."""
    model, gradients = shared_model(), random_gradients()
    expected = torch_applied(
        lambda p: torch.optim.Adam(p, lr=1e-2, betas=betas, eps=eps, foreach=False),
        model.parameter,
        gradients,
    )
    found = applied(SharedAdam(model, lr=1e-2, betas=betas, eps=eps, alone=alone), gradients)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_equals_torch_s(momentum: float) -> None:
    """SharedSGD is bit-identical to torch.optim.SGD."""
    model, gradients = shared_model(), random_gradients()
    expected = torch_applied(
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=momentum, foreach=False),
        model.parameter,
        gradients,
    )
    assert torch.equal(applied(SharedSGD(model, lr=1e-2, momentum=momentum), gradients), expected)


@every_optimizer
def test_a_step_changes_the_module(make: Make) -> None:
    """The optimizer updates the shared memory, not a copy of it."""
    model = shared_model()
    before = model.module.weight.detach().clone()
    make(model).apply(torch.ones(18))
    assert bool((model.module.weight != before).all())


@every_optimizer
def test_step_equals_apply(make: Make) -> None:
    """step() with the gradient in parameter.grad is bit-identical to apply()."""
    by_step, gradients = make(shared_model()), random_gradients(steps=5)
    for gradient in gradients:
        by_step.parameter.grad = gradient.clone()
        by_step.step()
    assert torch.equal(by_step.parameter, applied(make(shared_model()), gradients))


@every_optimizer
def test_apply_uses_its_argument_only(make: Make) -> None:
    """apply() ignores parameter.grad and does not change the gradient."""
    optimizer, gradients = make(shared_model()), random_gradients(steps=2)
    optimizer.parameter.grad = torch.full((18,), 100.0)
    before = gradients.clone()
    for gradient in gradients:
        optimizer.apply(gradient)
    assert torch.equal(gradients, before)
    assert torch.equal(optimizer.parameter, applied(make(shared_model()), gradients))


@every_optimizer
def test_step_without_a_gradient_has_no_effect(make: Make) -> None:
    """As in torch, step() without parameter.grad changes no parameters and statistics."""
    optimizer = make(shared_model())
    before = optimizer.parameter.detach().clone()
    optimizer.step()
    assert torch.equal(optimizer.parameter, before)
    assert all(not tensor.any() for tensor in state_of(optimizer).values())


@every_optimizer
def test_state_is_allocated_before_the_first_step_in_shared_memory(make: Make) -> None:
    """A step does not replace the tensors."""
    optimizer = make(shared_model())
    before = {name: tensor.data_ptr() for name, tensor in state_of(optimizer).items()}
    optimizer.apply(torch.ones(18))
    after = state_of(optimizer)
    assert {name: tensor.data_ptr() for name, tensor in after.items()} == before
    assert all(tensor.is_shared() for tensor in after.values())


@every_optimizer
def test_training_continues_after_saving_and_loading(make: Make) -> None:
    """Training with saving and loading is bit-identical to uninterrupted training."""
    gradients = random_gradients(steps=20)
    uninterrupted = applied(make(shared_model()), gradients)

    first = make(shared_model())
    first.learning_rate = 0.02
    second_model = shared_model(seed=9)
    second = make(second_model)
    first.learning_rate = second.learning_rate
    second_model.flat.copy_(applied(first, gradients[:10]))
    second.load_state_dict(save_and_load(first.state_dict()))
    assert torch.equal(applied(second, gradients[10:]), uninterrupted)


@every_optimizer
def test_loading_restores_the_learning_rate(make: Make) -> None:
    first, second = make(shared_model()), make(shared_model())
    first.learning_rate = 0.125
    second.load_state_dict(save_and_load(first.state_dict()))
    assert second.learning_rate == 0.125


@every_optimizer
def test_loading_writes_into_the_same_shared_memory(make: Make) -> None:
    """Other workers already have these tensors."""
    first, second = make(shared_model()), make(shared_model())
    applied(first, random_gradients(steps=5))
    held = state_of(second)
    pointers = {name: tensor.data_ptr() for name, tensor in held.items()}
    second.load_state_dict(save_and_load(first.state_dict()))
    loaded = state_of(second)
    assert {name: tensor.data_ptr() for name, tensor in loaded.items()} == pointers
    assert all(tensor.is_shared() for tensor in loaded.values())
    assert all(torch.equal(held[name], saved) for name, saved in state_of(first).items())


@every_optimizer
def test_a_pickled_optimizer_shares_parameters_and_statistics(make: Make) -> None:
    """Updates by a worker's copy are visible in the first optimizer."""
    model, gradients = shared_model(), random_gradients(steps=3)
    optimizer = make(model)
    copy = pickled(optimizer)
    alone = applied(make(shared_model()), gradients)
    assert torch.equal(applied(copy, gradients), alone)
    assert torch.equal(optimizer.parameter, alone)
    assert torch.equal(model.flat, alone)
    assert state_of(optimizer).keys() == state_of(copy).keys()
    assert all(
        torch.equal(held, state_of(copy)[name]) for name, held in state_of(optimizer).items()
    )


@pytest.mark.parametrize("alone", [False, True])
def test_adam_counts_its_steps_in_shared_memory(alone: bool) -> None:
    """Adam's t is a shared tensor, initially 0, incremented by each step."""
    optimizer = SharedAdam(shared_model(), alone=alone)
    step = state_of(optimizer)["step"]
    assert step.is_shared()
    assert float(step) == 0
    applied(optimizer, random_gradients(steps=3))
    assert float(step) == 3


def test_adam_s_bias_correction_counts_the_steps_of_all_workers() -> None:
    """Two alternating workers update the parameters as one worker does."""
    gradients = random_gradients(steps=6)
    alone = applied(SharedAdam(shared_model(), lr=0.1), gradients)
    first = SharedAdam(shared_model(), lr=0.1)
    workers = [first, pickled(first)]
    for i, gradient in enumerate(gradients):
        workers[i % 2].apply(gradient.clone())
    assert torch.equal(first.parameter, alone)


@pytest.mark.parametrize("by_step", [False, True], ids=["apply", "step"])
def test_a_scheduler_sets_the_learning_rate(by_step: bool) -> None:
    """LambdaLR, without a warning, is equivalent to assigning learning_rate."""
    gradients, rates = random_gradients(steps=4), [0.08, 0.04, 0.02, 0.01]
    expected = SharedRMSprop(shared_model())
    scheduled = SharedRMSprop(shared_model(), lr=0.08)
    scheduler = torch.optim.lr_scheduler.LambdaLR(scheduled, lambda epoch: 0.5**epoch)
    for rate, gradient in zip(rates, gradients, strict=True):
        assert scheduled.learning_rate == rate
        if by_step:
            scheduled.parameter.grad = gradient.clone()
            scheduled.step()
        else:
            scheduled.apply(gradient.clone())
        scheduler.step()
        expected.learning_rate = rate
        expected.apply(gradient.clone())
    assert torch.equal(scheduled.parameter, expected.parameter)


def test_creating_and_saving_optimizers_does_not_import_dynamo() -> None:
    """Importing torch._dynamo takes 0.9 s in every process."""
    program = """
import sys
import torch
from hogwild_rl.hogwild.shared_model import SharedModel
from hogwild_rl.hogwild.optimizers import SharedAdam, SharedRMSprop, SharedSGD
for make in (SharedAdam, SharedRMSprop, SharedSGD):
    optimizer = make(SharedModel(torch.nn.Linear(2, 2)))
    optimizer.apply(torch.ones(6))
    optimizer.load_state_dict(optimizer.state_dict())
assert "torch" in sys.modules
sys.exit("torch._dynamo" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("make", "settings", "value"),
    [
        (SharedRMSprop, {"lr": -0.25}, -0.25),
        (SharedRMSprop, {"lr": math.nan}, math.nan),
        (SharedRMSprop, {"alpha": 1.0}, 1.0),
        (SharedRMSprop, {"alpha": -0.5}, -0.5),
        (SharedRMSprop, {"eps": 0.0}, 0.0),
        (SharedRMSprop, {"eps": -1.5}, -1.5),
        (SharedRMSprop, {"momentum": 1.0}, 1.0),
        (SharedRMSprop, {"momentum": -0.125}, -0.125),
        (SharedAdam, {"lr": -0.25}, -0.25),
        (SharedAdam, {"betas": (1.0, 0.999)}, 1.0),
        (SharedAdam, {"betas": (-0.75, 0.999)}, -0.75),
        (SharedAdam, {"betas": (0.9, 1.5)}, 1.5),
        (SharedAdam, {"eps": 0.0}, 0.0),
        (SharedSGD, {"lr": -0.25}, -0.25),
        (SharedSGD, {"momentum": 1.0}, 1.0),
        (SharedSGD, {"momentum": math.nan}, math.nan),
    ],
)
def test_invalid_settings_are_rejected(
    make: Callable[..., SharedOptimizer], settings: dict[str, Any], value: float
) -> None:
    """A number out of range raises ValueError with the number."""
    with pytest.raises(ValueError, match=rf"got {re.escape(str(value))}$"):
        make(shared_model(), **settings)


@pytest.mark.parametrize("max_norm", [0.1, 5.0, 40.0, 1e6])
def test_clipping_equals_torch_s(max_norm: float) -> None:
    """Clipped gradient and norm equal those of clip_grad_norm_ to 1e-5."""
    gradient = random_gradients(steps=1)[0]
    parameter = nn.Parameter(torch.zeros(18))
    parameter.grad = gradient.clone()
    expected = float(nn.utils.clip_grad_norm_([parameter], max_norm))
    assert clip_by_global_norm_(gradient, max_norm) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=0)


def test_clipping_bounds_the_norm_and_keeps_the_direction() -> None:
    """(3, 4) clipped to 1 is (0.6, 0.8); the returned norm is 5."""
    gradient = torch.tensor([3.0, 4.0])
    assert clip_by_global_norm_(gradient, 1.0) == 5.0
    torch.testing.assert_close(gradient, torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("max_norm", [5.0, 6.0, math.inf])
def test_clipping_does_not_change_a_gradient_within_max_norm(max_norm: float) -> None:
    gradient = torch.tensor([3.0, 4.0])
    assert clip_by_global_norm_(gradient, max_norm) == 5.0
    assert torch.equal(gradient, torch.tensor([3.0, 4.0]))


@pytest.mark.parametrize("nonfinite", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("max_norm", [0.5, math.inf])
def test_a_non_finite_gradient_has_a_non_finite_norm(nonfinite: float, max_norm: float) -> None:
    gradient = torch.tensor([1.0, nonfinite, 2.0])
    assert not math.isfinite(clip_by_global_norm_(gradient, max_norm))


@every_optimizer
@pytest.mark.parametrize("rate_as_tensor", [False, True])
def test_apply_if_finite_equals_clipping_and_apply(make: Make, rate_as_tensor: bool) -> None:
    """Also with the learning rate in a tensor, as on a GPU."""
    expected, optimizer = make(shared_model()), make(shared_model())
    if rate_as_tensor:
        optimizer._rate = torch.tensor(0.0)
    for number, gradient in enumerate(random_gradients()):
        for each in (expected, optimizer):
            each.learning_rate = 1e-2 / (1 + number)
        norm = clip_by_global_norm_(clipped := gradient.clone(), 5.0)
        expected.apply(clipped)
        assert float(optimizer.apply_if_finite(gradient, 5.0)) == pytest.approx(norm)
        torch.testing.assert_close(gradient, clipped)
    for wanted, tensor in zip(expected.tensors, optimizer.tensors, strict=True):
        torch.testing.assert_close(tensor, wanted)


@every_optimizer
@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_apply_if_finite_ignores_a_non_finite_gradient(make: Make, value: float) -> None:
    """One element is non-finite, or the norm overflows float32."""
    optimizer = make(shared_model())
    optimizer.apply(random_gradients()[0])
    before = [tensor.clone() for tensor in optimizer.tensors]
    gradient = torch.full((18,), 1.0 if value != 3e38 else value)
    gradient[3] = value
    assert not optimizer.apply_if_finite(gradient, 0.5).isfinite()
    for tensor, unchanged in zip(optimizer.tensors, before, strict=True):
        assert torch.equal(tensor, unchanged)
    assert not gradient.any()


def test_adam_with_a_float32_step_count_equals_torch_s() -> None:
    """Torch's fused GPU kernels require a float32 step count."""
    gradients = random_gradients()
    optimizer = SharedAdam(shared_model(), lr=1e-2, alone=True)
    optimizer.state[optimizer.parameter]["step"] = torch.zeros(())
    for gradient in gradients:
        assert optimizer.apply_if_finite(gradient.clone()).isfinite()
    expected = torch_applied(
        lambda p: torch.optim.Adam(p, lr=1e-2), shared_model().parameter, gradients
    )
    torch.testing.assert_close(optimizer.parameter.detach(), expected)


def test_loading_rejects_statistics_of_another_optimizer_and_changes_nothing() -> None:
    """Shared tensors and settings are unchanged."""
    optimizer = SharedRMSprop(shared_model(), lr=0.1)
    state = optimizer.state[optimizer.parameter]["square_avg"]
    foreign = SharedSGD(shared_model(), lr=9.0, momentum=0.9).state_dict()
    with pytest.raises(ValueError, match=r"expected {'square_avg': \[18\]}"):
        optimizer.load_state_dict(foreign)
    assert optimizer.state[optimizer.parameter]["square_avg"] is state
    assert optimizer.learning_rate == 0.1
    smaller = SharedRMSprop(SharedModel(nn.Linear(1, 1))).state_dict()
    with pytest.raises(ValueError, match=r"saved state has {'square_avg': \[2\]}"):
        optimizer.load_state_dict(smaller)


# Data races: another worker writes the statistics between two operations of a step.


def largest_step_during_race(optimizer: Any, statistic: str, steps: int) -> float:
    """Returns the largest step of any parameter while a thread repeatedly zeroes a statistic."""
    state, parameter = optimizer.state[optimizer.parameter], optimizer.parameter
    generator, stop, largest = torch.Generator().manual_seed(0), threading.Event(), 0.0

    def zero_statistic() -> None:
        while not stop.is_set():
            state[statistic].zero_()

    other = threading.Thread(target=zero_statistic)
    other.start()
    try:
        for _ in range(steps):
            before = parameter.detach().clone()
            optimizer.apply(torch.randn(parameter.shape, generator=generator))
            largest = max(largest, float((parameter.detach() - before).abs().max()))
    finally:
        stop.set()
        other.join()
    return largest


@pytest.mark.parametrize(
    ("make", "statistic", "bound"),
    [
        (lambda m: SharedRMSprop(m, lr=1.0, eps=1e-20), "square_avg", 10.0),
        (lambda m: SharedRMSprop(m, lr=1.0, eps=1e-20, eps_inside_root=False), "square_avg", 10.0),
        (lambda m: SharedAdam(m, lr=1.0, eps=1e-20), "exp_avg_sq", 7.3),
    ],
    ids=["RMSprop", "RMSprop, eps outside", "Adam"],
)
def test_a_race_does_not_exceed_the_largest_step_of_one_worker(
    make: Any, statistic: str, bound: float
) -> None:
    optimizer = make(SharedModel(nn.Linear(300, 300)))
    assert 0 < largest_step_during_race(optimizer, statistic, steps=150) <= bound * 1.001


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99), (0.9, 0.82)])
def test_largest_quotient_is_adam_s_largest_step(betas: tuple[float, float]) -> None:
    """The gradients for which Cauchy–Schwarz is an equality reach it; no others exceed it."""
    rng = np.random.default_rng(0)
    for steps in (1, 2, 5, 30):
        w, u = ((1 - b) * b ** np.arange(steps)[::-1] / (1 - b**steps) for b in betas)
        bound = largest_quotient(*betas, steps)
        worst = w / u
        assert abs(w @ worst) / math.sqrt(u @ worst**2) == pytest.approx(bound, rel=1e-9)
        for _ in range(200):
            random = rng.standard_cauchy(steps)
            assert abs(w @ random) / math.sqrt(u @ random**2) <= bound * (1 + 1e-12)
