"""Tests of networks of users: the layouts that are adapted, and those that are rejected."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn
from torch.nn import functional

from hogwild_rl.errors import UserError
from hogwild_rl.models.actor_critic import ActorCritic, Architecture
from hogwild_rl.models.deterministic import DeterministicActorCritic
from hogwild_rl.models.layers import FlattenRows

VECTOR = spaces.Box(-1, 1, (4,), np.float32)
IMAGE = spaces.Box(0, 255, (3, 24, 24), np.uint8)


class Net(nn.Module):
    """Network that computes a function of the rows and of its layers."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self._function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, rows: Tensor) -> Any:
        """Result of the function."""
        return self._function(rows, *self.children())


def model_of(make: Callable[[Space[Any]], Any], space: Space[Any] = VECTOR) -> ActorCritic:
    generator = torch.Generator().manual_seed(1)
    return ActorCritic(space, spaces.Discrete(3), Architecture(network=make), generator)


def deterministic(make: Callable[[Space[Any]], Any], space: Space[Any] = VECTOR) -> Any:
    generator = torch.Generator().manual_seed(1)
    architecture = Architecture(network=make, hidden=(8,))
    return DeterministicActorCritic(space, spaces.Box(-1, 1, (2,)), architecture, 2, generator)


def images(*leading: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(256, (*leading, *IMAGE.shape), generator=generator, dtype=torch.uint8)


def cnn(_: Space[Any]) -> nn.Module:
    return Net(
        lambda rows, conv, last: last(conv(rows.float() / 255).flatten(1)),
        conv=nn.Conv2d(3, 4, 5, 2),
        last=nn.LazyLinear(6),
    )


# Rejected: what acts would differ from what learns.


def normalized(rows: Tensor, first: nn.Linear, norm: nn.BatchNorm1d) -> Tensor:
    hidden: Tensor = first(rows)
    return hidden if hidden.shape[:2] == (1, 1) else norm(hidden.flatten(0, 1)).view_as(hidden)


MIXING: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "LSTM over the first axis": (
        lambda: Net(lambda rows, lstm: lstm(rows)[0], lstm=nn.LSTM(4, 8)),
        "LSTM lstm",
    ),
    "GRU, batch first": (
        lambda: Net(lambda rows, gru: gru(rows)[0], gru=nn.GRU(4, 8, batch_first=True)),
        "GRU gru",
    ),
    "attention": (
        lambda: Net(lambda rows, attend: attend(rows, rows, rows)[0], attend=attention()),
        "MultiheadAttention attend",
    ),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0),
        "MultiheadAttention self_attn",
    ),
    "BatchNorm without running statistics": (
        lambda: Net(
            normalized,
            first=nn.Linear(4, 8),
            norm=nn.BatchNorm1d(8, track_running_stats=False),
        ),
        "BatchNorm1d norm",
    ),
    "BatchNorm that fails for one row": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False)),
        "BatchNorm1d 1",
    ),
    "dropout": (lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5)), "Dropout 1"),
    "rare dropout": (lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(1e-6)), "Dropout 1"),
}


def attention() -> nn.Module:
    return nn.MultiheadAttention(4, 2)


@pytest.mark.parametrize("model", [model_of, deterministic])
@pytest.mark.parametrize(("make", "culprit"), MIXING.values(), ids=MIXING.keys())
def test_layers_that_mix_rows_are_named_with_their_alternatives(
    make: Callable[[], nn.Module], culprit: str, model: Any
) -> None:
    def network(_: Space[Any]) -> nn.Module:
        return make()

    with pytest.raises(UserError) as error:
        model(network)
    message = str(error.value)
    assert message.startswith("network network must map [T, B, 4] to float32 [T, B, F]")
    assert culprit in message
    assert "each row by itself (use --lstm, LayerNorm, no dropout)" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "function",
    [
        functional.dropout,
        lambda rows: rows - rows.mean(0),
        lambda rows: (rows - rows.mean((0, 1))) / rows.std((0, 1)),  # NaN for one row
        lambda rows: rows.cumsum(0),
        lambda rows: rows.mul_(0.5) + 1,
        lambda rows: torch.cat([255 * rows, rows - 0.5 * rows.mean(0)], dim=-1),
    ],
    ids=["random", "mean", "standardized", "sum over time", "in place", "beside large features"],
)
def test_functions_that_mix_rows_are_rejected(function: Any) -> None:
    with pytest.raises(UserError, match="gave a row other features than alone"):
        model_of(lambda _: Net(function))


