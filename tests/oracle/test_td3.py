"""Tests of TD3 and DDPG against NumPy, against each other, and at the ends of episodes."""

import itertools
import pathlib
import types
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from hogwild_rl import ddpg, td3
from hogwild_rl.collect.replay import ReplayBuffer, Transitions
from hogwild_rl.collect.transitions import TransitionCollector
from hogwild_rl.envs import vectorize
from hogwild_rl.envs.codecs import ActionCodec, EnvCodec, ObservationCodec
from hogwild_rl.learn import losses, returns
from hogwild_rl.models.actor_critic import Architecture
from hogwild_rl.models.deterministic import DeterministicActorCritic, EnsembleMLP
from hogwild_rl.runs.checkpoint import Checkpoint
from hogwild_rl.training.off_policy import TargetedModule
from tests.td3_in_numpy import Floats, Layers, NumpyTD3, Settings
from tests.td3_in_numpy import Transitions as NumpyTransitions

Records = list[tuple[Tensor, Tensor]]

GAMMA, TAU, RATE, NOISE, CLIP, DELAY = 0.9, 0.1, 1e-3, 0.4, 0.5, 2
OBS_SIZE, ACT_SIZE, HIDDEN, N = 3, 4, (16, 12), 32  # no two sizes are equal
MODULES: dict[str, Any] = {"ddpg": ddpg, "td3": td3}
CRITICS = {"ddpg": 1, "td3": 2}
AS_DDPG = {"critics": 1, "policy_delay": 1, "target_noise": 0.0}  # makes TD3 equal to DDPG
SEEDS = (8, 9, 10)  # seeds of batches on which every extension of TD3 has an effect


def double(tensor: Tensor) -> Floats:
    return tensor.detach().numpy().astype(np.float64)


def mlps(module: Any) -> list[Layers]:
    """Returns the layers of each MLP of an ensemble."""
    stacked: EnsembleMLP = module.layers
    layers = [(double(w), double(b)) for w, b in zip(stacked.weights, stacked.biases, strict=True)]
    count = len(layers[0][0])
    return [[each for w, b in layers for each in (w[i], b[i, 0])] for i in range(count)]


def flat(networks: Sequence[Layers]) -> Floats:
    """Returns all weights, then all biases, layer by layer: the order of a flat parameter."""
    layers = list(zip(*networks, strict=True))
    return np.concatenate([np.ravel(each) for each in layers[0::2] + layers[1::2]])


def assert_close(found: Tensor, expected: Any) -> None:
    """Asserts equality to 1e-6 of the largest element."""
    assert np.abs(double(found) - expected).max() <= 1e-6 * np.abs(expected).max()


def make(algorithm: str, seed: int, hidden: tuple[int, ...] = HIDDEN) -> tuple[Any, Any]:
    """Returns a learner with actor, critics and generator, and its settings."""
    boxes = spaces.Box(-1, 1, (OBS_SIZE,)), spaces.Box(-1, 1, (ACT_SIZE,))
    layers = Architecture(hidden=hidden, activation="relu")
    model = DeterministicActorCritic(*boxes, layers, CRITICS[algorithm])
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan_in = parameter.shape[1]  # 1 for a bias
        nn.init.normal_(parameter, 0, (2 / fan_in) ** 0.5 if fan_in > 1 else 0.1, generator)
    cpu = torch.device("cpu")
    actor, critics = (
        TargetedModule(p, RATE, cpu, alone=True) for p in (model.actor, model.critics)
    )
    td3_only = {"policy_delay": DELAY, "target_noise": NOISE, "target_noise_clip": CLIP}
    given = td3_only if algorithm == "td3" else {}
    config = MODULES[algorithm].Config(gamma=GAMMA, tau=TAU, **given)
    generator = torch.Generator().manual_seed(seed)
    learner = types.SimpleNamespace(actor=actor, critics=critics, generator=generator, updates=0)
    return learner, config


