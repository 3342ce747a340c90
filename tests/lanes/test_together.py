"""Lanes give what each would alone, wait for each other and for nobody else, and end as they must."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.compiled import Programs, Recompiled
from rlhf_jax.config import MeshConfig
from rlhf_jax.frozen import Frozen
from rlhf_jax.lanes.numbers import Decides
from rlhf_jax.lanes.together import Team, TooLarge, run_lanes
from rlhf_jax.loops.preemption import Notice, Preempted
from rlhf_jax.mesh import make_mesh

MESH = make_mesh(MeshConfig())
TWO = [make_mesh(MeshConfig(), [device]) for device in jax.devices()[:2]]


@dataclasses.dataclass(frozen=True)
class Rate:
    rate: float
    kind: str = "plain"


def counting(calls):
    """A step `x -> x + rate`, which counts how often it is traced."""

    def make(config: Rate):
        def step(state, by):
            calls.append(config)
            return {"x": state["x"] + config.rate * by, "base": state["base"]}, {"x": state["x"]}

        return step

    return make


def train(calls, config, steps, start=0.0):
    def work(programs: Programs):
        step = programs.step(counting(calls), config)
        double = programs.function(lambda: lambda x: 2 * x, programs=1)
        state = {"x": jnp.full(3, start, jnp.float32), "base": Frozen(jnp.arange(2.0) + start)}
        for number in range(steps):
            state, _ = step(state, np.float32(number))
        return double(state["x"]), state["base"].tree

    return work


def test_lanes_with_numbers_and_lengths_of_their_own_end_as_each_would_alone():
    calls = []
    runs = [(Rate(0.1), 4, 0.0), (Rate(0.3), 7, 1.0), (Rate(0.1), 0, 2.0)]
    found = run_lanes([train(calls, *run) for run in runs], [MESH])
    assert len(calls) == 1, "one program for all"
    for run, (doubled, base) in zip(runs, found, strict=True):
        alone = train([], *run)(Programs(MESH))
        np.testing.assert_allclose(doubled, alone[0], rtol=1e-6)
        np.testing.assert_array_equal(base, alone[1])


def test_a_call_serves_all_lanes(monkeypatch):
    served, run = [], Team._run
    monkeypatch.setattr(
        Team,
        "_run",
        lambda self, program, kind, requests: served.append(len(requests)) or run(self, program, kind, requests),
    )
    run_lanes([train([], Rate(rate), 5) for rate in (0.1, 0.2, 0.3)], [MESH])
    assert served == [3] * 6  # five steps, and what comes after


def test_lanes_are_dealt_to_devices_and_share_programs_there():
    devices = jax.devices()[:2]

    def work(number):
        def follow(programs: Programs):
            x = programs.function(lambda: lambda x: x + 1)(
                jax.device_put(np.float32(number), programs.mesh.devices.flat[0])
            )
            return float(x), next(iter(x.devices()))

        return follow

    found = run_lanes([work(number) for number in range(5)], TWO)
    assert found == [(number + 1.0, devices[number % 2]) for number in range(5)]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("lanes", [2, 5])
def test_devices_share_programs_or_have_their_own_and_lanes_end_as_each_would_alone(lanes, shared):
    calls = []
    runs = [(Rate(0.1 * number), 2 + 2 * number % 5, float(number)) for number in range(lanes)]  # they end one by one
    found = run_lanes([train(calls, *run) for run in runs], TWO, shared=shared)
    assert len(calls) == (1 if shared else 2)
    for number, (run, (doubled, base)) in enumerate(zip(runs, found, strict=True)):
        alone = train([], *run)(Programs(MESH))
        np.testing.assert_allclose(doubled, alone[0], rtol=1e-6)
        np.testing.assert_array_equal(base, alone[1])
        assert doubled.devices() == {jax.devices()[number % 2]}


def test_numbers_whose_type_gives_way_to_others_are_refused():
    def work(programs: Programs):
        return programs.step(counting([]), Rate(0.1))({"x": jnp.ones(2), "base": Frozen(jnp.ones(2))}, 0.5)

    for error in run_lanes([work] * 2, [MESH]):
        assert isinstance(error, TypeError) and "of its arguments 1 is a number of Python" in str(error)
        assert "np.float32(...)" in str(error)


def test_a_program_may_give_numbers_of_python_and_take_keys():
    def work(programs: Programs):
        draw = programs.function(lambda: lambda key: {"drawn": jax.random.normal(key), "one": 1.0})
        return draw(jax.random.key(3)), draw(jax.random.key(4))

    expected = work(Programs(MESH))
    for found in run_lanes([work] * 5, TWO):
        assert jax.tree.map(float, found) == jax.tree.map(float, expected)


def test_a_lane_that_fails_is_left_out_and_the_others_go_on():
    def fails(programs: Programs):
        programs.step(counting([]), Rate(0.2))
        raise OSError("no room")

    first, error, last = run_lanes([train([], Rate(0.1), 3), fails, train([], Rate(0.4), 3)], [MESH])
    assert isinstance(error, OSError)
    np.testing.assert_allclose(first[0], 0.6, rtol=1e-6)
    np.testing.assert_allclose(last[0], 2.4, rtol=1e-6)


def test_lanes_at_different_programs_wait_so_that_all_are_called_for_all_who_want_them():
    served = []

    def work(first):
        def follow(programs: Programs):
            a = programs.function(lambda: lambda x: served.append("a") or x + 1)
            b = programs.function(lambda: lambda x: served.append("b") or x * 10)
            x = a(jnp.float32(1)) if first else jnp.float32(1)
            return float(b(x))

        return follow

    assert run_lanes([work(True), work(False)], [MESH]) == [20.0, 10.0]
    assert served == ["a", "b"]


def test_arguments_of_other_shapes_are_other_programs_and_each_lane_has_as_many_as_it_expects():
    def work(sizes):
        def follow(programs: Programs):
            total = programs.function(lambda: jnp.sum, programs=1)
            return [float(total(jnp.ones(size))) for size in sizes]

        return follow

    assert run_lanes([work([3]), work([5])], [MESH]) == [[3.0], [5.0]]
    whole, error = run_lanes([work([3, 3]), work([5, 4])], [MESH])
    assert whole == [3.0, 3.0]
    assert isinstance(error, Recompiled) and "float32[5] anywhere -> float32[4] anywhere" in str(error)


def test_what_decides_a_program_is_said_by_name():
    def branches(config: Rate):
        return (lambda x: x) if config.rate > 0.2 else (lambda x: -x)

    def work(config):
        return lambda programs: programs.function(branches, config)(jnp.float32(1))

    for outcome in run_lanes([work(Rate(0.1)), work(Rate(0.3))], [MESH]):
        assert isinstance(outcome, Decides) and outcome.names == ("rate",)
    assert run_lanes([work(Rate(0.3)), work(Rate(0.4))], [MESH]) == [1, 1]
    for outcome in run_lanes([work(Rate(0.3)), work(Rate(0.3, "other"))], [MESH]):
        assert isinstance(outcome, Decides) and outcome.names == ("kind",)


def test_programs_that_need_more_memory_than_there_is_say_how_many_lanes_would_fit():
    def work(programs: Programs):
        return programs.function(lambda: lambda x: x + 1)(jnp.zeros(1000))

    needed = 4 * 2 * 4 * 1000  # arguments and results of four lanes
    assert not any(isinstance(found, TooLarge) for found in run_lanes([work] * 4, [MESH], memory=3 * needed))
    for outcome in run_lanes([work] * 4, [MESH], memory=needed // 2):
        assert isinstance(outcome, TooLarge) and 1 <= outcome.fitting <= 2
        assert "a program needs" in str(outcome)
    assert not any(isinstance(found, TooLarge) for found in run_lanes([work] * 8, TWO, memory=3 * needed))
    for outcome in run_lanes([work] * 8, TWO, memory=needed // 2):  # fitting on each of the devices
        assert isinstance(outcome, TooLarge) and 1 <= outcome.fitting <= 2
        assert "a program needs" in str(outcome)


def test_what_lanes_keep_beside_the_arguments_of_a_program_takes_room_too():
    kept = 4 * 4 * 100_000  # bytes of the four lanes, each time

    def work(programs: Programs):
        make = programs.function(lambda: lambda x: jnp.full(100_000, x))
        models = [make(np.float32(n)) for n in range(6)]
        return programs.function(lambda: lambda x: x + 1)(np.float32(1)), models

    other = jnp.ones(10 * kept // 4)  # which is no lane's
    for memory, fits in ((9 * kept, True), (5 * kept, False)):
        outcomes = run_lanes([work] * 4, [MESH], memory=memory)
        assert [isinstance(outcome, TooLarge) for outcome in outcomes] == [not fits] * 4
    del other


def test_lanes_share_one_device():
    with pytest.raises(ValueError, match="lanes share one device, and this mesh has 2"):
        run_lanes([lambda programs: None] * 2, [make_mesh(MeshConfig(data=2))])


def test_interrupted_all_lanes_end_as_interrupted_before_it_returns():
    ended = []

    def slowly(x):
        time.sleep(1.5)  # while it is traced
        return x + 1

    def work(programs: Programs):
        step, slow = programs.function(lambda: lambda x: x + 1), programs.function(lambda: slowly)
        x = step(jnp.float32(0))
        try:
            x = slow(x)
            while True:
                x = step(x)
        except KeyboardInterrupt:
            ended.append(float(x))
            raise

    main = threading.main_thread().ident
    # What runs in the background of a shell may have been told to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for seconds in (0.7, 0.9):  # whoever is in a hurry does it twice
            threading.Timer(seconds, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            run_lanes([work, work], [MESH])
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(ended) == 2 and min(ended) > 0


def test_lanes_that_go_through_other_programs_are_told():
    def double():
        return lambda x: 2 * x

    def half():
        return lambda x: x / 2

    def work(make):
        return lambda programs: float(programs.function(make)(jnp.float32(1)))

    first, second = run_lanes([work(double), work(half)], [MESH])
    assert (first, type(second)) == (2.0, RuntimeError) or (type(first), second) == (RuntimeError, 0.5)
    assert "lanes do not go through the same programs" in str(second if first == 2.0 else first)


def test_out_of_memory_says_that_half_as_many_may_fit(monkeypatch):
    def run(self, *_):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory, trying to allocate 8 GiB")

    monkeypatch.setattr(Team, "_run", run)

    def work(programs: Programs):
        return programs.function(lambda: lambda x: x)(jnp.float32(1))

    for outcome in run_lanes([work] * 4, [MESH]):
        assert isinstance(outcome, TooLarge) and outcome.fitting == 2
    (alone,) = run_lanes([work], [MESH])
    assert "RESOURCE_EXHAUSTED" in str(alone) and not isinstance(alone, TooLarge)


def test_before_each_program_a_lane_may_be_asked_to_end():
    notice, seen = Notice(), []

    def work(held):
        def follow(programs: Programs):
            step = programs.function(lambda: lambda x: x + 1)
            with notice.held() if held else contextlib.nullcontext():
                for number in range(4):
                    notice.given = notice.given or number == 2
                    seen.append((held, float(step(jnp.float32(number)))))

        return follow

    outcomes = run_lanes([work(True), work(False)], [MESH], before=notice.heed)
    assert all(isinstance(outcome, Preempted) for outcome in outcomes)
    assert len([1 for held, _ in seen if held]) == 4, "what holds the notice goes on to the end of its block"
    assert len([1 for held, _ in seen if not held]) < 4


def test_keys_and_numbers_of_the_host_go_in_as_they_are():
    def work(seed):
        def follow(programs: Programs):
            draw = programs.function(lambda: lambda key, scale: scale * jax.random.normal(key, (3,)))
            return draw(jax.random.key(seed), np.float32(2))

        return follow

    for seed, found in enumerate(run_lanes([work(0), work(1)], [MESH])):
        np.testing.assert_allclose(found, 2 * jax.random.normal(jax.random.key(seed), (3,)), rtol=1e-6)


def test_where_a_lane_cannot_be_started_the_others_end(monkeypatch):
    start = threading.Thread.start

    def fails(self):
        if self.name == "lane 1":
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", fails)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        run_lanes([train([], Rate(0.1), 2) for _ in range(3)], [MESH])
    for thread in threading.enumerate():
        if thread.name.startswith("lane"):
            thread.join(timeout=10)
            assert not thread.is_alive()
