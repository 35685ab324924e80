"""Tests of metrics computed from the counters."""

import math

from hogwild_rl.hogwild.counters import Counters
from hogwild_rl.runs import logger
from hogwild_rl.runs.logger import Progress


def test_recent_episodes_include_those_of_earlier_sessions() -> None:
    counters = Counters(2)
    before = Progress(
        steps=1_000,
        episodes=300,
        recent_returns=tuple(map(float, range(100))),
        recent_lengths=tuple(range(100)),
    )
    assert logger.recent_episodes(counters, before) == (
        before.recent_returns,
        before.recent_lengths,
    )
    for worker, (episode_return, length) in enumerate([(500.0, 7), (600.0, 8)]):
        counters.writer(worker).add_rollout(10, [(episode_return, length)])
    episodes = logger.recent_episodes(counters, before)
    assert episodes.returns == (*before.recent_returns[2:], 500.0, 600.0)
    assert episodes.lengths == (*before.recent_lengths[2:], 7, 8)
    snapshot = logger.take_snapshot(counters, episodes, before, 1.0, None)
    assert snapshot.return_mean == (sum(range(2, 100)) + 1_100) / 100
    assert snapshot.length_mean == (sum(range(2, 100)) + 15) / 100


def test_mean_return_is_nan_before_the_first_episode() -> None:
    episodes = logger.recent_episodes(Counters(1), Progress())
    assert episodes == ((), ())
    assert math.isnan(
        logger.take_snapshot(Counters(1), episodes, Progress(), 1.0, None).return_mean
    )