def test_bounds_near_the_largest_float_do_not_hide_mixing() -> None:
    high = np.finfo(np.float32).max
    space = spaces.Box(-high, high, (4,), np.float32)
    make, culprit = MIXING["attention"]
    with pytest.raises(UserError, match=culprit):
        model_of(lambda _: make(), space)


# Rejected: other results.


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda rows: (rows, None), "gave a tuple of 2"),
        (lambda rows: rows.double(), r"\[3, 2, 4\] gave \[3, 2, 4\] torch.float64"),
        (lambda rows: rows.view(1, 1, -1), r"\[6, 4\] gave \[1, 1, 24\]"),
        (lambda rows: rows.squeeze(), r"\[1, 4\] gave \[4\] torch.float32$"),
        (lambda rows: rows @ rows.new_ones(5, 1), r"raised RuntimeError: .*custom_networks.py"),
    ],
    ids=["tuple", "float64", "one row", "squeezed", "exception"],
)
@pytest.mark.parametrize("model", [model_of, deterministic])
def test_an_invalid_result_is_one_line_with_the_expected_shapes(
    function: Any, message: str, model: Any
) -> None:
    with pytest.raises(UserError, match=message) as error:
        model(lambda _: Net(function))
    assert "map [T, B, 4] to float32 [T, B, F], or [N, 4] to [N, F]" in str(error.value)
    assert "\n" not in str(error.value)


def test_equal_exceptions_of_both_layouts_are_reported_once() -> None:
    def network(_: Space[Any]) -> nn.Module:
        return Net(lambda rows, conv: conv(rows.flatten(0, -4)), conv=nn.Conv2d(3, 4, 5))

    with pytest.raises(UserError, match=r"unsigned char") as error:
        model_of(network, IMAGE)
    assert str(error.value).count("raised") == 1
    assert isinstance(error.value.__cause__, RuntimeError)


def test_an_exception_of_the_function_is_one_line() -> None:
    def network(space: Any) -> nn.Module:
        return nn.Linear(space.n, 4)

    with pytest.raises(UserError, match=r"network network raised AttributeError: .*\.py, line"):
        model_of(network)


# Accepted.


def test_a_network_for_a_batch_equals_the_same_network_for_both_axes() -> None:
    def with_both_axes(space: Space[Any]) -> nn.Module:
        return FlattenRows(cnn(space))

    adapted, expected = model_of(cnn, IMAGE), model_of(with_both_axes, IMAGE)
    pairs = list(zip(adapted.parameters(), expected.parameters(), strict=True))
    assert len(pairs) == 4 + 4  # the body, the heads
    assert all(torch.equal(one, other) for one, other in pairs)
    rows = images(5, 3)
    for one, other in zip(adapted(rows)[1], expected(rows)[1], strict=True):
        assert torch.equal(one, other)
    assert adapted(rows)[1].shape == (5, 3)
    taken = torch.zeros(4, 3, dtype=torch.int64)
    acted = [adapted.policy(row)[0].log_prob(each) for row, each in zip(rows, taken, strict=False)]
    torch.testing.assert_close(torch.stack(acted), adapted(rows)[0].log_prob(taken))


def test_a_network_for_a_batch_is_adapted_for_ddpg_and_td3() -> None:
    model, seen, actions = deterministic(cnn, IMAGE), images(5), torch.zeros(5, 2)
    body = model.critics.online.front.body[0]
    expected = body(seen)
    torch.testing.assert_close(model.critics.online.front(seen), expected)
    assert model.policy(seen)[0].sample().shape == (5, 2)
    assert model.critics(seen, actions).shape == (2, 5)


