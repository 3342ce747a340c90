"""The short version of `kills.py`: processes that are ended while they train, and go on to the bit."""

from __future__ import annotations

import signal

import kills
import pytest

from rlhf_jax.loops.preemption import PREEMPTED

NAME = "smoke/sft"


@pytest.mark.slow
def test_processes_that_are_ended_while_they_train_end_as_those_that_are_left_alone(tmp_path):
    whole = tmp_path / "whole"
    kills.finish(NAME, whole)
    found = {}
    for number in (signal.SIGKILL, signal.SIGTERM):
        for moment in (0.0, 0.1):
            directory = tmp_path / f"{number}-{moment}"
            found[number, moment] = kills.ended_at(moment, number, NAME, whole, directory, training=True)
    assert [ended.differences for ended in found.values()] == [[]] * 4
    assert all(found[signal.SIGKILL, moment].code == -signal.SIGKILL for moment in (0.0, 0.1))
    assert all(found[signal.SIGTERM, moment].code == PREEMPTED for moment in (0.0, 0.1))
