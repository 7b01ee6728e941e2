"""A network of batchers, event by event, compiled. `network` is its typed interface.

Every batcher follows the rules of `batcher_kernel`. A reply reaches what waits for it at the same
instant, one request after another. In all functions g are the `Arrays`, k is the number of a
batcher, and r, s, m and b are its own, as in `batcher_kernel`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from optimizer.simulator.batcher_kernel import arrive, find_next_done, finish, states_of, wake
from optimizer.simulator.network_layout import TRAFFIC

# `_nrt=False` compiles without numba's runtime, which counts references to arrays. Nothing here
# allocates an array, all views are of `Arrays`, which outlive them, and counting takes most of the
# time. numba has the option for its own tests and does not document it: without it, code that
# allocates fails to compile, and a version that drops it fails at once.
_compiled = njit(cache=True, _nrt=False)  # type: ignore[call-overload]

_HELD = 1e300
"""Time at which the execution of a held instance is done: later than all others, yet not idle."""

_GOLDEN = 0.6180339887498949
"""Spreads the chances of several calls evenly."""


class Arrays(NamedTuple):
    """All arrays of a simulation; `steps`, `rows` and `jobs` are joined over the batchers.

    Attributes:
        pairs: element [a, b] is the logarithm by which an instance that executes b slows a down.
        programs: `CALL`, shape [programs, calls].
        waiting: element [p, a, b] tells whether call b of program p waits for call a.
    """

    rules: NDArray[np.void]
    states: NDArray[np.void]
    steps: NDArray[np.void]
    rows: NDArray[np.void]
    nodes: NDArray[np.void]
    pairs: NDArray[np.float64]
    programs: NDArray[np.void]
    waiting: NDArray[np.bool_]
    runs: NDArray[np.void]
    progress: NDArray[np.void]
    jobs: NDArray[np.void]
    requests: NDArray[np.void]
    resumed: NDArray[np.int64]
    traffic: NDArray[np.void]


def new_arrays(
    rules: NDArray[np.void], traffic: tuple[float, int, bool], **arrays: NDArray[Any]
) -> Arrays:
    """Return the arrays at the start of a simulation.

    Args:
        traffic: `again_ms`, the arrivals whose times are given, and `contention`.
        arrays: the others, but for the instances that were resumed.
    """
    begin = np.zeros(1, TRAFFIC)
    begin["again_ms"], begin["arrivals"], begin["contention"] = traffic
    resumed = np.zeros((int(rules["instances"].sum()) + 1, 2), dtype=np.int64)
    return Arrays(rules, states_of(rules), resumed=resumed, traffic=begin, **arrays)


@_compiled
def run(g):  # type: ignore[no-untyped-def]
    """Simulate until all requests are answered."""
    t = g.traffic[0]
    requests = len(g.requests)
    while t.answered < requests:
        arrival = g.requests[t.arrived].arrive if t.arrived < t.arrivals else np.inf
        done, done_at, wakes, wake_at = 0, np.inf, 0, np.inf
        for k in range(len(g.nodes)):
            if g.states[k].next_done < done_at:
                done, done_at = k, g.states[k].next_done
            if g.states[k].wake_at < wake_at:
                wakes, wake_at = k, g.states[k].wake_at
        t.now = min(arrival, done_at, wake_at)
        if done_at == t.now:
            _execution_ends(g, done)
        elif arrival == t.now:
            _enter(g, t.arrived)
            t.arrived += 1
        else:
            s = g.states[wakes]
            m, b = _own(g, wakes)
            s.now = t.now
            wake(g.rules[wakes], s, m, b)
        _pass_on(g)
        if t.contention:
            _share(g)


@_compiled
def _own(g, k):  # type: ignore[no-untyped-def]
    """Return a batcher's own steps and rows."""
    node = g.nodes[k]
    return g.steps[node.step : node.step_end], g.rows[node.row : node.row_end]


@_compiled
def _execution_ends(g, k):  # type: ignore[no-untyped-def]
    r, s, node = g.rules[k], g.states[k], g.nodes[k]
    m, b = _own(g, k)
    s.now = g.traffic[0].now
    instance = s.next_instance
    if node.program < 0:
        _keep_duration(s, m, b, instance)
        finish(r, s, m, b, instance)
        return
    m[instance].done = _HELD
    m[instance].calling = 0
    node.held += 1
    find_next_done(r, s, m)
    _resume(g, k, instance)


@_compiled
def _keep_duration(s, m, b, instance):  # type: ignore[no-untyped-def]
    """Correct the duration of an execution that was slowed down, or waited for other models."""
    execution = m[instance].execution
    end = b[execution].execution_begin + b[execution].execution_ms
    if end != s.now:
        b[execution].execution_ms = s.now - b[execution].execution_begin


@_compiled
def _resume(g, k, instance):  # type: ignore[no-untyped-def]
    """Remember a held instance whose execution may go on."""
    t = g.traffic[0]
    at = t.resume_end % len(g.resumed)
    g.resumed[at, 0], g.resumed[at, 1] = k, instance
    t.resume_end += 1


@_compiled
def _enter(g, request):  # type: ignore[no-untyped-def]
    """Let a request of a source in."""
    _begin_run(g, request, g.requests[request].program, request, -1, request)


