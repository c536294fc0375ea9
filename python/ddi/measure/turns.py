"""Wall-clock of small calls against each other: providers take turns round by round.

A round of a provider is one tight loop over calls that were built beforehand, arguments and all, so
that no one pays for the harness; the garbage collector is off, as in timeit. The order rotates from
round to round and each round begins with untimed calls: threads of the provider before may still
spin, and its data fill the cache. A time is the median over the rounds, with quantiles.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from torch import Tensor

from .timing import Timing

ROUNDS = 7
ROUND_SECONDS = 0.05
_LEAST_CALLS = 3
# Untimed calls at the start of a round, as a part of the timed ones.
_SETTLE = 1 / 8


@dataclass(frozen=True)
class Provider:
    """One way to compute a case.

    Args:
        calls: ready to run without arguments; round after round walks through them in a circle.
        context: entered around each round, outside of the timed loop, e.g. for a backend.
        bound_inputs: kept alive for calls that know only their addresses.
        bound_outputs: where calls write their results, one tensor a call; empty where they return them.
        least_calls: that a round has, where calls differ in what they do.
    """

    calls: Sequence[Callable[[], object]]
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    bound_inputs: Sequence[Tensor] = ()
    bound_outputs: Sequence[Tensor] = ()
    least_calls: int = _LEAST_CALLS

    def output(self, index: int) -> Tensor:
        """What call `index` computes."""
        with self.context():
            result = self.calls[index]()
        result = self.bound_outputs[index] if self.bound_outputs else result
        assert isinstance(result, Tensor)
        return result


@dataclass(frozen=True)
class Measured:
    """Milliseconds per call over the rounds, and how many calls a round has."""

    timing: Timing
    calls: int


def time_in_turns(
    providers: Mapping[str, Provider],
    rounds: int = ROUNDS,
    seconds: float = ROUND_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Measured]:
    """Times providers round by round in turn.

    Args:
        providers: by name.
        rounds: of each provider.
        seconds: about what a round should take; at least three calls are made.
        clock: in seconds.
    """
    names = list(providers)
    rounds_ms: dict[str, list[float]] = {name: [] for name in names}
    with _collector_off():
        counts = {name: _calls_per_round(p, seconds, clock) for name, p in providers.items()}
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                taken = _round(providers[name], turn, counts[name], clock)
                rounds_ms[name].append(taken * 1e3 / counts[name])
    return {name: Measured(Timing.of(rounds_ms[name]), counts[name]) for name in names}


def _calls_per_round(provider: Provider, seconds: float, clock: Callable[[], float]) -> int:
    with provider.context():
        provider.calls[0]()  # packs weights, plans memory
        start = clock()
        for call in provider.calls[:_LEAST_CALLS]:
            call()
        once = (clock() - start) / len(provider.calls[:_LEAST_CALLS])
    return max(provider.least_calls, int(seconds / once))


def _round(provider: Provider, turn: int, count: int, clock: Callable[[], float]) -> float:
    """Seconds of `count` calls, which go on in the circle where the turn before ended."""
    calls = provider.calls
    timed = [calls[i % len(calls)] for i in range(turn * count, (turn + 1) * count)]
    with provider.context():
        for call in timed[-max(1, int(count * _SETTLE)) :]:
            call()
        start = clock()
        for call in timed:
            call()
        return clock() - start


@contextmanager
def _collector_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
