"""Tests of SharedModel, one flat tensor with all parameters, and of its replicas."""

import pathlib
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch import Tensor, nn

from hogwild_rl.hogwild.shared_model import Replica, SharedModel


class Mixed(nn.Module):
    """Trainable, frozen and trainable layer, and a parameter without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.last = nn.Linear(4, 2, bias=False)
        self.unused = nn.Parameter(torch.ones(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.frozen(self.first(x).tanh())
        output: Tensor = self.last(hidden.tanh())
        return output


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.b(self.a(x).tanh())
        return output


class Sum(nn.Module):
    """Scalar, empty and three-dimensional parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scalar = nn.Parameter(torch.tensor(2.0))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.grid = nn.Parameter(torch.arange(24.0).reshape(2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x.sum() * self.scalar + self.empty.sum() + self.grid.square().sum()


MODULES: dict[str, Callable[[], nn.Module]] = {"mixed": Mixed, "tied": Tied, "sum": Sum}
TRAINABLE = {"mixed": 16 + 8 + 6, "tied": 9 + 3 + 3, "sum": 1 + 24}
FROZEN = {"mixed": 20, "tied": 0, "sum": 0}
every_module = pytest.mark.parametrize("name", MODULES)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seeds torch's global generator, which initializes the layers."""
    torch.manual_seed(0)


def batch() -> Tensor:
    """Four rows of input."""
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(1))


def loss_of(module: nn.Module) -> Tensor:
    """Sum of squares of the module's outputs."""
    outputs: Tensor = module(batch())
    return outputs.square().sum()


def copies(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters by name."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def equal(module: nn.Module, expected: dict[str, Tensor]) -> bool:
    """Returns True if the parameters are equal bit for bit."""
    return all(torch.equal(p, expected[name]) for name, p in module.named_parameters())


def in_storage_of(view: Tensor, whole: Tensor) -> bool:
    """Returns True if a tensor's memory is within that of another."""
    start, stop = whole.data_ptr(), whole.data_ptr() + whole.nbytes
    return start <= view.data_ptr() and view.data_ptr() + view.nbytes <= stop


@every_module
def test_parameters_become_views_of_one_shared_tensor(name: str) -> None:
    """Every parameter is contiguous, unchanged and in the flat tensor."""
    module = MODULES[name]()
    before = copies(module)
    shared = SharedModel(module)
    assert shared.module is module
    assert shared.flat.is_shared()
    assert shared.flat.dtype == torch.float32
    assert shared.flat.shape == (TRAINABLE[name] + FROZEN[name],)
    assert equal(module, before)
    for parameter in module.parameters():
        assert parameter.is_contiguous()
        if parameter.numel():
            assert in_storage_of(parameter, shared.flat)


@every_module
def test_flat_tensor_has_each_element_once(name: str) -> None:
    """Trainable parameters are the first part without gaps, frozen ones the rest."""
    shared = SharedModel(MODULES[name]())
    shared.flat.copy_(torch.arange(float(len(shared.flat))))
    trainable = [p for p in shared.module.parameters() if p.requires_grad]
    frozen = [p for p in shared.module.parameters() if not p.requires_grad]
    first = torch.cat([p.detach().reshape(-1) for p in trainable]).sort().values
    assert torch.equal(first, torch.arange(float(TRAINABLE[name])))
    rest = torch.cat([torch.zeros(0), *(p.reshape(-1) for p in frozen)]).sort().values
    assert torch.equal(rest, torch.arange(float(FROZEN[name])) + TRAINABLE[name])


@every_module
def test_parameter_is_the_trainable_part_of_the_flat_tensor(name: str) -> None:
    shared = SharedModel(MODULES[name]())
    assert isinstance(shared.parameter, nn.Parameter)
    assert shared.parameter.shape == (TRAINABLE[name],)
    assert shared.parameter.is_shared()
    assert shared.parameter.data_ptr() == shared.flat.data_ptr()


@every_module
def test_replica_is_an_equal_copy_in_separate_memory(name: str) -> None:
    """A replica's parameters are views of its own flat tensor."""
    shared = SharedModel(MODULES[name]())
    replica = shared.replica()
    assert isinstance(replica, Replica)
    assert type(replica.module) is type(shared.module)
    assert equal(replica.module, copies(shared.module))
    assert torch.equal(loss_of(replica.module), loss_of(shared.module))
    assert torch.equal(replica.flat, shared.flat)
    assert not in_storage_of(replica.flat, shared.flat)
    for parameter in replica.module.parameters():
        if parameter.numel():
            assert in_storage_of(parameter, replica.flat)


@every_module
def test_replica_changes_only_by_pull(name: str) -> None:
    """`pull` copies the trainable parameters; frozen ones, such as running moments, stay."""
    shared = SharedModel(MODULES[name]())
    replica = shared.replica()
    before = copies(replica.module)
    shared.flat.add_(1)
    assert equal(replica.module, before)
    replica.pull()
    trainable = {key for key, p in replica.module.named_parameters() if p.requires_grad}
    expected = {key: value + (key in trainable) for key, value in before.items()}
    assert equal(replica.module, expected)


def test_replicas_do_not_write_to_the_shared_model() -> None:
    shared = SharedModel(Mixed())
    first, second = shared.replica(), shared.replica()
    before = copies(shared.module)
    first.flat.zero_()
    assert equal(shared.module, before)
    assert equal(second.module, before)


def test_tied_weights_stay_tied() -> None:
    """The module and the replica have one parameter with two names, which is counted once."""
    shared = SharedModel(Tied())
    assert shared.module.a.weight is shared.module.b.weight
    module = shared.replica().module
    assert module.a.weight is module.b.weight
    assert len(shared.flat) == 9 + 3 + 3


def test_step_on_the_parameter_does_not_change_frozen_ones() -> None:
    shared = SharedModel(Mixed())
    before = copies(shared.module)
    with torch.no_grad():
        shared.parameter.sub_(1)
    for name, parameter in shared.module.named_parameters():
        change = 1 if parameter.requires_grad else 0
        assert torch.equal(parameter, before[name] - change)


def test_replica_keeps_requires_grad() -> None:
    shared = SharedModel(Mixed())
    expected = {name: p.requires_grad for name, p in shared.module.named_parameters()}
    found = {name: p.requires_grad for name, p in shared.replica().module.named_parameters()}
    assert found == expected
    assert not all(found.values())


@every_module
def test_gradient_has_the_layout_of_the_parameter(name: str) -> None:
    """Subtracting `gradient` from `parameter` subtracts from each parameter its own gradient."""
    shared = SharedModel(MODULES[name]())
    replica, before = shared.replica(), copies(shared.module)
    trainable = {n: p for n, p in shared.module.named_parameters() if p.requires_grad}
    expected = torch.autograd.grad(
        loss_of(shared.module), list(trainable.values()), allow_unused=True
    )
    gradient = replica.gradient(loss_of(replica.module))
    assert gradient.shape == shared.parameter.shape
    with torch.no_grad():
        shared.parameter.sub_(gradient)
    for (key, parameter), wanted in zip(trainable.items(), expected, strict=True):
        assert torch.equal(parameter, before[key] - (0 if wanted is None else wanted))


def test_unused_parameter_has_gradient_zero() -> None:
    """It is also 0 after a loss in which the parameter was used."""
    replica = SharedModel(Mixed()).replica()
    total = sum(p.sum() for p in replica.module.parameters() if p.requires_grad)
    assert isinstance(total, Tensor)
    assert torch.equal(replica.gradient(total), torch.ones(30))
    gradient = replica.gradient(loss_of(replica.module))
    assert int((gradient == 0).sum()) == replica.module.unused.numel()


def test_gradients_do_not_accumulate() -> None:
    """Two calls with the same loss give the same gradient."""
    replica = SharedModel(Mixed()).replica()
    first = replica.gradient(loss_of(replica.module)).clone()
    assert first.any()
    assert torch.equal(replica.gradient(loss_of(replica.module)), first)


def test_gradient_does_not_include_an_earlier_backward() -> None:
    """`backward` has filled the `grad` of the parameters."""
    replica = SharedModel(Mixed()).replica()
    first = replica.gradient(loss_of(replica.module)).clone()
    loss_of(replica.module).backward()
    assert torch.equal(replica.gradient(loss_of(replica.module)), first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_raise(dtype: torch.dtype) -> None:
    """The message has the parameter's name and dtype."""
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).to(dtype))
    with pytest.raises(ValueError, match=rf"1\.weight.*{dtype}"):
        SharedModel(module)


def test_other_devices_raise() -> None:
    """The message has the parameter's name and device."""
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match=r"1\.weight.*meta"):
        SharedModel(module)


