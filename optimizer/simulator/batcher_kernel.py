"""Triton's dynamic batcher, event by event, compiled. `batcher` is its typed interface.

The server's threads are assumed to be infinitely fast: events at one instant happen in the order in
which each causes the next. Batch sizes are counted in requests here, times in ms.

Requests become payloads: those of payload k are contiguous in `sent`, from its `first` up to that
of payload k + 1. Payloads from `front` up to `back` are scheduled and not executing (Q);
`open` is the one that the batcher fills (P), which is `back` itself until it is scheduled.

In all functions r are the `RULES`, s is the `STATE`, m are the rows of `STEP` and b those of `ROW`.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from optimizer.simulator.batcher_layout import STATE

_POLL_MS = 500.0
"""Time after which the batcher checks its queue although nothing wakes it."""


def run(
    rules: NDArray[np.void],
    steps: NDArray[np.void],
    rows: NDArray[np.void],
    arrivals: int,
) -> int:
    """Simulate until all requests are answered; fill `rows`, return the number of executions.

    Args:
        rules: `RULES`, shape [1].
        steps: `STEP`, one row for each batch size from 0 and each instance at least.
        rows: `ROW`, shape [requests + 2].
        arrivals: number of arrivals whose times are given; the others follow replies.
    """
    state = states_of(rules)
    state["arrivals"] = arrivals
    return int(_run(rules, steps, rows, state))


def states_of(rules: NDArray[np.void]) -> NDArray[np.void]:
    """Return the states in which batchers with these rules begin, shape [batchers]."""
    states = np.zeros(len(rules), STATE)
    states["idle"] = rules["instances"]
    states["wake_at"] = states["next_done"] = np.inf
    states["slowdown"] = 1.0
    return states


@njit(cache=True)
def _run(rules, m, b, state):  # type: ignore[no-untyped-def]
    r, s, requests = rules[0], state[0], len(b) - 2
    while s.answered < requests:
        arrival = b[s.arrived].arrive if s.arrived < s.arrivals else np.inf
        s.now = min(arrival, s.next_done, s.wake_at)
        if s.next_done == s.now:
            finish(r, s, m, b, s.next_instance)
        elif arrival == s.now:
            arrive(r, s, m, b)
        else:
            wake(r, s, m, b)
        while s.passed_on < s.answered:
            s.passed_on += 1
            if s.arrivals < requests:
                b[s.arrivals].arrive = s.now + r.again_ms
                s.arrivals += 1
    return s.executions


@njit(cache=True)
def arrive(r, s, m, b):  # type: ignore[no-untyped-def]
    """Let the next request in."""
    if r.dynamic:
        _enqueue(r, s, m, b)
    else:
        _send_alone(r, s, m, b)


@njit(cache=True)
def wake(r, s, m, b):  # type: ignore[no-untyped-def]
    """Wake the batcher after its sleep."""
    if _waiting(s) == 0:
        s.wake_at = s.now + _POLL_MS
        return
    if s.waits_for_slot and r.refuses:
        _apply_timeouts(r, s, b)
    _form_batches(r, s, m, b)


@njit(cache=True)
def _send_alone(r, s, m, b):  # type: ignore[no-untyped-def]
    """Make the request a payload of its own, without dynamic batching."""
    b[s.sent].sent = s.arrived
    s.arrived += 1
    s.sent += 1
    s.back += 1
    b[s.back].first = s.sent
    _dispatch(r, s, m, b)


@njit(cache=True)
def _enqueue(r, s, m, b):  # type: ignore[no-untyped-def]
    """Step 1: queue the request; wake the batcher only if that may form a batch."""
    request = s.arrived
    s.arrived += 1
    if r.most_queued > 0 and _waiting(s) >= r.most_queued:
        _refuse(s, b, request)
        return
    shape = b[request].shape
    if s.tail == 0 or b[b[s.tail - 1].queued].shape != shape:
        s.runs += 1
    b[s.tail].queued = request
    b[s.tail].run = s.runs - 1
    s.tail += 1
    b[s.runs - 1].run_end = s.tail
    if not _slot(r, s):
        return
    if r.looks_at_every_request or s.saturated or _stale(s, b) or _waiting(s) >= s.next_preferred:
        _form_batches(r, s, m, b)


@njit(cache=True)
def _waiting(s):  # type: ignore[no-untyped-def]
    return s.tail - s.head + s.late_tail - s.late_head


@njit(cache=True)
def _slot(r, s):  # type: ignore[no-untyped-def]
    """Step 3: return whether another payload, or more of the open one, may be scheduled."""
    if r.prefetch:
        return s.back - s.front < 2 * r.instances
    return s.idle > 0


@njit(cache=True)
def _stale(s, b):  # type: ignore[no-untyped-def]
    """Return whether the open payload is executing."""
    return s.open < s.front or b[s.open].executing


@njit(cache=True)
def _refuse(s, b, request):  # type: ignore[no-untyped-def]
    b[request].refused = True
    _answer(s, b, request)


@njit(cache=True)
def _answer(s, b, request):  # type: ignore[no-untyped-def]
    b[request].done = s.now
    b[s.answered].answered = request
    s.answered += 1


@njit(cache=True)
def _form_batches(r, s, m, b):  # type: ignore[no-untyped-def]
    """Run the batcher's loop until it sleeps: steps 2 to 6."""
    while True:
        if s.saturated or _stale(s, b):
            _open(s, b)
        s.waits_for_slot = _waiting(s) > 0 and not _slot(r, s)
        if _waiting(s) == 0 or s.waits_for_slot:
            s.wake_at = s.now + _POLL_MS
            return
        if r.timeout_ms < np.inf:
            _apply_timeouts(r, s, b)
            if _waiting(s) == 0:
                continue
        count = _choose(r, s, m, b)
        if count < 0:
            return
        if count > 0:
            _send(r, s, m, b, count)
        elif not s.saturated and _waiting(s) > 0:
            # The next request is of another shape than the open payload: the batcher spins until
            # an instance takes that.
            s.wake_at = np.inf
            return