def reference(algorithm: str, learner: Any) -> NumpyTD3:
    """Returns the NumPy algorithm with the parameters of a learner."""
    noise, delay = (NOISE, DELAY) if algorithm == "td3" else (0.0, 1)
    (actor,), (target_actor,) = mlps(learner.actor.online), mlps(learner.actor.target)
    critics, target_critics = mlps(learner.critics.online), mlps(learner.critics.target)
    settings = Settings(GAMMA, TAU, RATE, noise, CLIP, delay)
    return NumpyTD3(settings, actor, critics, target_actor, target_critics)


def batches(seed: int) -> list[tuple[Transitions, Floats]]:
    """Returns six random batches, a third of them terminated, and the samples of their noise."""
    generator = torch.Generator().manual_seed(1000 + seed)
    noise = torch.Generator().manual_seed(seed)  # as in the learner

    def normal(*shape: int) -> Tensor:
        return torch.randn(N, *shape, generator=generator)

    def batch() -> Transitions:
        rewards = normal() + 3  # errors of one sign: cancellation would leave fewer than 6 digits
        s, a, next_s = normal(OBS_SIZE), normal(ACT_SIZE).tanh(), normal(OBS_SIZE)
        return Transitions(s, a, rewards, next_s, normal() > 0.5)

    return [(batch(), double(torch.randn(N, ACT_SIZE, generator=noise))) for _ in range(6)]


def to_numpy(batch: Transitions) -> NumpyTransitions:
    """Converts a batch to NumPy."""
    s, a, next_s = map(double, (batch.observations, batch.actions, batch.next_observations))
    return NumpyTransitions(s, a, double(batch.rewards), next_s, batch.terminated.numpy())


def update(algorithm: str, learner: Any, batch: Transitions, config: Any) -> None:
    """Increments the update count and updates once, as in training."""
    learner.updates += 1
    assert MODULES[algorithm].update(learner, batch, config)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Records:
    """Records the targets and the critics' loss of every update."""
    found: Records = []
    original = losses.td_loss

    def recording(values: Tensor, targets: Tensor) -> Tensor:
        found.append((targets, original(values, targets)))
        return found[-1][1]

    monkeypatch.setattr(losses, "td_loss", recording)
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_the_batches_cover_every_extension_of_td3(seed: int) -> None:
    """Each case of the minimum, the clips and the termination has 5 % to 95 % of a batch."""
    expected = reference("td3", make("td3", seed)[0])
    for batch, epsilon in batches(seed):
        expected.targets(to_numpy(batch), epsilon)
        first, second = expected.target_values[~batch.terminated.numpy()].T
        clipped, bounded = np.abs(expected.noise) == CLIP, np.abs(expected.noisy_actions) > 1
        for case in (first < second, clipped, bounded, batch.terminated.numpy()):
            assert 0.05 < case.mean() < 0.95


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("algorithm", MODULES)
def test_updates_equal_those_of_the_papers(algorithm: str, seed: int, recorded: Records) -> None:
    """Compares targets, loss, Adam's moments, parameters and target networks after each update."""
    learner, config = make(algorithm, seed)
    expected = reference(algorithm, learner)
    for batch, epsilon in batches(seed):
        update(algorithm, learner, batch, config)
        y, loss = expected.update(to_numpy(batch), epsilon)
        assert_close(recorded[-1][0], y)
        assert_close(recorded[-1][1], loss)
        for part, adams, targets in (
            (learner.actor, [expected.actor], [expected.target_actor]),
            (learner.critics, expected.critics, expected.target_critics),
        ):
            moments = part.optimizer.state[part.optimizer.parameter]
            assert_close(moments["exp_avg"], flat([adam.m for adam in adams]))
            assert_close(moments["exp_avg_sq"].sqrt(), np.sqrt(flat([adam.v for adam in adams])))
            assert_close(part.optimizer.parameter, flat([adam.layers for adam in adams]))
            assert_close(nn.utils.parameters_to_vector(part.target.parameters()), flat(targets))


def trained(algorithm: str, folder: pathlib.Path, **given: Any) -> Checkpoint:
    """Trains for 300 steps of Pendulum-v1 and returns the checkpoint."""
    run = {"env": "Pendulum-v1", "total_timesteps": 300, "learning_starts": 50, "batch_size": 16}
    here = {"device": "cpu", "quiet": True, "run_dir": str(folder / "_".join([algorithm, *given]))}
    module = MODULES[algorithm]
    checkpoint: Checkpoint = module.train(
        module.Config(hidden=HIDDEN, **run, **here, **given)
    ).checkpoint
    assert checkpoint.counters.updates > 250
    return checkpoint


