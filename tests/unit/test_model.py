"""One flat shared tensor under a module, and the copies that workers compute with."""

import pathlib
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch import Tensor, nn

from hogwild_rl.hogwild.shared_model import Replica, SharedModel


class Mixed(nn.Module):
    """A trainable, a frozen and again a trainable layer, and one that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.last = nn.Linear(4, 2, bias=False)
        self.unused = nn.Parameter(torch.ones(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Through the three layers."""
        hidden: Tensor = self.frozen(self.first(x).tanh())
        found: Tensor = self.last(hidden.tanh())
        return found


class Tied(nn.Module):
    """Two layers with one weight between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        """Through both layers."""
        found: Tensor = self.b(self.a(x).tanh())
        return found


class Sum(nn.Module):
    """A scalar parameter among others, and one without elements."""

    def __init__(self) -> None:
        super().__init__()
        self.scalar = nn.Parameter(torch.tensor(2.0))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.grid = nn.Parameter(torch.arange(24.0).reshape(2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        """All of it, added up."""
        return x.sum() * self.scalar + self.empty.sum() + self.grid.square().sum()


MODULES: dict[str, Callable[[], nn.Module]] = {"mixed": Mixed, "tied": Tied, "sum": Sum}
TRAINABLE = {"mixed": 16 + 8 + 6, "tied": 9 + 3 + 3, "sum": 1 + 24}
FROZEN = {"mixed": 20, "tied": 0, "sum": 0}
every_module = pytest.mark.parametrize("name", MODULES)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Layers draw their first weights from torch's global stream."""
    torch.manual_seed(0)


def batch() -> Tensor:
    """Four rows of input."""
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(1))


def loss_of(module: nn.Module) -> Tensor:
    """Some scalar of the module's outputs."""
    outputs: Tensor = module(batch())
    return outputs.square().sum()


def copies(module: nn.Module) -> dict[str, Tensor]:
    """The parameters' values by name."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def equal(module: nn.Module, expected: dict[str, Tensor]) -> bool:
    """Whether the module has these parameters, bit for bit."""
    return all(torch.equal(p, expected[name]) for name, p in module.named_parameters())


def in_storage_of(view: Tensor, whole: Tensor) -> bool:
    """Whether a tensor lies within another's memory."""
    start, stop = whole.data_ptr(), whole.data_ptr() + whole.nbytes
    return start <= view.data_ptr() and view.data_ptr() + view.nbytes <= stop


@every_module
def test_parameters_become_views_of_one_shared_tensor(name: str) -> None:
    """Every parameter lies, contiguous and unchanged, within one flat tensor in shared memory."""
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
def test_the_flat_tensor_holds_each_element_once(name: str) -> None:
    """Trainable parameters fill the first part without gaps, frozen ones the rest."""
    shared = SharedModel(MODULES[name]())
    shared.flat.copy_(torch.arange(float(len(shared.flat))))
    trainable = [p for p in shared.module.parameters() if p.requires_grad]
    frozen = [p for p in shared.module.parameters() if not p.requires_grad]
    found = torch.cat([p.detach().reshape(-1) for p in trainable]).sort().values
    assert torch.equal(found, torch.arange(float(TRAINABLE[name])))
    rest = torch.cat([torch.zeros(0), *(p.reshape(-1) for p in frozen)]).sort().values
    assert torch.equal(rest, torch.arange(float(FROZEN[name])) + TRAINABLE[name])


@every_module
def test_the_parameter_is_the_trainable_part(name: str) -> None:
    """`parameter` is shared memory of all that is trained and of nothing that is frozen."""
    shared = SharedModel(MODULES[name]())
    assert isinstance(shared.parameter, nn.Parameter)
    assert shared.parameter.shape == (TRAINABLE[name],)
    assert shared.parameter.is_shared()
    assert shared.parameter.data_ptr() == shared.flat.data_ptr()


@every_module
def test_a_replica_starts_equal_in_memory_of_its_own(name: str) -> None:
    """A replica computes the same at first, and its parameters are views of its flat tensor."""
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
def test_a_replica_changes_only_when_it_pulls(name: str) -> None:
    """What is written to the shared parameters reaches a replica with its next pull, and all of it
    does, the frozen ones too.
    """
    shared = SharedModel(MODULES[name]())
    replica = shared.replica()
    before = copies(replica.module)
    shared.flat.add_(1)
    assert equal(replica.module, before)
    replica.pull()
    assert equal(replica.module, copies(shared.module))
    assert equal(replica.module, {key: value + 1 for key, value in before.items()})


def test_replicas_do_not_write_to_the_shared_model() -> None:
    """A replica is a copy: what is done to it stays with it."""
    shared = SharedModel(Mixed())
    first, second = shared.replica(), shared.replica()
    before = copies(shared.module)
    first.flat.zero_()
    assert equal(shared.module, before)
    assert equal(second.module, before)


def test_tied_weights_stay_tied() -> None:
    """One weight under two names is one parameter in module and replica, counted once."""
    shared = SharedModel(Tied())
    assert shared.module.a.weight is shared.module.b.weight
    module = shared.replica().module
    assert module.a.weight is module.b.weight
    assert len(shared.flat) == 9 + 3 + 3