@_compiled
def _begin_run(g, run, program, request, node, instance):  # type: ignore[no-untyped-def]
    calls = g.programs[program]
    own = g.runs[run]
    own.program, own.request, own.node, own.instance = program, request, node, instance
    own.left, own.begun, own.failed = 0, 0, False
    for c in range(len(calls)):
        if calls[c].node < 0:
            break
        own.left += 1
        chance = (g.requests[request].chance + _GOLDEN * (c + 1)) % 1.0
        g.progress[run, c].waits_for = calls[c].waits_for
        g.progress[run, c].repeats = calls[c].whole + (chance < calls[c].further)
    _advance(g, run)


@_compiled
def _advance(g, run):  # type: ignore[no-untyped-def]
    """Begin all calls that wait for nothing; end the run where none is left."""
    own, calls = g.runs[run], g.programs[g.runs[run].program]
    moved = not own.failed
    while moved:
        moved = False
        for c in range(len(calls)):
            if calls[c].node < 0:
                break
            progress = g.progress[run, c]
            if progress.waits_for != 0:
                continue
            progress.waits_for = -1
            if progress.repeats == 0:
                _complete(g, run, c)
                moved = True
            else:
                own.begun += 1
                _call(g, run, c)
    if own.begun == 0 and (own.left == 0 or own.failed):
        _end_run(g, run)


@_compiled
def _complete(g, run, call):  # type: ignore[no-untyped-def]
    own, calls = g.runs[run], g.programs[g.runs[run].program]
    own.left -= 1
    for other in range(len(calls)):
        if g.waiting[own.program, call, other]:
            g.progress[run, other].waits_for -= 1


@_compiled
def _call(g, run, call):  # type: ignore[no-untyped-def]
    """Send a request to the batcher of a call."""
    own = g.runs[run]
    k = g.programs[own.program, call].node
    s = g.states[k]
    m, b = _own(g, k)
    request, row = g.requests[own.request], s.arrivals
    b[row].arrive = s.now = g.traffic[0].now
    b[row].shape, b[row].factor = request.shape, request.factor
    g.jobs[g.nodes[k].row + row].run = run
    g.jobs[g.nodes[k].row + row].call = call
    s.arrivals += 1
    arrive(g.rules[k], s, m, b)


@_compiled
def _end_run(g, run):  # type: ignore[no-untyped-def]
    """Answer the request of a source, or go on with the execution of a composed model."""
    own, t = g.runs[run], g.traffic[0]
    if own.node < 0:
        request = g.requests[own.request]
        request.done, request.refused = t.now, own.failed
        t.answered += 1
        if t.arrivals < len(g.requests):
            g.requests[t.arrivals].arrive = t.now + t.again_ms
            t.arrivals += 1
        return
    if own.failed:
        g.rows[g.nodes[own.node].row + run - g.nodes[own.node].run].refused = True
    _resume(g, own.node, own.instance)


@_compiled
def _pass_on(g):  # type: ignore[no-untyped-def]
    """Pass replies on to the runs that wait for them, until all have been."""
    t = g.traffic[0]
    moved = True
    while moved:
        moved = False
        for k in range(len(g.nodes)):
            s, node = g.states[k], g.nodes[k]
            while s.passed_on < s.answered:
                row = node.row + g.rows[node.row + s.passed_on].answered
                s.passed_on += 1
                _reply(g, g.jobs[row].run, g.jobs[row].call, g.rows[row].refused)
                moved = True
        while t.resume < t.resume_end:
            at = t.resume % len(g.resumed)
            t.resume += 1
            _go_on(g, g.resumed[at, 0], g.resumed[at, 1])
            moved = True


@_compiled
def _reply(g, run, call, refused):  # type: ignore[no-untyped-def]
    own = g.runs[run]
    own.begun -= 1
    own.failed = own.failed or refused
    progress = g.progress[run, call]
    progress.repeats -= 1
    if progress.repeats > 0 and not own.failed:
        own.begun += 1
        _call(g, run, call)
        return
    _complete(g, run, call)
    _advance(g, run)


@_compiled
def _go_on(g, k, instance):  # type: ignore[no-untyped-def]
    """Go on with the execution of a composed model, whose requests call others in turn."""
    r, s, node = g.rules[k], g.states[k], g.nodes[k]
    m, b = _own(g, k)
    s.now = g.traffic[0].now
    calling = m[instance].calling
    if calling < m[instance].size:
        m[instance].calling += 1
        row = b[m[instance].first + calling].sent
        request = g.runs[g.jobs[node.row + row].run].request
        _begin_run(g, node.run + row, node.program, request, k, instance)
        return
    node.held -= 1
    _keep_duration(s, m, b, instance)
    finish(r, s, m, b, instance)


@_compiled
def _share(g):  # type: ignore[no-untyped-def]
    """Slow executions down by what is executed at the same time."""
    nodes = g.nodes
    for k in range(len(nodes)):
        executing = g.rules[k].instances - g.states[k].idle - nodes[k].held
        if executing == 0:
            continue
        log = 0.0
        for other in range(len(nodes)):
            if g.pairs[k, other] != 0.0:
                busy = g.rules[other].instances - g.states[other].idle - nodes[other].held
                log += g.pairs[k, other] * busy
        slowdown = np.exp(log)
        if slowdown != g.states[k].slowdown:
            _change_speed(g, k, slowdown)


@_compiled
def _change_speed(g, k, slowdown):  # type: ignore[no-untyped-def]
    s = g.states[k]
    m, _ = _own(g, k)
    now, factor = g.traffic[0].now, slowdown / s.slowdown
    for instance in range(g.rules[k].instances):
        if now < m[instance].done < _HELD:
            m[instance].done = now + (m[instance].done - now) * factor
    s.slowdown = slowdown
    find_next_done(g.rules[k], s, m)
