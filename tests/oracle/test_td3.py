"""TD3 and DDPG against their papers in NumPy, against each other, and at the ends of episodes."""

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
from tests.td3_in_numpy import Floats, Layers, Paper, Settings
from tests.td3_in_numpy import Transitions as PlainTransitions

Notes = list[tuple[Tensor, Tensor]]

GAMMA, TAU, RATE, NOISE, CLIP, DELAY = 0.9, 0.1, 1e-3, 0.4, 0.5, 2
OBSERVED, ACTED, HIDDEN, N = 3, 4, (16, 12), 32  # no two sizes are equal
MODULES: dict[str, Any] = {"ddpg": ddpg, "td3": td3}
CRITICS = {"ddpg": 1, "td3": 2}
PLAIN = {"critics": 1, "policy_delay": 1, "target_noise": 0.0}  # TD3 without its remedies
SEEDS = (8, 9, 10)  # of batches in which every remedy has something to do


def double(tensor: Tensor) -> Floats:
    return tensor.detach().numpy().astype(np.float64)


def mlps(module: Any) -> list[Layers]:
    """Each of the networks that stand side by side in an actor, or in critics."""
    stacked: EnsembleMLP = module.layers
    layers = [(double(w), double(b)) for w, b in zip(stacked.weights, stacked.biases, strict=True)]
    count = len(layers[0][0])
    return [[each for w, b in layers for each in (w[i], b[i, 0])] for i in range(count)]


def flat(networks: Sequence[Layers]) -> Floats:
    """All weights, then all biases, those of one layer side by side: the order of a part."""
    layers = list(zip(*networks, strict=True))
    return np.concatenate([np.ravel(alike) for alike in layers[0::2] + layers[1::2]])


def close(found: Tensor, expected: Any) -> None:
    """To a millionth of the largest number among them."""
    assert np.abs(double(found) - expected).max() <= 1e-6 * np.abs(expected).max()


def make(algorithm: str, seed: int, hidden: tuple[int, ...] = HIDDEN) -> tuple[Any, Any]:
    """Actor, critics and random stream of a learner, and its settings."""
    boxes = spaces.Box(-1, 1, (OBSERVED,)), spaces.Box(-1, 1, (ACTED,))
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
    remedies = {"policy_delay": DELAY, "target_noise": NOISE, "target_noise_clip": CLIP}
    given = remedies if algorithm == "td3" else {}
    config = MODULES[algorithm].Config(gamma=GAMMA, tau=TAU, **given)
    generator = torch.Generator().manual_seed(seed)
    learner = types.SimpleNamespace(actor=actor, critics=critics, generator=generator, updates=0)
    return learner, config


def paper(algorithm: str, learner: Any) -> Paper:
    """The paper's algorithm, with the parameters of a learner."""
    noise, delay = (NOISE, DELAY) if algorithm == "td3" else (0.0, 1)
    (actor,), (actor_copy,) = mlps(learner.actor.online), mlps(learner.actor.target)
    critics, critic_copies = mlps(learner.critics.online), mlps(learner.critics.target)
    settings = Settings(GAMMA, TAU, RATE, noise, CLIP, delay)
    return Paper(settings, actor, critics, actor_copy, critic_copies)


def batches(seed: int) -> list[tuple[Transitions, Floats]]:
    """Six at random, a third of the transitions terminated; and what their noise is made of."""
    generator = torch.Generator().manual_seed(1000 + seed)
    noise = torch.Generator().manual_seed(seed)  # equal to the learner's

    def draw(*shape: int) -> Tensor:
        return torch.randn(N, *shape, generator=generator)

    def batch() -> Transitions:
        paid = draw() + 3  # so that errors add up: where they cancel, float32 leaves no 6 digits
        return Transitions(draw(OBSERVED), draw(ACTED).tanh(), paid, draw(OBSERVED), draw() > 0.5)

    return [(batch(), double(torch.randn(N, ACTED, generator=noise))) for _ in range(6)]


def plain(batch: Transitions) -> PlainTransitions:
    """The same in NumPy."""
    s, a, following = map(double, (batch.observations, batch.actions, batch.next_observations))
    return PlainTransitions(s, a, double(batch.rewards), following, batch.terminated.numpy())


def update(algorithm: str, learner: Any, batch: Transitions, config: Any) -> None:
    """One, counted as training counts."""
    learner.updates += 1
    assert MODULES[algorithm].update(learner, batch, config)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Notes:
    """The targets and the critics' loss of every update, as they come."""
    found: Notes = []
    original = losses.td_loss

    def noting(values: Tensor, targets: Tensor) -> Tensor:
        found.append((targets, original(values, targets)))
        return found[-1][1]

    monkeypatch.setattr(losses, "td_loss", noting)
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_the_batches_call_for_every_remedy(seed: int) -> None:
    """Else the next test would show less: in each batch there are both kinds of each."""
    expected = paper("td3", make("td3", seed)[0])
    for batch, draws in batches(seed):
        expected.targets(plain(batch), draws)
        first, second = expected.estimates[~batch.terminated.numpy()].T
        clipped, bounded = np.abs(expected.smooth) == CLIP, np.abs(expected.noisy) > 1
        for kind in (first < second, clipped, bounded, batch.terminated.numpy()):
            assert 0.05 < kind.mean() < 0.95


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("algorithm", MODULES)
def test_updates_are_the_papers(algorithm: str, seed: int, noted: Notes) -> None:
    """Targets, loss, gradients in Adam's moments, parameters and copies, after each of six."""
    learner, config = make(algorithm, seed)
    expected = paper(algorithm, learner)
    for batch, draws in batches(seed):
        update(algorithm, learner, batch, config)
        y, loss = expected.update(plain(batch), draws)
        close(noted[-1][0], y)
        close(noted[-1][1], loss)
        for part, adams, copies in (
            (learner.actor, [expected.actor], [expected.actor_copy]),
            (learner.critics, expected.critics, expected.critic_copies),
        ):
            moments = part.optimizer.state[part.optimizer.parameter]
            close(moments["exp_avg"], flat([adam.m for adam in adams]))
            close(moments["exp_avg_sq"].sqrt(), np.sqrt(flat([adam.v for adam in adams])))
            close(part.optimizer.parameter, flat([adam.layers for adam in adams]))
            close(nn.utils.parameters_to_vector(part.target.parameters()), flat(copies))


