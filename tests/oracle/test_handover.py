"""Known gradients 1, 2, 3, 4 are fed in; what reaches the optimizer is read off."""

import pytest
import torch
from torch import Tensor, nn

from hogwild_rl.hogwild.optimizers import SharedSGD
from hogwild_rl.hogwild.shared_model import SharedModel

TRUE_GRADIENTS = [1.0, 2.0, 3.0, 4.0]


class Scalar(nn.Module):
    """One parameter w; the loss k·w has gradient k."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, k: float) -> Tensor:
        """k·w."""
        return k * self.w


def test_gradients_arrive_as_they_are() -> None:
    """With η = 1 the shared parameter moves by exactly 1, 2, 3, 4."""
    shared = SharedModel(Scalar())
    replica, optimizer = shared.replica(), SharedSGD(shared, lr=1.0)
    arrived = []
    for k in TRUE_GRADIENTS:
        replica.pull()
        before = shared.module.w.item()
        optimizer.apply(replica.gradient(replica.module(k)))
        arrived.append(before - shared.module.w.item())
    assert arrived == TRUE_GRADIENTS


def test_gradients_of_two_workers_arrive_as_they_are() -> None:
    """Two workers that take turns do not see each other's gradients either."""
    shared = SharedModel(Scalar())
    replicas, optimizer = [shared.replica(), shared.replica()], SharedSGD(shared, lr=1.0)
    arrived = []
    for turn, k in enumerate(TRUE_GRADIENTS):
        replica = replicas[turn % 2]
        before = shared.module.w.item()
        optimizer.apply(replica.gradient(replica.module(k)))
        arrived.append(before - shared.module.w.item())
    assert arrived == TRUE_GRADIENTS


@pytest.mark.parametrize(
    ("zeroed", "arriving"),
    [("shared", [1.0, 3.0, 6.0, 10.0]), ("local", [1.0, 1.0, 1.0, 1.0])],
)
def test_the_classic_handover_does_not_deliver(zeroed: str, arriving: list[float]) -> None:
    """Why gradients are handed over explicitly: the pattern of torch 1 fails since torch 2.

    Its trick was that local and shared parameter hold one gradient tensor, which zero_grad filled
    with 0. Since zero_grad sets None instead, the two part ways: zeroing through the optimizer lets
    the local gradient add up, zeroing the local one leaves the optimizer with the first for ever.
    """
    shared, local = Scalar(), Scalar()
    optimizer = torch.optim.SGD(shared.parameters(), lr=1.0)
    arrived = []
    for k in TRUE_GRADIENTS:
        local.load_state_dict(shared.state_dict())
        (shared if zeroed == "shared" else local).zero_grad()
        local(k).backward()
        if shared.w.grad is None:
            shared.w._grad = local.w.grad
        before = shared.w.item()
        optimizer.step()
        arrived.append(before - shared.w.item())
    assert arrived == arriving
    assert arrived != TRUE_GRADIENTS
