"""Tests that the gradients 1, 2, 3, 4 of a replica reach the shared optimizer unchanged."""

import pytest
import torch
from torch import Tensor, nn

from hogwild_rl.hogwild.optimizers import SharedSGD
from hogwild_rl.hogwild.shared_model import SharedModel

TRUE_GRADIENTS = [1.0, 2.0, 3.0, 4.0]


class Scalar(nn.Module):
    """Module with one parameter w; the loss k·w has the gradient k."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, k: float) -> Tensor:
        """Returns k·w."""
        return k * self.w


def test_gradients_of_one_worker_are_applied_unchanged() -> None:
    """With η = 1 the shared parameter changes by exactly 1, 2, 3, 4."""
    shared = SharedModel(Scalar())
    replica, optimizer = shared.replica(), SharedSGD(shared, lr=1.0)
    applied = []
    for k in TRUE_GRADIENTS:
        replica.pull()
        before = shared.module.w.item()
        optimizer.apply(replica.gradient(replica.module(k)))
        applied.append(before - shared.module.w.item())
    assert applied == TRUE_GRADIENTS


def test_gradients_of_two_workers_are_applied_unchanged() -> None:
    """Gradients of alternating workers do not accumulate."""
    shared = SharedModel(Scalar())
    replicas, optimizer = [shared.replica(), shared.replica()], SharedSGD(shared, lr=1.0)
    applied = []
    for i, k in enumerate(TRUE_GRADIENTS):
        replica = replicas[i % 2]
        before = shared.module.w.item()
        optimizer.apply(replica.gradient(replica.module(k)))
        applied.append(before - shared.module.w.item())
    assert applied == TRUE_GRADIENTS


@pytest.mark.parametrize(
    ("zeroed", "expected"),
    [("shared", [1.0, 3.0, 6.0, 10.0]), ("local", [1.0, 1.0, 1.0, 1.0])],
)
def test_sharing_the_grad_attribute_applies_wrong_gradients(
    zeroed: str, expected: list[float]
) -> None:
    """The usual A3C pattern of torch 1 fails since torch 2, so gradients are passed explicitly.

    In torch 1 local and shared parameter had one gradient tensor, which zero_grad filled with 0.
    In torch 2 zero_grad sets None: zeroing the shared gradient lets the local one accumulate;
    zeroing the local one leaves the first gradient in the optimizer.
    """
    shared, local = Scalar(), Scalar()
    optimizer = torch.optim.SGD(shared.parameters(), lr=1.0)
    applied = []
    for k in TRUE_GRADIENTS:
        local.load_state_dict(shared.state_dict())
        (shared if zeroed == "shared" else local).zero_grad()
        local(k).backward()
        if shared.w.grad is None:
            shared.w._grad = local.w.grad
        before = shared.w.item()
        optimizer.step()
        applied.append(before - shared.w.item())
    assert applied == expected
    assert applied != TRUE_GRADIENTS