@njit(cache=True)
def _open(s, b):  # type: ignore[no-untyped-def]
    """Step 2: open a new payload."""
    if b[s.open + 1].first > b[s.open].first:
        s.open += 1
        b[s.open + 1].first = s.sent
    s.saturated = False
    s.next_preferred = 0


@njit(cache=True)
def _apply_timeouts(r, s, b):  # type: ignore[no-untyped-def]
    """Remove requests that have waited too long from the head of the queue."""
    while s.head < s.tail:
        request = b[s.head].queued
        if s.now < b[request].arrive + r.timeout_ms:
            return
        s.head += 1
        if r.refuses:
            _refuse(s, b, request)
        else:
            b[s.late_tail].late = request
            s.late_tail += 1


@njit(cache=True)
def _next_in_queue(s, b):  # type: ignore[no-untyped-def]
    return b[s.head].queued if s.head < s.tail else b[s.late_head].late


@njit(cache=True)
def _fitting(r, s, b, held):  # type: ignore[no-untyped-def]
    """Count the requests from the head of the queue that fit into the open payload."""
    shape = b[b[b[s.open].first].sent].shape if held > 0 else b[_next_in_queue(s, b)].shape
    room = r.most - held
    count = 0
    if s.head < s.tail:
        if b[b[s.head].queued].shape == shape:
            count = min(b[b[s.head].run].run_end - s.head, room)
        if count < s.tail - s.head:
            return count
    late = s.late_head
    while late < s.late_tail and count < room and b[b[late].late].shape == shape:
        late += 1
        count += 1
    return count


@njit(cache=True)
def _choose(r, s, m, b):  # type: ignore[no-untyped-def]
    """Return how many requests join the open payload now, by steps 4 and 5; -1 to sleep.

    Triton scans the queue one by one. All requests have one size, so one computation does.
    """
    held = b[s.open + 1].first - b[s.open].first
    count = _fitting(r, s, b, held)
    send_now = count < _waiting(s)
    if send_now and held + count < r.most:
        b[s.open].of_other_shape = True
    best = m[held + count].preferred_up_to - held
    if best <= 0:
        best = _up_to_largest_preferred(r, s, held, count, count + send_now)
    closes_at = _oldest(s, b, count) + r.delay_ms
    expired = r.delay_ms > 0 and s.now >= closes_at
    if best > 0 and not expired:
        if r.delay_ms == 0:
            s.saturated = True
        return best
    if count == 0:
        return 0
    if send_now or held + count >= r.least_full:
        s.saturated = True
        return count
    if expired or r.delay_ms == 0:
        return count
    s.next_preferred = m[held + count].preferred_above - held
    if not s.saturated and held > 0 and m[held].preferred_up_to != held:
        return count
    s.wake_at = closes_at
    if s.head < s.tail:
        s.wake_at = min(closes_at, b[b[s.head].queued].arrive + r.timeout_ms)
    return -1