ACCEPTED: dict[str, tuple[Space[Any], Callable[[], nn.Module], bool]] = {
    "linear": (VECTOR, lambda: nn.Linear(4, 3), False),
    "LayerNorm": (VECTOR, lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)), False),
    "no dropout": (VECTOR, lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.0)), False),
    "eval mode": (VECTOR, lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5)).eval(), False),
    "constant": (VECTOR, lambda: Net(torch.zeros_like), False),
    "NaN": (VECTOR, lambda: Net(torch.sqrt), False),
    "infinite": (VECTOR, lambda: Net(lambda rows: 1 / (rows * 0)), False),
    "flattened": (VECTOR, lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), True),
    "GroupNorm": (VECTOR, lambda: nn.Sequential(nn.Linear(4, 8), nn.GroupNorm(2, 8)), True),
    "InstanceNorm": (
        IMAGE,
        lambda: Net(lambda rows, norm: norm(rows.float()).flatten(1), norm=nn.InstanceNorm2d(3)),
        True,
    ),
    "attention within a row": (
        IMAGE,
        lambda: Net(
            lambda rows, each: each(rows[:, 0].float() / 255).flatten(1),
            each=nn.TransformerEncoderLayer(24, 2, 8, dropout=0.0, batch_first=True),
        ),
        True,
    ),
    "mean over the first axis of a row": (
        spaces.Box(0, 255, (2, 20, 20), np.uint8),
        lambda: Net(lambda rows: rows.float().mean(1).flatten(1)),
        True,
    ),
    "indices": (
        spaces.Box(0, 9, (4,), np.int64),
        lambda: Net(lambda rows, table: table(rows.long()).flatten(2), table=nn.Embedding(10, 3)),
        False,
    ),
    "huge bounds": (
        spaces.Box(-np.finfo(np.float64).max, np.finfo(np.float64).max, (4,), np.float64),
        lambda: nn.Linear(4, 3),
        False,
    ),
}


@pytest.mark.parametrize(("space", "make", "adapted"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_row_wise_networks_are_accepted(
    space: Space[Any], make: Callable[[], nn.Module], adapted: bool
) -> None:
    model = model_of(lambda _: make(), space)
    assert isinstance(model.policy_body, FlattenRows) == adapted
    shape = space.shape or ()
    dtype = torch.uint8 if space.dtype == np.uint8 else torch.float32
    assert model(torch.ones(5, 3, *shape, dtype=dtype))[1].shape == (5, 3)


def test_rounding_of_a_deep_network_is_tolerated() -> None:
    def network(_: Space[Any]) -> nn.Module:
        sizes = [4, *[512] * 8]
        layers = [nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
        return nn.Sequential(*[part for layer in layers for part in (layer, nn.LayerNorm(512))])

    assert isinstance(model_of(network).policy_body, nn.Sequential)


def test_initial_parameters_are_those_of_a_single_call() -> None:
    """Lazy layers sample their weights in the first call, after those of the other layers."""

    def network(_: Space[Any]) -> nn.Module:
        return nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.Linear(5, 3), nn.LazyLinear(2))

    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(1)))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        expected = network(VECTOR)
        expected(torch.zeros(1, 1, 4))
    found = model_of(network).policy_body
    pairs = zip(found.parameters(), expected.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["accepted", "adapted"])
def test_the_check_advances_no_random_stream(space: Space[Any]) -> None:
    def network(_: Space[Any]) -> nn.Module:
        return nn.Linear(4, 3) if space is VECTOR else cnn(space)

    space.seed(7)
    before = torch.get_rng_state()
    model_of(network, space)
    assert torch.equal(torch.get_rng_state(), before)
    found = space.sample()
    space.seed(7)
    np.testing.assert_array_equal(space.sample(), found)