def test_td3_without_its_extensions_is_bit_identical_to_ddpg(tmp_path: pathlib.Path) -> None:
    """Compares parameters, target networks and the optimizers' statistics."""
    found, expected = trained("td3", tmp_path, **AS_DDPG), trained("ddpg", tmp_path)
    assert found.parameters.keys() == expected.parameters.keys()
    for name, parameter in expected.parameters.items():
        assert torch.equal(found.parameters[name], parameter), name
    torch.testing.assert_close(found.optimizer, expected.optimizer, rtol=0, atol=0)


def test_td3_with_one_of_its_extensions_differs_from_ddpg(tmp_path: pathlib.Path) -> None:
    """Each extension has an effect on the policy in the run of the test above."""
    name = "actor.online.layers.weights.0"
    policies = [trained("ddpg", tmp_path).parameters[name]]
    for extension in AS_DDPG:
        others = {key: value for key, value in AS_DDPG.items() if key != extension}
        found = trained("td3", tmp_path, **others).parameters[name]
        assert not any(torch.equal(found, policy) for policy in policies)
        policies.append(found)


class Ends(gymnasium.Env[Any, Any]):
    """Episodes of three steps, alternately terminated and truncated.

    Observations are (episode, steps taken, 0); rewards are 10 · episode + steps taken.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (OBS_SIZE,))
    action_space = spaces.Box(-2, 2, (ACT_SIZE,))
    episode = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.episode, self.taken = self.episode + 1, 0
        return np.array([self.episode, 0, 0], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        observation = np.array([self.episode, self.taken, 0], np.float32)
        reward = 10.0 * self.episode + self.taken
        ended, odd = self.taken == 3, self.episode % 2 == 1
        return observation, reward, ended and not odd, ended and odd, {}


@pytest.mark.parametrize(("algorithm", "bias"), [("ddpg", 7), ("td3", 5)])
def test_a_time_limit_bootstraps_and_a_termination_does_not(
    algorithm: str, bias: float, recorded: Records
) -> None:
    """Targets of an update on collected transitions, with Q'_i(s', ·) = steps taken + 7 or 5."""
    learner, config = make(algorithm, 0, hidden=())
    weights, biases = learner.critics.target.layers.parameters()
    weights.copy_(torch.eye(OBS_SIZE + ACT_SIZE)[1].unsqueeze(1))
    biases.view(-1).copy_(torch.tensor([7.0, 5.0])[: len(biases)])
    envs = vectorize.sequential(Ends, 2)
    env_codec = EnvCodec(
        ObservationCodec.of(envs.single_observation_space),
        ActionCodec.of(envs.single_action_space, rescale=True),
    )
    replay = ReplayBuffer(24, 2, env_codec)
    collector = TransitionCollector(envs, env_codec, replay, 0, lambda *_: None)
    for _ in range(50):  # more than three times the capacity
        collector.step(torch.zeros(2, ACT_SIZE))
    batch = replay.sample(500, torch.Generator().manual_seed(0))
    update(algorithm, learner, batch, config)

    episodes, taken, _ = batch.observations.unbind(1)
    cases = set(zip((episodes % 2).tolist(), taken.tolist(), strict=True))
    assert cases == set(itertools.product((0, 1), (0, 1, 2)))
    rewards = 10 * episodes + taken + 1
    terminated = (taken == 2) & (episodes % 2 == 0)
    assert_close(recorded[0][0], double(rewards) + GAMMA * double((taken + 1 + bias) * ~terminated))


def test_td_targets_equal_hand_computed_values() -> None:
    """2 + 0.9 · 10, and 2 after a termination for any value."""
    values, terminated = torch.tensor([10.0, 10.0, torch.inf]), torch.tensor([False, True, True])
    found = returns.td_targets(torch.full((3,), 2.0), values, terminated, gamma=0.9)
    assert_close(found, np.array([11.0, 2.0, 2.0]))
