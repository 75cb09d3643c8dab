"""A run that is killed many times at random instants ends with the same weights as an uninterrupted one, bit for bit.

`python tests/kills.py 100` makes more kills and prints what they were.
"""

import sys

import pytest
from kills import SCENARIOS, Harness

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks processes, and finds them in /proc")


@pytest.fixture
def harness(tmp_path):
    harness = Harness(tmp_path, seed=1)
    yield harness
    harness.close()


@pytest.mark.parametrize(
    ("scenario", "kills"),
    [("pretraining", 3), *(pytest.param(name, 20, marks=pytest.mark.slow) for name in SCENARIOS)],
)
def test_kills_at_random_instants_change_nothing_and_leave_nothing_behind(harness, scenario, kills):
    figures = harness.run(kills, [scenario])
    print(figures)
    assert figures.kills == kills
    assert figures.runs[scenario] >= 1
