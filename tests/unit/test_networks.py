"""Tests of bodies and the LSTM against finite differences and plain loops."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn
from torch.nn import functional

from hogwild_rl.envs.codecs import ObservationCodec
from hogwild_rl.errors import UserError
from hogwild_rl.models import encoders, layers
from hogwild_rl.models.actor_critic import ActorCritic, Architecture
from hogwild_rl.models.layers import LSTMCore, Standardize

VECTOR = spaces.Box(-np.inf, np.inf, (5,), np.float64)
ACTIONS = spaces.Discrete(3)


def image(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


BOTH = spaces.Dict(a=image(20, 22, 3), b=spaces.Box(-1, 1, (4,)), c=image(16, 17))
BODIES: dict[str, tuple[Space[Any], Architecture]] = {
    "mlp": (VECTOR, Architecture(hidden=(7, 6))),
    "mlp, relu, one trunk": (
        VECTOR,
        Architecture(hidden=(7, 6), activation="relu", shared_trunk=True),
    ),
    "a3c": (image(20, 24, 3), Architecture(network="a3c")),
    "a3c, channels first": (image(2, 24, 20), Architecture(network="auto")),
    "nature": (image(36, 40), Architecture(network="nature")),
    "pixels": (image(16, 17, 3), Architecture(hidden=(6,))),
    "combined": (BOTH, Architecture(hidden=(6,))),
    "lstm": (VECTOR, Architecture(hidden=(6,), lstm=5)),
    "cnn, lstm": (image(20, 20), Architecture(lstm=4)),
    "standardize": (VECTOR, Architecture(hidden=(6,), standardize=True)),
    "standardize, combined": (BOTH, Architecture(hidden=(6,), standardize=True)),
}
every_body = pytest.mark.parametrize(("space", "architecture"), BODIES.values(), ids=BODIES.keys())


@pytest.fixture
def float64() -> Iterator[None]:
    """Sets the default dtype to float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(space: Space[Any], *leading: int, seed: int = 3) -> Tensor:
    """Returns rows of random observations, [*leading, *O]."""
    codec = ObservationCodec.of(space)
    space.seed(seed)
    count = int(np.prod(leading))
    found = np.stack([codec.row(space.sample()) for _ in range(count)])
    return torch.from_numpy(found.reshape(*leading, *codec.shape))


def perturbed(model: ActorCritic) -> ActorCritic:
    """Adds noise to all parameters, so that no bias is 0 and no head is close to 0."""
    noise = generator(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise).to(parameter), alpha=0.1)
    return model


# Gradients.