def test_a_frozen_parameter_is_not_moved_by_a_step() -> None:
    """A step on `parameter` moves all that is trained, and nothing that is frozen."""
    shared = SharedModel(Mixed())
    before = copies(shared.module)
    with torch.no_grad():
        shared.parameter.sub_(1)
    for name, parameter in shared.module.named_parameters():
        moved = 1 if parameter.requires_grad else 0
        assert torch.equal(parameter, before[name] - moved)


def test_a_frozen_parameter_stays_frozen_in_the_replica() -> None:
    """The replica asks for the same gradients as the module."""
    shared = SharedModel(Mixed())
    wanted = {name: p.requires_grad for name, p in shared.module.named_parameters()}
    found = {name: p.requires_grad for name, p in shared.replica().module.named_parameters()}
    assert found == wanted
    assert not all(found.values())


@every_module
def test_the_gradient_lies_as_the_parameter_does(name: str) -> None:
    """Subtracting `gradient` from `parameter` takes from each parameter its own gradient."""
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


def test_a_parameter_the_loss_does_not_reach_has_gradient_zero() -> None:
    """It is 0 after a loss that reached it, too: nothing stays of an earlier gradient."""
    replica = SharedModel(Mixed()).replica()
    everywhere = sum(p.sum() for p in replica.module.parameters() if p.requires_grad)
    assert isinstance(everywhere, Tensor)
    assert torch.equal(replica.gradient(everywhere), torch.ones(30))
    gradient = replica.gradient(loss_of(replica.module))
    assert int((gradient == 0).sum()) == replica.module.unused.numel()


def test_gradients_do_not_accumulate() -> None:
    """The same loss twice has the same gradient twice."""
    replica = SharedModel(Mixed()).replica()
    first = replica.gradient(loss_of(replica.module)).clone()
    assert first.any()
    assert torch.equal(replica.gradient(loss_of(replica.module)), first)


def test_the_gradient_does_not_grow_with_an_earlier_backward() -> None:
    """What lies in the parameters' grad from elsewhere is left out."""
    replica = SharedModel(Mixed()).replica()
    first = replica.gradient(loss_of(replica.module)).clone()
    loss_of(replica.module).backward()
    assert torch.equal(replica.gradient(loss_of(replica.module)), first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_precisions_are_refused(dtype: torch.dtype) -> None:
    """A parameter that is not float32 is named, with its type."""
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).to(dtype))
    with pytest.raises(ValueError, match=rf"1\.weight.*{dtype}"):
        SharedModel(module)


def test_other_devices_are_refused() -> None:
    """A parameter that is not on the CPU is named, with its device."""
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match=r"1\.weight.*meta"):
        SharedModel(module)


def test_buffers_are_refused() -> None:
    """Running statistics are named."""
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=r"1\.running_mean.*1\.running_var"):
        SharedModel(module)


@pytest.mark.parametrize(
    "module", [nn.Linear(2, 2).requires_grad_(False), nn.Tanh()], ids=["frozen", "empty"]
)
def test_nothing_to_train_is_refused(module: nn.Module) -> None:
    """A module without a trainable parameter is a mistake."""
    with pytest.raises(ValueError, match="no trainable parameter"):
        SharedModel(module)


@every_module
def test_a_pickled_model_is_the_same_memory(name: str) -> None:
    """What a worker's copy writes, through flat, parameter or module, the first model shows."""
    shared = SharedModel(MODULES[name]())
    sent: SharedModel[nn.Module] = pickle.loads(ForkingPickler.dumps(shared))
    assert sent.module is not shared.module
    assert equal(sent.module, copies(shared.module))
    with torch.no_grad():
        sent.flat.fill_(3)
        assert equal(
            shared.module, {key: torch.full_like(v, 3) for key, v in copies(sent.module).items()}
        )
        sent.parameter.fill_(4)
        assert bool((shared.parameter == 4).all())
        next(sent.module.parameters()).fill_(5)
        assert bool((next(shared.module.parameters()) == 5).all())
        shared.flat.fill_(6)
    assert equal(sent.module, copies(shared.module))
    assert torch.equal(sent.replica().flat, shared.flat)


def test_a_pickled_model_keeps_ties_and_freezing() -> None:
    """Tied stays tied and frozen stays frozen on the way to a worker."""
    tied: SharedModel[Tied] = pickle.loads(ForkingPickler.dumps(SharedModel(Tied())))
    assert tied.module.a.weight is tied.module.b.weight
    mixed: SharedModel[Mixed] = pickle.loads(ForkingPickler.dumps(SharedModel(Mixed())))
    assert not mixed.module.frozen.weight.requires_grad
    assert mixed.module.first.weight.requires_grad


@pytest.mark.skipif(not pathlib.Path("/proc/self/fd").is_dir(), reason="counts files in /proc")
def test_a_deep_model_travels_with_few_file_descriptors() -> None:
    """Fifty layers are sent as one shared tensor: no parameter brings a descriptor or its data."""
    layers = [nn.Linear(64, 64) for _ in range(50)]
    shared = SharedModel(nn.Sequential(*layers))
    pickle.loads(ForkingPickler.dumps(SharedModel(nn.Linear(1, 1))))  # opens what all share
    before = open_files()
    pickled = ForkingPickler.dumps(shared)
    assert open_files() - before <= 4
    assert len(pickled) < shared.flat.nbytes / 20
    sent: SharedModel[nn.Sequential] = pickle.loads(pickled)
    assert equal(sent.module, copies(shared.module))


def open_files() -> int:
    """File descriptors of this process."""
    return len(list(pathlib.Path("/proc/self/fd").iterdir()))
