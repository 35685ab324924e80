"""Gradients of MLP actor-critics in closed form, and their sampled actions, in NumPy.

A layer computes h' = φ(z), z = h Wᵀ + b, with φ = tanh, relu or, for outputs, the identity. With
D = ∂L/∂z, [N, F']:

    ∂L/∂W = Dᵀ h        ∂L/∂b = Σ_n D_n        ∂L/∂h = D W
    D = ∂L/∂h' (1 − h'²)  for tanh,        D = ∂L/∂h' [h' > 0]  for relu

The loss of A3C and A2C has, with n valid steps, the derivatives

    c = ∂L/∂log π(a_t|s_t) = −A_t / n    e = ∂L/∂H(π(·|s_t)) = −β / n    ∂L/∂V(s_t) = −2 c_v A_t / n

since R_t − V(s_t) = A_t; they are 0 where a step is not valid. With the ratio r_t of PPO,

    c = −[r_t A_t ≤ clip(r_t, 1 − ε, 1 + ε) A_t] r_t A_t / n
    ∂L/∂V(s_t) = 2 c_v (V(s_t) − R_t) / n

and ∂L/∂V(s_t) = 0 where the value with limited change has the larger error. The distributions
below continue from c and e to the outputs of the policy. Other losses are differentiated by
autograd up to there.

An operation of torch has an overhead of 3 to 6 µs, and a backward pass as much again; an operation
of NumPy has 1 µs.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from hogwild_rl.collect.rollout import Rollout
from hogwild_rl.learn import array_distributions
from hogwild_rl.learn.array_distributions import Array
from hogwild_rl.learn.losses import EPSILON, PolicyLoss, actor_critic_loss, ppo_loss
from hogwild_rl.learn.samples import Samples
from hogwild_rl.models.actor_critic import ActorCritic
from hogwild_rl.models.layers import Standardize

Gradients: TypeAlias = Mapping[Any, Array]  # by parameter
Dot: TypeAlias = Callable[..., Array]
Loss: TypeAlias = Callable[[Any, Any, Any], PolicyLoss]

# Multiplications of a matrix product above which torch computes it: it is faster there, and NumPy's
# BLAS would start threads of its own (benchmarks/closed_form.py).
_NUMPY_UP_TO = 2**18
_MANY_ROWS = 2**10  # from this number of rows BLAS may sum a column in several threads


class ClosedForm:
    """Gradients and sampled actions of an actor-critic of MLPs, on the CPU.

    Args:
        model: network for which `supports` is true.
        gradient: flat gradient of the trainable parameters, [P]; `gradient` overwrites it.

    Attributes:
        losses: terms of the newest loss, if autograd differentiates it; else None.
    """

    def __init__(self, model: ActorCritic, gradient: Tensor) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        parts = torch.split(gradient, [p.numel() for p in parameters])
        gradients = {p: g.view(p.shape).numpy() for p, g in zip(parameters, parts, strict=True)}
        self._flat, self._policy_head, norm = gradient, model.policy_head, model.standardize
        self.losses: PolicyLoss | None = None
        self._norm: Sequence[Array] = ()
        if isinstance(norm, Standardize):
            self._norm = norm.mean.detach().numpy(), norm.scale.detach().numpy()
        heads = model.policy_head.parts
        self._shared = model.value_body is model.policy_body
        if self._shared:
            self._policy = _Network(model.policy_body, [*heads, model.value_head], gradients)
        else:
            self._policy = _Network(model.policy_body, heads, gradients)
            self._value = _Network(model.value_body, [model.value_head], gradients)
        self._policy_heads = self._policy.heads[: len(heads)]
        self._distribution = array_distributions.of_head(model.policy_head)
        self._largest = max(parameter.numel() for parameter in parameters)

    @staticmethod
    def supports(model: nn.Module) -> bool:
        """True for built-in MLPs on the CPU, with any policy head and without LSTM."""
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        return on_cpu and isinstance(model, ActorCritic) and model.is_mlp

    def is_small(self, rows: int) -> bool:
        """True if NumPy is faster than torch for this number of rows."""
        return rows * self._largest <= _NUMPY_UP_TO

    def act(
        self, observations: Array, state: Any = None, *, generator: np.random.Generator
    ) -> tuple[Array, Any]:
        """Samples actions from π(·|s), [B, *A], for observations [B, *O]; returns `state`, too."""
        single = len(observations) == 1
        product: Dot = np.dot if single else _row_products
        with np.errstate(all="ignore"):  # steps that are not finite are dropped
            h = self._normalized(observations) if self._norm else observations
            if single:  # a product of a matrix and a vector takes 1 µs, that of two matrices 1.5
                h = h[0]
            for layer in self._policy.layers:
                h = product(layer.weight, h)
                h += layer.bias
                self._policy.activate(h, out=h)
            outputs = []
            for weight, bias, *_ in self._policy_heads:
                outputs.append(bias if weight is None else product(weight, h) + bias)
            actions = self._distribution.sample(generator, *outputs)
        return actions[None] if single else actions, state

    @np.errstate(all="ignore")  # a gradient that is not finite is dropped
    def gradient(self, loss: Loss, rollout: Any, config: Any) -> Tensor:
        """Gradient of a loss of a rollout [T, B], always the same tensor [P].

        Args:
            loss: function of model, rollout and settings; `actor_critic_loss` and `ppo_loss` need
                no autograd.
            rollout: rollout, or samples of PPO, on the CPU.
            config: settings for the loss.
        """
        T, B = rollout.valid.shape
        N = T * B  # the last B rows of a rollout have a value but no action
        row_sum: Any = _large_sum
        if N < _MANY_ROWS:
            row_sum = functools.partial(np.dot, np.ones(N, np.float32))
        observations = rollout.observations.numpy()
        inputs = observations.reshape(len(observations) * B, -1)
        dot = np.dot if self.is_small(len(inputs)) else _large_dot
        if self._norm:
            inputs = self._normalized(inputs)
        if self._shared:
            *outputs, values = self._policy.forward(inputs, dot)
            outputs = [each[:N] for each in outputs]
        else:
            outputs = self._policy.forward(inputs[:N], dot)
            (values,) = self._value.forward(inputs, dot)
        if loss is actor_critic_loss or loss is ppo_loss:
            weights = _actor_critic if loss is actor_critic_loss else self._ppo
            c, by_values, valid = weights(rollout, config, outputs, values)
            e = (valid * np.float32(-config.ent_coef / _count(valid))).reshape(-1, 1)
            actions = rollout.actions.numpy().reshape(N, -1)
            by_outputs = self._distribution.gradient(c, e, actions, *outputs)
        else:
            by_outputs, by_values = self._by_autograd(loss, rollout, config, outputs, values)
        if self._shared:
            self._policy.backward([*by_outputs, by_values], dot, row_sum)
        else:
            self._policy.backward(by_outputs, dot, row_sum)
            self._value.backward([by_values], dot, row_sum)
        return self._flat

    def _normalized(self, observations: Array) -> Array:
        """Observations standardized as by `Standardize`, [N, O]."""
        mean, scale = self._norm
        standard = (observations - mean) * scale
        return np.minimum(np.maximum(standard, -Standardize.CLIP), Standardize.CLIP)

    def _ppo(
        self, samples: Samples, config: Any, outputs: Sequence[Array], values: Array
    ) -> tuple[Array, Array, Array]:
        """Derivatives c of `ppo_loss` and by the values, [N, 1] each, and the mask `valid`."""
        arrays = {name: tensor.numpy() for name, tensor in vars(samples).items()}
        names = ("valid", "log_probs", "values", "advantages", "targets", "actions")
        rows = (arrays[name].reshape(len(values), -1) for name in names)
        valid, old_log_probs, old_values, advantages, targets, actions = rows
        n = _count(valid)
        if config.normalize_advantages:
            advantages = advantages - np.sum(advantages, where=valid) / n
            advantages /= np.sqrt(np.sum(advantages**2, where=valid) / n) + EPSILON
        ratios = np.exp(self._distribution.log_prob(actions, *outputs) - old_log_probs)
        low, high = 1 - config.clip_range, 1 + config.clip_range
        gains, bounded = ratios * advantages, np.clip(ratios, low, high) * advantages
        errors, limit = values - targets, config.clip_value_range
        if limit:
            change = values - old_values
            limited = old_values + np.clip(change, -limit, limit) - targets
            # A V within its limits may differ from its clipped value too, by rounding.
            outside = abs(change) > limit
            errors = np.where(outside & (limited**2 > errors**2), 0, errors)
        scale = np.float32(1 / n) * valid
        return -gains * (gains <= bounded) * scale, 2 * config.vf_coef * errors * scale, valid

    def _by_autograd(
        self, loss: Loss, rollout: Rollout, config: Any, outputs: Sequence[Array], values: Array
    ) -> tuple[Sequence[Array], Array]:
        """Derivatives of any loss by the outputs, [N, A], and the values, [N, 1]."""
        T, B = rollout.valid.shape
        leaves = [torch.from_numpy(each).requires_grad_() for each in (*outputs, values)]
        *shaped, V = (each.view(-1, B, each.shape[-1]) for each in leaves)
        policy = self._policy_head.distribution(*shaped)
        self.losses = loss(lambda *_: (policy, V.squeeze(-1)), rollout, config)
        gradients = torch.autograd.grad(self.losses.total, leaves, materialize_grads=True)
        # Before torch 2.10, materialized gradients require gradients.
        *by_outputs, by_values = (each.detach().numpy() for each in gradients)
        return by_outputs, by_values[: T * B]


def _count(valid: Array) -> int:
    return max(int(np.count_nonzero(valid)), 1)


def _actor_critic(
    rollout: Rollout, config: Any, _: Sequence[Array], values: Array
) -> tuple[Array, Array, Array]:
    """Derivatives c of `actor_critic_loss` and by the values, [N, 1] each, and the mask `valid`."""
    T, B = rollout.valid.shape
    advantages, valid = _advantages(rollout, values.reshape(T + 1, B), config)
    c = (advantages * (-1 / _count(valid))).reshape(-1, 1)
    return c, c * (2 * config.vf_coef), valid


def _advantages(rollout: Rollout, values: Array, config: Any) -> tuple[Array, Array]:
    """Advantages as by `returns.generalized_advantages`, and the mask `valid`, [T, B] each."""
    terminated, truncated = rollout.terminated.numpy(), rollout.truncated.numpy()
    valid = rollout.valid.numpy()
    targets = rollout.rewards.numpy() + config.gamma * values[1:] * ~terminated
    advantages = (targets - values[:-1]) * valid
    carries = np.float32(config.gamma * config.gae_lambda) * (valid & ~(terminated | truncated))
    single = advantages.shape[1] == 1
    if single:  # floats are ten times as fast as arrays of one element
        rows, carried = advantages[:, 0].tolist(), carries[:, 0].tolist()
    else:
        rows, carried = list(advantages), list(carries)
    for t in reversed(range(len(rows) - 1)):
        rows[t] += carried[t] * rows[t + 1]
    if single:
        advantages[:, 0] = rows
    return advantages, valid


def _row_products(weight: Array, h: Array) -> Array:
    """Products W h_n for each row, [N, F']."""
    return np.dot(h, weight.T)


def _large_dot(a: Array, b: Array, out: Array | None = None) -> Array:
    """Matrix product like np.dot, by torch.

    Threads of NumPy's BLAS and of torch in one gradient would busy-wait for each other.
    """
    result = None if out is None else torch.from_numpy(out)
    return torch.mm(torch.from_numpy(a), torch.from_numpy(b), out=result).numpy()


def _large_sum(d: Array, out: Array) -> None:
    """Sums over many rows, more exact than by a product with ones."""
    torch.sum(torch.from_numpy(d), 0, out=torch.from_numpy(out))


class _Linear(NamedTuple):
    """Parameters of a linear layer and their gradients; a constant output has a bias only."""

    weight: Array  # or None
    bias: Array
    by_weight: Array  # or None
    by_bias: Array

    @classmethod
    def of(cls, layer: nn.Linear | nn.Parameter, gradients: Gradients) -> "_Linear":
        """Views of a layer's parameters, or of a parameter that is the same for all rows."""
        if isinstance(layer, nn.Parameter):
            return cls(None, layer.detach().numpy(), None, gradients[layer])
        weight, bias = layer.weight, layer.bias
        arrays = weight.detach().numpy(), bias.detach().numpy()
        return cls(*arrays, gradients[weight], gradients[bias])


class _Network:
    """MLP with one or more heads, which are linear layers or constant outputs."""

    def __init__(self, body: nn.Module, heads: Sequence[Any], gradients: Gradients) -> None:
        layers = [layer for layer in body.modules() if isinstance(layer, nn.Linear)]
        self.layers = [_Linear.of(layer, gradients) for layer in layers]
        self.heads = [_Linear.of(head, gradients) for head in heads]
        self._tanh = any(isinstance(layer, nn.Tanh) for layer in body.modules())
        self.activate: Any = np.tanh if self._tanh else functools.partial(np.maximum, 0)

    def forward(self, h: Array, dot: Dot) -> list[Array]:
        """Outputs of the heads, [N, A] each, for inputs [N, O]."""
        self._inputs = [h]  # of each layer, and of the heads
        for layer in self.layers:
            h = dot(h, layer.weight.T)
            h += layer.bias
            self.activate(h, out=h)
            self._inputs.append(h)
        outputs = []
        for head in self.heads:
            if head.weight is None:
                outputs.append(np.repeat(head.bias[None], len(h), 0))
            else:
                outputs.append(dot(h, head.weight.T))
                outputs[-1] += head.bias
        return outputs

    def backward(self, by_outputs: Sequence[Array], dot: Dot, row_sum: Dot) -> None:
        """Writes the gradients for ∂L/∂outputs, [N, A] each, of the first N rows."""
        N = len(by_outputs[0])
        inputs = self._inputs.pop()[:N]
        by_features: Any = 0.0
        for head, d in zip(self.heads, by_outputs, strict=True):
            row_sum(d, out=head.by_bias)
            if head.weight is not None:
                dot(d.T, inputs, head.by_weight)
                by_features = by_features + dot(d, head.weight)
        d = by_features
        for layer in reversed(self.layers):
            d *= (1 - inputs * inputs) if self._tanh else inputs > 0
            inputs = self._inputs.pop()[:N]
            row_sum(d, out=layer.by_bias)
            dot(d.T, inputs, layer.by_weight)
            if self._inputs:
                d = dot(d, layer.weight)
