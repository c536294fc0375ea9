"""Timing in turns, on a clock that only the providers move."""

import gc
from contextlib import contextmanager

import pytest
import torch

from ddi.measure.turns import Provider, time_in_turns


class Clock:
    """Seconds that pass when a call says so; a timed loop lies between two readings."""

    now = 0.0

    def __call__(self):
        return self.now


class Spies:
    """A provider of calls that note themselves and take the given seconds."""

    def __init__(self, clock, log, name, seconds, calls=4):
        def call(index):
            assert not gc.isenabled()
            log.append((name, index))
            clock.now += seconds

        self.provider = Provider([lambda i=i: call(i) for i in range(calls)])


@pytest.fixture
def clock():
    return Clock()


def test_times_are_per_call_and_counts_fill_a_round(clock):
    fast = Spies(clock, [], "fast", 0.001).provider
    slow = Spies(clock, [], "slow", 0.5).provider
    timed = time_in_turns({"fast": fast, "slow": slow}, rounds=5, seconds=0.0505, clock=clock)
    assert timed["fast"].calls == 50 and timed["slow"].calls == 3
    for name, milliseconds in (("fast", 1), ("slow", 500)):
        timing = timed[name].timing
        assert len(timing.passes_ms) == 5
        assert [timing.median_ms, timing.p20_ms, timing.p80_ms] == pytest.approx([milliseconds] * 3)


def test_turns_rotate(clock):
    log = []
    providers = {name: Spies(clock, log, name, 1.0).provider for name in "abc"}
    time_in_turns(providers, rounds=4, seconds=1, clock=clock)
    order = [name for name, _ in log]
    changes = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    # Calibration in order; then abc, bca, cab, abc, of which neighbours never are alike.
    assert "".join(changes) == "abc" + "abc" + "bca" + "cab" + "abc"


def test_rounds_go_on_where_the_last_one_ended_and_settle_untimed(clock):
    log = []
    spy = Spies(clock, log, "a", 1.0).provider
    timed = time_in_turns({"a": spy}, rounds=2, seconds=6, clock=clock)["a"]
    indices = [index for _, index in log]
    assert indices[:4] == [0, 0, 1, 2]  # to warm up, then to calibrate
    # One call to settle, six timed ones.
    assert indices[4:] == [1, 0, 1, 2, 3, 0, 1] + [3, 2, 3, 0, 1, 2, 3]
    assert timed.timing.passes_ms == (1000.0, 1000.0)


def test_median_over_rounds_ignores_one_bad_round(clock):
    calls = 0

    def call():
        nonlocal calls
        calls += 1
        clock.now += 100.0 if 20 < calls <= 24 else 1.0

    timing = time_in_turns({"a": Provider([call])}, rounds=7, seconds=3, clock=clock)["a"].timing
    assert timing.median_ms == 1000 and max(timing.passes_ms) > 30_000


@pytest.mark.parametrize("fails", (False, True))
def test_the_collector_comes_back(clock, fails):
    def call():
        clock.now += 1
        if fails:
            raise RuntimeError("failed")

    assert gc.isenabled()
    if fails:
        with pytest.raises(RuntimeError):
            time_in_turns({"a": Provider([call])}, clock=clock)
    else:
        time_in_turns({"a": Provider([call])}, clock=clock)
    assert gc.isenabled()


def test_calls_run_in_their_context_and_outputs_may_be_bound(clock):
    inside = []

    @contextmanager
    def context():
        inside.append(True)
        yield
        inside.pop()

    def call():
        assert inside == [True]
        clock.now += 1
        return torch.ones(1)

    time_in_turns({"a": Provider([call], context=context)}, clock=clock)
    assert Provider([call], context=context).output(0) == 1
    bound = Provider([call], context=context, bound_outputs=[torch.full((1,), 5.0)])
    assert bound.output(0) == 5 and not inside
