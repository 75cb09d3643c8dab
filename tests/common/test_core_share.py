"""A run is told when other programs take its cores, once, and only then."""

import os
import time

import pytest

from mini_chat_gpt.common import core_share
from mini_chat_gpt.common.core_share import CPUContention


@pytest.fixture
def clocks(monkeypatch):
    """Wall and processor seconds, and the load, to be set."""
    now = {"wall": 0.0, "used": 0.0, "load": 9.0}
    monkeypatch.setattr(time, "monotonic", lambda: now["wall"])
    monkeypatch.setattr(time, "process_time", lambda: now["used"])
    monkeypatch.setattr(core_share, "_load", lambda: now["load"])
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    return now


def after(clocks, watch: CPUContention, wall: float, used: float) -> str | None:
    clocks["wall"] += wall
    clocks["used"] += used
    return watch.look()


def test_it_is_said_once(clocks):
    watch = CPUContention(2)
    assert after(clocks, watch, 19, 1) is None  # too early to tell
    assert "2 threads get 62% of their time" in (after(clocks, watch, 1, 23.8) or "")
    assert after(clocks, watch, 30, 1) is None


def test_a_run_that_has_its_cores_is_told_nothing(clocks):
    watch = CPUContention(2)
    assert after(clocks, watch, 25, 48) is None
    assert after(clocks, watch, 25, 41) is None
    assert after(clocks, CPUContention(1), 25, 5) is None
    clocks["load"] = 1.5  # it waits for something else, as a disk
    assert after(clocks, watch, 25, 5) is None


def test_each_stretch_is_looked_at_by_itself(clocks):
    watch = CPUContention(2)
    assert after(clocks, watch, 1000, 2000) is None
    assert after(clocks, watch, 20, 20) is not None