def test_buffers_raise() -> None:
    """The message has the buffers' names."""
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=r"1\.running_mean.*1\.running_var"):
        SharedModel(module)


@pytest.mark.parametrize(
    "module", [nn.Linear(2, 2).requires_grad_(False), nn.Tanh()], ids=["frozen", "empty"]
)
def test_module_without_trainable_parameters_raises(module: nn.Module) -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        SharedModel(module)


@every_module
def test_pickled_model_shares_memory(name: str) -> None:
    """Writes to the copy's flat tensor, parameter or module change the original, and vice versa."""
    shared = SharedModel(MODULES[name]())
    copy: SharedModel[nn.Module] = pickle.loads(ForkingPickler.dumps(shared))
    assert copy.module is not shared.module
    assert equal(copy.module, copies(shared.module))
    with torch.no_grad():
        copy.flat.fill_(3)
        assert equal(
            shared.module, {key: torch.full_like(v, 3) for key, v in copies(copy.module).items()}
        )
        copy.parameter.fill_(4)
        assert bool((shared.parameter == 4).all())
        next(copy.module.parameters()).fill_(5)
        assert bool((next(shared.module.parameters()) == 5).all())
        shared.flat.fill_(6)
    assert equal(copy.module, copies(shared.module))
    assert torch.equal(copy.replica().flat, shared.flat)


def test_pickled_model_keeps_tied_and_frozen_parameters() -> None:
    tied: SharedModel[Tied] = pickle.loads(ForkingPickler.dumps(SharedModel(Tied())))
    assert tied.module.a.weight is tied.module.b.weight
    mixed: SharedModel[Mixed] = pickle.loads(ForkingPickler.dumps(SharedModel(Mixed())))
    assert not mixed.module.frozen.weight.requires_grad
    assert mixed.module.first.weight.requires_grad


@pytest.mark.skipif(not pathlib.Path("/proc/self/fd").is_dir(), reason="counts files in /proc")
def test_deep_model_is_pickled_with_few_file_descriptors() -> None:
    """Fifty layers are one shared tensor, without a descriptor or data per parameter."""
    layers = [nn.Linear(64, 64) for _ in range(50)]
    shared = SharedModel(nn.Sequential(*layers))
    pickle.loads(ForkingPickler.dumps(SharedModel(nn.Linear(1, 1))))  # opens shared descriptors
    before = open_files()
    pickled = ForkingPickler.dumps(shared)
    assert open_files() - before <= 4
    assert len(pickled) < shared.flat.nbytes / 20
    copy: SharedModel[nn.Sequential] = pickle.loads(pickled)
    assert equal(copy.module, copies(shared.module))


def open_files() -> int:
    """Number of open file descriptors of this process."""
    return len(list(pathlib.Path("/proc/self/fd").iterdir()))