@pytest.mark.usefixtures("float64")
@every_body
def test_gradients_equal_finite_differences(space: Space[Any], architecture: Architecture) -> None:
    T, B, h = 4, 2, 1e-6
    model = perturbed(ActorCritic(space, ACTIONS, architecture, generator(1)))
    seen = rows(space, T + 1, B)
    seen = seen if seen.dtype == torch.uint8 else seen.double()
    actions = torch.randint(3, (T, B), generator=generator(2))
    state = torch.randn(2, B, model.state_size, generator=generator(3))
    valid = torch.tensor([[1, 0], [0, 1], [1, 1], [1, 0]], dtype=torch.bool)
    weights = torch.randn(2, T + 1, B, generator=generator(4))

    def scalar() -> Tensor:
        policy, values = model(seen, state, valid)
        log_probs = policy.log_prob(actions)
        return (weights[0, :T] * log_probs).sum() + (weights[1] * values).sum()

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(scalar(), list(trained.values()))
    picks, moving = generator(5), 0
    for (name, parameter), gradient in zip(trained.items(), gradients, strict=True):
        flat, length = parameter.detach().view(-1), parameter.numel()
        for index in torch.randperm(length, generator=picks)[:4].tolist():
            middle = flat[index].item()
            ends = []
            for step in (h, -h):
                flat[index] = middle + step
                ends.append(scalar().item())
            flat[index] = middle
            expected = (ends[0] - ends[1]) / (2 * h)
            assert gradient.flatten()[index].item() == pytest.approx(expected, 1e-5, 1e-7), name
            moving += abs(expected) > 1e-4
    assert moving > 2 * len(trained)  # most are not zero
    means = {"standardize.mean", "standardize.scale"} if architecture.standardize else set()
    assert means == {name for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.usefixtures("float64")
def test_standardize_equals_its_formula_and_keeps_the_pixels() -> None:
    layer = Standardize(3)
    mean, scale = np.array([1.0, -2.0, 0.5]), np.array([2.0, 0.25, 40.0])
    with torch.no_grad():
        layer.mean.copy_(torch.from_numpy(mean))
        layer.scale.copy_(torch.from_numpy(scale))
    given = np.random.default_rng(0).normal(0, 3, (4, 2, 5))
    expected = given.copy()
    expected[..., :3] = np.clip((given[..., :3] - mean) * scale, -10, 10)
    assert 3 < (np.abs(expected) == 10).sum() < 10  # some are clipped
    np.testing.assert_allclose(layer(torch.from_numpy(given)).numpy(), expected, rtol=1e-12)
    np.testing.assert_array_equal(expected[..., 3:], given[..., 3:])
    inside = torch.from_numpy(given).clamp(-0.1, 0.6).requires_grad_()
    assert torch.autograd.gradcheck(layer, inside)


# Images.


def features(space: Space[Any], network: str, seen: Tensor) -> Tensor:
    """Returns the features of a body whose weights have seed 1."""
    model = ActorCritic(space, ACTIONS, Architecture(network=network), generator(1))
    result: Tensor = model.policy_body(seen)
    return result


@pytest.mark.parametrize("network", ["a3c", "nature"])
def test_features_do_not_depend_on_the_image_layout(network: str) -> None:
    noise = np.random.default_rng(0)
    chw = noise.integers(0, 256, (5, 2, 6, 40, 44)).astype(np.uint8)  # [T, B, C, H, W]
    stack = chw.reshape(5, 2, 2, 3, 40, 44).transpose(0, 1, 2, 4, 5, 3).copy()
    hwc = chw.transpose(0, 1, 3, 4, 2).copy()
    layouts = {(6, 40, 44): chw, (40, 44, 6): hwc, (2, 40, 44, 3): stack}
    found = [
        features(image(*shape), network, torch.from_numpy(each)) for shape, each in layouts.items()
    ]
    assert found[0].shape[:2] == (5, 2)
    assert found[0].std(dim=(0, 1)).max() > 1e-3  # they depend on the image
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
    grey = torch.from_numpy(chw[:, :, 0])
    torch.testing.assert_close(
        features(image(40, 44), network, grey),
        features(image(40, 44, 1), network, grey.unsqueeze(-1)),
    )


@pytest.mark.parametrize(
    ("network", "strides", "features"),
    [("a3c", [4, 2], (16, 32, 2592, 256)), ("nature", [4, 2, 1], (32, 64, 64, 3136, 512))],
)
def test_cnns_equal_those_of_the_papers(network: str, strides: Any, features: Any) -> None:
    """Compared layer by layer on four frames of 84×84."""
    space = image(4, 84, 84)
    model = ActorCritic(space, ACTIONS, Architecture(network=network), generator(1))
    weights = [p.detach() for p in model.policy_body.parameters()]
    seen = rows(space, 3, 1)
    expected, sizes = seen.flatten(0, 1).float() / 255, []
    for stride, weight, bias in zip(strides, weights[::2], weights[1::2], strict=False):
        expected = functional.conv2d(expected, weight, bias, stride).relu()
        sizes.append(expected.shape[1])
    expected = expected.flatten(1)
    sizes.append(expected.shape[1])
    expected = functional.linear(expected, *weights[-2:]).relu()
    sizes.append(expected.shape[1])
    assert tuple(sizes) == features
    torch.testing.assert_close(model.policy_body(seen).flatten(0, 1), expected)
    assert model.value_body is model.policy_body


def test_flat_parts_and_scaled_pixels_are_concatenated() -> None:
    space = spaces.Dict(a=image(17, 16), b=spaces.Box(-1, 1, (4,)), c=image(16, 16, 3))
    seen = rows(space, 3, 2)
    model = ActorCritic(space, ACTIONS, Architecture(), generator(1))
    encoder = model.policy_body[0]
    expected = seen.clone()
    expected[..., 4:] /= 255
    torch.testing.assert_close(encoder(seen), expected)


@pytest.mark.parametrize(
    ("network", "small", "large"), [("a3c", (19, 20), (20, 20)), ("nature", (36, 35), (36, 36))]
)
@pytest.mark.parametrize("composed", [False, True], ids=["alone", "in a dict"])
def test_images_too_small_for_the_cnn_raise_a_one_line_error(
    network: str, small: Any, large: Any, composed: bool
) -> None:
    def model(size: tuple[int, int], name: str) -> ActorCritic:
        space = image(*size, 3)
        outer = spaces.Dict(camera=space, more=spaces.Discrete(2)) if composed else space
        made = ActorCritic(outer, ACTIONS, Architecture(network=name), generator(1))
        made.policy(rows(outer, 2))
        return made

    with pytest.raises(UserError) as error:
        model(small, network)
    assert str(error.value) == (
        f"images of {small[0]}×{small[1]} are too small for network {network}: use mlp"
    )
    model(large, network)
    model(small, "mlp")


@pytest.mark.parametrize(
    ("size", "network", "encoder"),
    [
        (19, "auto", encoders.PixelEncoder),
        (20, "auto", encoders.ConvEncoder),
        (84, "mlp", encoders.PixelEncoder),
        (84, "nature", encoders.ConvEncoder),
    ],
)
def test_auto_selects_the_cnn_or_for_small_images_the_pixel_encoder(
    size: int, network: str, encoder: type[nn.Module]
) -> None:
    space = image(size, max(size, 20))
    model = ActorCritic(space, ACTIONS, Architecture(network=network), generator(1))
    types = {type(part) for part in model.policy_body.modules()}
    assert types & {encoders.PixelEncoder, encoders.ConvEncoder} == {encoder}
    policy, values = model(rows(space, 3, 2))
    assert policy.entropy().shape == (2, 2)
    assert values.shape == (3, 2)


@pytest.mark.parametrize("network", ["a3c", "nature"])
def test_a_cnn_for_vector_observations_is_rejected(network: str) -> None:
    with pytest.raises(UserError, match=f"network {network} is for images: use auto or mlp"):
        ActorCritic(VECTOR, ACTIONS, Architecture(network=network))


# Custom bodies.


class Doubled(nn.Module):
    """Custom body with twice as many features as inputs."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, 2 * inputs)

    def forward(self, seen: Tensor) -> Tensor:
        """Tanh of a linear layer."""
        return self.layer(seen.flatten(2).float()).tanh()


class Custom(nn.Module):
    """Module that returns the result of a given function."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, seen: Tensor) -> Any:
        """Result of the function."""
        return self._function(seen)


def make_doubled(space: Space[Any]) -> nn.Module:
    """Returns a custom body for a Box space."""
    return Doubled(int(np.prod(space.shape)))


@pytest.mark.parametrize("space", [VECTOR, image(3, 4, 3)], ids=["vector", "image"])
@pytest.mark.parametrize("lstm", [0, 4])
def test_a_custom_body_is_used_by_both_heads(space: spaces.Box, lstm: int) -> None:
    model = ActorCritic(space, ACTIONS, Architecture(network=make_doubled, lstm=lstm), generator(1))
    assert isinstance(model.policy_body, Doubled)
    assert model.value_body is model.policy_body
    seen = rows(space, 3, 2)
    policy, values = model(seen)
    (policy.log_prob(torch.zeros(2, 2, dtype=torch.int64)).sum() + values.sum()).backward()
    assert model.policy_body.layer.weight.grad.abs().sum() > 0
    if not lstm:
        body = model.policy_body(seen)
        expected = functional.linear(body, model.value_head.weight, model.value_head.bias)
        torch.testing.assert_close(values, expected.squeeze(-1))


def test_a_custom_body_s_weights_depend_on_the_seed_alone() -> None:
    """Sampling the weights does not change the state of torch's global generator."""
    torch.manual_seed(0)
    models = []
    for seed in (1, 1, 2):
        models.append(
            ActorCritic(VECTOR, ACTIONS, Architecture(network=make_doubled), generator(seed))
        )
        torch.rand(3)
    first, second, other = (model.policy_body.layer.weight for model in models)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    torch.manual_seed(0)
    expected = torch.rand(9)[-3:]
    torch.manual_seed(0)
    ActorCritic(VECTOR, ACTIONS, Architecture(network=make_doubled), generator(1))
    torch.testing.assert_close(torch.rand(9)[-3:], expected)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda seen: seen, "must return a torch.nn.Module, got function"),
        (Custom(lambda seen: seen.flatten(0, 1)), r"\[3, 2, 5\] gave \[6, 5\] torch.float32"),
        (Custom(lambda seen: seen.unsqueeze(0)), r"\[3, 2, 5\] gave \[1, 3, 2, 5\]"),
        (Custom(lambda seen: seen.transpose(0, -1)), r"\[3, 2, 5\] gave \[5, 2, 3\]"),
        (Custom(lambda seen: (seen, seen)), "gave a tuple of 2"),
    ],
    ids=["no module", "flat", "more axes", "other axes", "tuple"],
)
def test_an_invalid_body_raises_a_one_line_error(body: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        ActorCritic(VECTOR, ACTIONS, Architecture(network=lambda space: body))
    assert "\n" not in str(error.value)


# LSTM.


def lstm_loop(lstm: LSTMCore, inputs: Tensor, state: Tensor, valid: Tensor) -> Tensor:
    """Returns the outputs [T+1, B, H], computed gate by gate for each environment in turn."""
    cell = lstm.cell
    columns = []
    for b in range(inputs.shape[1]):
        output, kept, outputs = state[0, b], state[1, b], []
        for t in range(len(inputs)):
            if t > 0 and not valid[t - 1, b]:
                output, kept = torch.zeros_like(output), torch.zeros_like(kept)
            gates = cell.weight_ih @ inputs[t, b] + cell.bias_ih
            gates = gates + cell.weight_hh @ output + cell.bias_hh
            into, forget, new, out = gates.chunk(4)
            kept = forget.sigmoid() * kept + into.sigmoid() * new.tanh()
            output = out.sigmoid() * kept.tanh()
            outputs.append(output)
        columns.append(torch.stack(outputs))
    return torch.stack(columns, dim=1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("invalid", [0.0, 0.3, 1.0], ids=["no resets", "some", "only resets"])
def test_lstm_outputs_and_gradients_equal_a_loop_over_steps(invalid: float) -> None:
    T, B, F, H = 12, 3, 4, 5
    lstm = LSTMCore(F, H, generator(1))
    with torch.no_grad():
        for bias in (lstm.cell.bias_ih, lstm.cell.bias_hh):
            bias.copy_(torch.randn(4 * H, generator=generator(2)))
    inputs = torch.randn(T + 1, B, F, generator=generator(3)).requires_grad_()
    state = torch.randn(2, B, H, generator=generator(4)).requires_grad_()
    valid = torch.rand(T, B, generator=generator(5)) >= invalid
    weights = torch.randn(T + 1, B, H, generator=generator(6))
    wanted = [inputs, state, *lstm.parameters()]
    expected = lstm_loop(lstm, inputs, state, valid)
    outputs = lstm(inputs, state, valid)
    torch.testing.assert_close(outputs, expected)
    for mine, theirs in zip(
        torch.autograd.grad((weights * outputs).sum(), wanted),
        torch.autograd.grad((weights * expected).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
        assert theirs.abs().sum() > 0
    assert bool(valid.all()) == (invalid == 0)


def test_acting_step_by_step_equals_the_policy_of_the_rollout() -> None:
    """`policy` propagates the state as `forward` does; None is the initial state."""
    model = perturbed(ActorCritic(VECTOR, ACTIONS, Architecture(lstm=6), generator(1)))
    seen, state = rows(VECTOR, 7, 3).float(), None
    policy, _ = model(seen)
    taken = torch.randint(3, (6, 3), generator=generator(2))
    for t in range(6):
        stepped, state = model.policy(seen[t], state)
        torch.testing.assert_close(stepped.log_prob(taken[t]), policy.log_prob(taken)[t])
    stateless, _ = model.policy(seen[5])
    assert not torch.allclose(stateless.log_prob(taken[5]), policy.log_prob(taken)[5], atol=1e-3)


def test_a_non_finite_state_is_reset_at_the_next_episode() -> None:
    lstm = LSTMCore(2, 3, generator(1))
    inputs, valid = torch.zeros(3, 1, 2), torch.tensor([[True], [False]])
    inputs[0] = torch.nan
    outputs = lstm(inputs, lstm.initial_state(1), valid)
    assert outputs[1].isnan().all()
    torch.testing.assert_close(outputs[2], lstm.step(inputs[2], lstm.initial_state(1))[0])


# Precision.


@pytest.mark.parametrize("name", ["mlp", "a3c", "pixels", "combined", "cnn, lstm"])
def test_bfloat16_is_close_to_float32(name: str) -> None:
    space, architecture = BODIES[name]
    exact = ActorCritic(space, ACTIONS, architecture, generator(1))
    approximate = ActorCritic(
        space, ACTIONS, Architecture(**{**vars(architecture), "bfloat16": True}), generator(1)
    )
    seen, taken = rows(space, 5, 4), torch.randint(3, (4, 4), generator=generator(2))
    seen = seen if seen.dtype == torch.uint8 else seen.float()
    found = []
    for model in (exact, approximate):
        perturbed(model)
        policy, values = model(seen)
        (policy.log_prob(taken).sum() + values.square().sum()).backward()
        assert values.dtype == policy.entropy().dtype == torch.float32
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        found.append((policy.log_prob(taken), values, gradient))
    (log_probs, values, gradient), (log_probs16, values16, gradient16) = found
    torch.testing.assert_close(log_probs16, log_probs, rtol=0.03, atol=0.05)
    torch.testing.assert_close(values16, values, rtol=0.03, atol=0.05)
    assert functional.cosine_similarity(gradient, gradient16, dim=0) > 0.99
    assert not torch.equal(values16, values)  # some of it was computed in bfloat16


def test_mlp_activations_equal_those_of_torch() -> None:
    """An MLP of one layer is an activation of a linear function."""
    given = torch.randn(3, 4, generator=generator(2))
    for name, function in (("tanh", torch.tanh), ("relu", torch.relu)):
        body = layers.mlp(4, (6,), name, generator(1))
        expected = function(given @ body[0].weight.T + body[0].bias)
        torch.testing.assert_close(body(given), expected)
