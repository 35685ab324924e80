"""Bodies that turn observations into features."""

import math
from collections.abc import Sequence

import torch
from torch import nn

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


def linear(inputs: int, outputs: int, gain: float, generator: torch.Generator) -> nn.Linear:
    """A linear layer with orthogonal weights and zero bias.

    Args:
        inputs, outputs: sizes.
        gain: √2 in front of an activation, 1 for a value, 0.01 for a policy, so that the first
            policy is close to uniform.
        generator: source of the weights.

    Source: Saxe et al. 2014 (arXiv:1312.6120); the gains are those of Huang et al. 2022, "The 37
    Implementation Details of Proximal Policy Optimization", detail 2.
    """
    with torch.random.fork_rng(devices=[]):  # torch's own draw leaves the caller's stream alone
        layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain, generator)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(
    inputs: int, hidden: Sequence[int], activation: str, generator: torch.Generator
) -> nn.Sequential:
    """Linear layers of these sizes, the activation after each: [..., inputs] → [..., H]."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [linear(inputs, size, math.sqrt(2), generator), ACTIVATIONS[activation]()]
        inputs = size
    return nn.Sequential(*layers)