@njit(cache=True)
def _up_to_largest_preferred(r, s, held, count, looked_at):  # type: ignore[no-untyped-def]
    """Count the requests up to the largest preferred size, where no preferred size is in reach.

    A payload that is above all preferred sizes already takes one request, if there are two.
    """
    before = max(r.most_preferred - held, 0 if held > 0 else 1)
    if before >= looked_at:
        return 0
    s.saturated = True
    if before > 0:
        return before
    return 1 if looked_at > 1 else 0


@njit(cache=True)
def _oldest(s, b, count):  # type: ignore[no-untyped-def]
    """Return when the oldest of the next `count` requests arrived."""
    oldest = np.inf
    if s.head < s.tail:
        oldest = b[b[s.head].queued].arrive
    if count > s.tail - s.head:
        oldest = min(oldest, b[b[s.late_head].late].arrive)
    return oldest


@njit(cache=True)
def _send(r, s, m, b, count):  # type: ignore[no-untyped-def]
    """Step 6: move requests to the open payload, which enters Q once."""
    if b[s.open + 1].first == b[s.open].first:
        b[s.open].oldest = np.inf
    b[s.open].oldest = min(b[s.open].oldest, _oldest(s, b, count))
    for _ in range(count):
        b[s.sent].sent = _next_in_queue(s, b)
        s.sent += 1
        if s.head < s.tail:
            s.head += 1
        else:
            s.late_head += 1
    b[s.open + 1].first = s.sent
    if s.open == s.back:
        s.back += 1
        _dispatch(r, s, m, b)


@njit(cache=True)
def _dispatch(r, s, m, b):  # type: ignore[no-untyped-def]
    while s.idle > 0 and s.front < s.back:
        payload = s.front
        s.front += 1
        if r.delay_ms > 0 and not b[payload].of_other_shape:
            _merge(r, s, b, payload)
        _begin(r, s, m, b, b[payload].first, b[s.front].first)


@njit(cache=True)
def _merge(r, s, b, payload):  # type: ignore[no-untyped-def]
    """Step 7: execute payloads that follow and have waited longer than the delay along with it.

    One that does not fit stays where it is, but does not grow any more.
    """
    shape = b[b[b[payload].first].sent].shape
    while s.front < s.back and not b[s.front].of_other_shape:
        if s.now <= b[s.front].oldest + r.delay_ms:
            return
        b[s.front].executing = True
        if b[s.front + 1].first - b[payload].first > r.most:
            return
        if b[b[b[s.front].first].sent].shape != shape:
            return
        s.front += 1


@njit(cache=True)
def _begin(r, s, m, b, first, end):  # type: ignore[no-untyped-def]
    instance = 0
    while m[instance].done < np.inf:
        instance += 1
    s.idle -= 1
    size = end - first
    busy = r.instances - s.idle
    lasts = m[size].execution_ms * m[busy - 1].busy_factor
    if m[instance].idle_since < s.now:
        lasts += r.wake_ms
    lasts *= b[s.executions].noise * b[b[first].sent].factor
    b[s.executions].execution_begin = s.now
    b[s.executions].execution_ms = lasts
    b[s.executions].execution_size = size
    s.executions += 1
    for n in range(first, end):
        b[b[n].sent].begin = s.now
    m[instance].done = s.now + lasts * s.slowdown
    m[instance].first = first
    m[instance].size = size
    m[instance].execution = s.executions - 1
    if m[instance].done < s.next_done:
        s.next_done = m[instance].done
        s.next_instance = instance


@njit(cache=True)
def finish(r, s, m, b, instance):  # type: ignore[no-untyped-def]
    """Answer the requests of an instance's execution, and let the instance take the next."""
    first = m[instance].first
    for n in range(first, first + m[instance].size):
        _answer(s, b, b[n].sent)
    m[instance].done = np.inf
    m[instance].idle_since = s.now
    s.idle += 1
    find_next_done(r, s, m)
    _dispatch(r, s, m, b)
    if r.dynamic:
        _form_batches(r, s, m, b)


@njit(cache=True)
def find_next_done(r, s, m):  # type: ignore[no-untyped-def]
    """Find the instance that is done first."""
    s.next_done = np.inf
    for other in range(r.instances):
        if m[other].done < s.next_done:
            s.next_done = m[other].done
            s.next_instance = other
