"""A pytest plugin (``-p tampering``) for tests of the suites: their clock counts calls of functions, and nobody
counts as foreign, so that a busy machine changes nothing. With FUSEDNN_TAMPER=1 three layers are not what they were:
GRU is slow, RNN is wrong, and LSTM makes an operator call a step more than it needs.
"""

from __future__ import annotations

import os
import sys

import pytest

import fusednn
from bench import clock, load

SLOWER = 8
calls = 0


def count(frame, event, argument):
    global calls
    calls += 1


def read():
    sys.setprofile(count)  # pytest-benchmark takes it away where it begins to time
    return 1e-6 * calls


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    try:
        return (yield)
    finally:
        sys.setprofile(None)


def slow(forward):
    def tampered(self, *given, **named):
        start = calls
        result = forward(self, *given, **named)
        end = start + SLOWER * (calls - start)
        while calls < end:  # without operators: a changed count of those would be told first
            len(())
        return result

    return tampered


def wrong(forward):
    def tampered(self, *given, **named):
        output, state = forward(self, *given, **named)
        return output * 1.001, state

    return tampered


def stepwise(forward):
    def tampered(self, x, *given, **named):
        for _ in range(x.shape[0]):
            x = x + 0
        return forward(self, x, *given, **named)

    return tampered


def pytest_configure() -> None:
    """Where this is a plugin; to import it changes nothing."""
    clock.perf_counter = read  # type: ignore[attr-defined]
    load.Watch.read = lambda self: 0.0  # type: ignore[method-assign]
    if os.environ.get("FUSEDNN_TAMPER"):
        for layer, tamper in ((fusednn.GRU, slow), (fusednn.RNN, wrong), (fusednn.LSTM, stepwise)):
            layer.forward = tamper(layer.forward)  # type: ignore[method-assign]