def trained(algorithm: str, folder: pathlib.Path, **given: Any) -> Checkpoint:
    """What 300 steps of Pendulum-v1 come to."""
    run = {"env": "Pendulum-v1", "total_timesteps": 300, "learning_starts": 50, "batch_size": 16}
    here = {"device": "cpu", "quiet": True, "run_dir": str(folder / "_".join([algorithm, *given]))}
    module = MODULES[algorithm]
    checkpoint: Checkpoint = module.train(
        module.Config(hidden=HIDDEN, **run, **here, **given)
    ).checkpoint
    assert checkpoint.counters.updates > 250
    return checkpoint


def test_td3_without_its_remedies_is_ddpg_bit_for_bit(tmp_path: pathlib.Path) -> None:
    """Parameters, copies and the optimizers' statistics."""
    found, expected = trained("td3", tmp_path, **PLAIN), trained("ddpg", tmp_path)
    assert found.parameters.keys() == expected.parameters.keys()
    for name, parameter in expected.parameters.items():
        assert torch.equal(found.parameters[name], parameter), name
    torch.testing.assert_close(found.optimizer, expected.optimizer, rtol=0, atol=0)


def test_td3_with_one_of_its_remedies_is_not_ddpg(tmp_path: pathlib.Path) -> None:
    """The policy learns otherwise with each, so the runs above had enough to differ in."""
    name = "actor.online.layers.weights.0"
    policies = [trained("ddpg", tmp_path).parameters[name]]
    for remedy in PLAIN:
        others = {key: value for key, value in PLAIN.items() if key != remedy}
        found = trained("td3", tmp_path, **others).parameters[name]
        assert not any(torch.equal(found, policy) for policy in policies)
        policies.append(found)


class Ends(gymnasium.Env[Any, Any]):
    """Episodes of three steps, which terminate and are cut by a time limit in turn.

    Shows (episode, steps taken, 0), and pays 10 · episode + steps taken.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (OBSERVED,))
    action_space = spaces.Box(-2, 2, (ACTED,))
    episode = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.episode, self.taken = self.episode + 1, 0
        return np.array([self.episode, 0, 0], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        shown, paid = [self.episode, self.taken, 0], 10.0 * self.episode + self.taken
        ends, odd = self.taken == 3, self.episode % 2 == 1
        return np.array(shown, np.float32), paid, ends and not odd, ends and odd, {}


@pytest.mark.parametrize(("algorithm", "least"), [("ddpg", 7), ("td3", 5)])
def test_a_time_limit_bootstraps_and_a_termination_does_not(
    algorithm: str, least: float, noted: Notes
) -> None:
    """From an environment to what an update goes by, where Q'_i(s', ·) is steps taken + 7 or 5."""
    learner, config = make(algorithm, 0, hidden=())
    weights, biases = learner.critics.target.layers.parameters()
    weights.copy_(torch.eye(OBSERVED + ACTED)[1].unsqueeze(1))
    biases.view(-1).copy_(torch.tensor([7.0, 5.0])[: len(biases)])
    envs = vectorize.sync_vector_env(Ends, 2)
    env_codec = EnvCodec(
        ObservationCodec.of(envs.single_observation_space),
        ActionCodec.of(envs.single_action_space, rescale=True),
    )
    replay = ReplayBuffer(24, 2, env_codec)
    experience = TransitionCollector(envs, env_codec, replay, 0, lambda phase: None)
    for _ in range(50):  # more than thrice what the replay holds
        experience.step(torch.zeros(2, ACTED))
    batch = replay.sample(500, torch.Generator().manual_seed(0))
    update(algorithm, learner, batch, config)

    episodes, taken, _ = batch.observations.unbind(1)
    kinds = set(zip((episodes % 2).tolist(), taken.tolist(), strict=True))
    assert kinds == set(itertools.product((0, 1), (0, 1, 2)))
    paid = 10 * episodes + taken + 1
    terminated = (taken == 2) & (episodes % 2 == 0)
    close(noted[0][0], double(paid) + GAMMA * double((taken + 1 + least) * ~terminated))


def test_one_step_targets_by_hand() -> None:
    """2 + 0.9 · 10, and behind a termination 2, whatever is thought of it."""
    thought, ended = torch.tensor([10.0, 10.0, torch.inf]), torch.tensor([False, True, True])
    found = returns.td_targets(torch.full((3,), 2.0), thought, ended, gamma=0.9)
    close(found, np.array([11.0, 2.0, 2.0]))
