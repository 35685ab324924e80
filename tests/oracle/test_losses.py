"""Tests of the actor-critic loss against a loop in float64, and of its gradients."""

from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from hogwild_rl.learn import losses
from hogwild_rl.models.actor_critic import ActorCritic, Architecture

T, B = 5, 3
VF_COEF, ENT_COEF = 0.5, 0.01
NAMES = ("log_probs", "entropies", "values", "advantages", "targets")


def random_batch(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Returns random inputs of the loss; some entries are invalid."""
    generator = torch.Generator().manual_seed(0)
    batch = {name: torch.randn(T, B, generator=generator, dtype=dtype) for name in NAMES}
    batch["valid"] = torch.ones(T, B, dtype=torch.bool)
    batch["valid"][[0, 2, 2, 4], [1, 0, 2, 1]] = False
    return batch


def loss_of(batch: dict[str, Tensor]) -> losses.PolicyLoss:
    """Returns the loss with VF_COEF and ENT_COEF."""
    return losses.a2c_loss(**batch, vf_coef=VF_COEF, ent_coef=ENT_COEF)


def gradients_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the gradients of the total with respect to NAMES[:3]."""
    names = NAMES[:3]
    leaves = {name: batch[name].clone().requires_grad_() for name in names}
    gradients = torch.autograd.grad(loss_of({**batch, **leaves}).total, list(leaves.values()))
    return dict(zip(names, gradients, strict=True))


def loss_by_loop(batch: dict[str, Tensor]) -> tuple[float, float, float, float]:
    """Returns total, policy, value and entropy terms as means of Python floats."""
    policy = value = entropy = 0.0
    count = 0
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    for t, b in np.ndindex(T, B):
        if arrays["valid"][t, b]:
            policy -= float(arrays["advantages"][t, b]) * float(arrays["log_probs"][t, b])
            value += (float(arrays["targets"][t, b]) - float(arrays["values"][t, b])) ** 2
            entropy += float(arrays["entropies"][t, b])
            count += 1
    policy, value, entropy = policy / count, value / count, entropy / count
    return policy + VF_COEF * value - ENT_COEF * entropy, policy, value, entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_equals_a_loop(dtype: torch.dtype) -> None:
    """Every term is a mean over the valid entries; the total is their weighted sum."""
    batch = random_batch(dtype)
    loss = loss_of(batch)
    found = [part.item() for part in (loss.total, loss.policy, loss.value, loss.entropy)]
    assert found == pytest.approx(loss_by_loop(batch), abs=1e-6)


def test_gradients_equal_closed_forms() -> None:
    """∂/∂log π = −A/n, ∂/∂V = 2 c_v (V − R)/n, ∂/∂H = −β/n at the n valid entries, else 0."""
    batch = random_batch()
    valid = batch["valid"]
    n, found = int(valid.sum()), gradients_of(batch)
    expected = {
        "log_probs": -batch["advantages"] / n,
        "values": 2 * VF_COEF * (batch["values"] - batch["targets"]) / n,
        "entropies": torch.full_like(batch["entropies"], -ENT_COEF / n),
    }
    for name, gradient in expected.items():
        masked = torch.where(valid, gradient, 0)
        torch.testing.assert_close(found[name], masked, rtol=0, atol=1e-7)
        assert bool((found[name][~valid] == 0).all())


@pytest.mark.parametrize("huge", [1e6, 1e30])
def test_invalid_entries_are_ignored(huge: float) -> None:
    """Values of invalid entries do not change the loss and its gradients."""
    batch = random_batch(torch.float32)
    changed = {
        name: torch.where(batch["valid"], batch[name], -huge if name == "targets" else huge)
        for name in NAMES
    }
    changed["valid"] = batch["valid"]
    assert loss_of(changed).total.item() == loss_of(batch).total.item()
    expected = gradients_of(batch)
    for name, gradient in gradients_of(changed).items():
        assert torch.equal(gradient, expected[name])


@pytest.mark.parametrize("axis", [0, 1])
def test_losses_are_means_not_sums(axis: int) -> None:
    """A batch repeated along an axis has the same loss; its gradient is split between copies."""
    once = random_batch()
    twice = {name: torch.cat([tensor, tensor], axis) for name, tensor in once.items()}
    for name in ("total", "policy", "value", "entropy"):
        found, expected = (getattr(loss_of(each), name) for each in (twice, once))
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    expected_gradients = gradients_of(once)
    for name, gradient in gradients_of(twice).items():
        halves = gradient.chunk(2, axis)
        torch.testing.assert_close(halves[0] + halves[1], expected_gradients[name])


def test_loss_and_gradients_are_zero_without_valid_entries() -> None:
    """They are 0, not NaN."""
    batch = random_batch()
    batch["valid"] = torch.zeros_like(batch["valid"])
    loss = loss_of(batch)
    assert [each.item() for each in (loss.total, loss.policy, loss.value, loss.entropy)] == [0] * 4
    assert all(bool((gradient == 0).all()) for gradient in gradients_of(batch).values())


def small_model(shared_trunk: bool) -> ActorCritic:
    """Returns an actor-critic in float64 whose policy is not close to uniform."""
    model = ActorCritic(
        gymnasium.spaces.Box(-1, 1, (3,)),
        gymnasium.spaces.Discrete(4),
        Architecture(hidden=(5,), shared_trunk=shared_trunk),
        torch.Generator().manual_seed(0),
    ).double()
    weight = model.policy_head.logits.weight
    torch.nn.init.orthogonal_(weight, generator=torch.Generator().manual_seed(1))
    return model


def loss_of_model(model: ActorCritic) -> Callable[[], Tensor]:
    """Returns the loss of a rollout as a function of the parameters; the targets are constant."""
    batch, generator = random_batch(), torch.Generator().manual_seed(2)
    observations = torch.randn(T + 1, B, 3, generator=generator, dtype=torch.float64)
    actions = torch.randint(4, (T, B), generator=generator)

    def loss() -> Tensor:
        policy, values = model(observations)
        return losses.a2c_loss(
            policy.log_prob(actions),
            policy.entropy(),
            values[:-1],
            batch["advantages"],
            batch["targets"],
            batch["valid"],
            vf_coef=VF_COEF,
            ent_coef=0.1,
        ).total

    return loss


def central_differences(loss: Callable[[], Tensor], parameter: Tensor, h: float = 1e-5) -> Tensor:
    """(L(θ + h) − L(θ − h)) / 2h, element by element."""
    differences, flat = torch.zeros_like(parameter), parameter.data.view(-1)
    for index, middle in enumerate(flat.tolist()):
        flat[index] = middle + h
        above = loss().item()
        flat[index] = middle - h
        below = loss().item()
        flat[index] = middle
        differences.view(-1)[index] = (above - below) / (2 * h)
    return differences


@pytest.mark.parametrize("shared_trunk", [False, True])
def test_the_gradient_of_the_model_equals_central_differences(shared_trunk: bool) -> None:
    """Gradient through network, distribution and loss."""
    model = small_model(shared_trunk)
    loss, parameters = loss_of_model(model), list(model.parameters())
    gradients = torch.autograd.grad(loss(), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            expected = central_differences(loss, parameter)
            assert bool(gradient.any())
            torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-9)


def test_explained_variance_equals_numpy_s_over_the_valid_entries() -> None:
    random = np.random.default_rng(0)
    values, targets = random.normal(size=(2, 7, 5)).astype(np.float32)
    valid = random.random((7, 5)) < 0.7
    found = losses.explained_variance(*map(torch.from_numpy, (values, targets, valid)))
    expected = 1 - np.var((targets - values)[valid]) / np.var(targets[valid])
    assert float(found) == pytest.approx(expected, rel=1e-5)
    perfect = losses.explained_variance(*map(torch.from_numpy, (targets, targets, valid)))
    assert float(perfect) == 1.0
