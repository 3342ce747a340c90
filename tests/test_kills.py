"""The short version of `kills.py`: processes that are ended at a moment, and go on to the bit."""

from __future__ import annotations

import random
import signal

import kills
import pytest

from rlhf_jax.loops.preemption import PREEMPTED


@pytest.mark.slow
def test_processes_that_are_ended_at_a_moment_end_as_those_that_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(kills, "NAMES", ("smoke/sft",))
    said: list[str] = []
    dice = random.Random(4)
    killed = kills.end_often(tmp_path, 2, signal.SIGKILL, dice, said.append)
    asked = kills.end_often(tmp_path, 2, signal.SIGTERM, dice, said.append)
    assert [found.differences for found in (*killed, *asked)] == [[]] * 4, said
    assert [found.code for found in killed] == [-signal.SIGKILL] * 2
    assert all(found.code in (PREEMPTED, -signal.SIGTERM, 0) for found in asked)
