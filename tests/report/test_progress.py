from __future__ import annotations

import io
import re
from contextlib import redirect_stderr

import pytest

from rlhf_jax.report.progress import duration, progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def no_variable(monkeypatch):
    """As people run it: nothing asked for, and a terminal that can do what terminals can."""
    monkeypatch.delenv("RLHF_JAX_PROGRESS")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")


def test_a_line_every_ten_seconds_and_one_at_the_end():
    clock = Clock()
    with redirect_stderr(io.StringIO()) as out, progress(25, "sft", mode="lines", clock=clock) as bar:
        for step in range(25):
            clock.now += 1.0
            bar.advance(f"nll {step}.0")
    assert out.getvalue().splitlines() == [
        "sft  10/25  40%  1.0 steps/s  15 s left  nll 9.0",
        "sft  20/25  80%  1.0 steps/s  5.0 s left  nll 19.0",
        "sft  25/25  100%  1.0 steps/s  nll 24.0",
    ]


def test_the_last_line_is_not_said_twice():
    clock = Clock()
    with redirect_stderr(io.StringIO()) as out, progress(1, "sft", mode="lines", clock=clock) as bar:
        clock.now += 10.0
        bar.advance()
    assert len(out.getvalue().splitlines()) == 1


def test_rate_and_time_left_of_a_resumed_run_look_only_at_its_own_steps():
    clock = Clock()
    with progress(1000, "ppo", done=900, mode="quiet", clock=clock) as bar:
        assert (bar.rate, bar.seconds_left) == (0.0, None)
        clock.now += 20.0
        bar.update(910)
        assert (bar.rate, bar.seconds_left) == (0.5, 180.0)
        assert bar.line() == "ppo  910/1000  91%  2.0 s/step  3 min 00 s left"


def test_how_far_it_came_is_told_when_it_fails():
    with (
        redirect_stderr(io.StringIO()) as out,
        pytest.raises(RuntimeError),
        progress(10, "sft", mode="lines", clock=Clock()) as bar,
    ):
        bar.advance()
        raise RuntimeError
    assert out.getvalue().startswith("sft  1/10")


def test_a_terminal_gets_a_bar_and_text_in_brackets_is_not_a_style(no_variable):
    with redirect_stderr(Terminal()) as terminal, progress(3, "sft [x]") as bar:
        for _ in range(3):
            bar.advance("nll [0.1, 0.3]")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "3/3" in plain
    assert "sft [x]" in plain
    assert "nll [0.1, 0.3]" in plain


def test_elsewhere_lines_are_printed_without_control_characters(no_variable):
    with redirect_stderr(io.StringIO()) as out, progress(1, "sft") as bar:
        bar.advance()
    assert out.getvalue().startswith("sft  1/1  100%")
    assert "\x1b" not in out.getvalue()


def test_quiet_prints_nothing_and_the_tests_are_quiet():
    with redirect_stderr(Terminal()) as terminal, progress(2, "sft") as bar:
        bar.advance("nll 1")
    assert terminal.getvalue() == ""


def test_an_unknown_mode_in_the_environment_lists_the_known_ones(monkeypatch):
    monkeypatch.setenv("RLHF_JAX_PROGRESS", "loud")
    with pytest.raises(ValueError, match="'loud'; it must be one of auto, bar, lines, quiet"), progress(1, "sft"):
        pass


def test_no_steps_at_all_is_all_of_them():
    with progress(0, "sft", mode="quiet") as bar:
        assert bar.line().startswith("sft  0/0  100%")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7620, "2 h 07 min"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds, words):
    assert duration(seconds) == words
