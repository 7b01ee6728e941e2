"""Array layouts of the compiled batcher: sizes in requests, times in ms.

Few arrays of records, since passing an array to a compiled function costs time.
"""

from __future__ import annotations

import numpy as np

RULES = np.dtype(
    [
        ("dynamic", np.bool_),
        ("prefetch", np.bool_),
        ("instances", np.int64),
        # Largest batch.
        ("most", np.int64),
        # Largest preferred size, rounded down and up to whole requests.
        ("most_preferred", np.int64),
        ("least_full", np.int64),
        ("delay_ms", np.float64),
        # An arrival wakes the batcher, whatever size it waits for.
        ("looks_at_every_request", np.bool_),
        # Further requests are refused; 0 for no bound.
        ("most_queued", np.int64),
        # Longest time in the queue; infinity for no bound.
        ("timeout_ms", np.float64),
        # Refuse a request that has waited so long, instead of serving it last.
        ("refuses", np.bool_),
        # Additional time of an execution on an instance that was idle.
        ("wake_ms", np.float64),
        # From the end of an execution until its client's next request is there.
        ("again_ms", np.float64),
    ],
    align=True,
)
"""Settings of the batcher."""

STEP = np.dtype(
    [
        # Batch size k: execution time, the largest preferred size up to k, the smallest preferred
        # size above k; 0 where there is none.
        ("execution_ms", np.float64),
        ("preferred_up_to", np.int64),
        ("preferred_above", np.int64),
        # Factor of execution times where k + 1 instances are busy.
        ("busy_factor", np.float64),
        # Instance k: when it is done, infinity where it is idle, and which part of `sent` it
        # executes.
        ("done", np.float64),
        ("first", np.int64),
        ("size", np.int64),
        ("idle_since", np.float64),
        # Its execution, and how many of that execution's requests have begun to call other models.
        ("execution", np.int64),
        ("calling", np.int64),
    ],
    align=True,
)
"""Row k holds batch size k and instance k."""

ROW = np.dtype(
    [
        # Request k. `done` is when it is answered or refused.
        ("arrive", np.float64),
        ("begin", np.float64),
        ("done", np.float64),
        ("factor", np.float64),
        ("shape", np.int32),
        ("refused", np.bool_),
        # The k-th to enter the queue, and the run of equal shape that it belongs to.
        ("queued", np.int32),
        ("run", np.int32),
        # Where in the queue run k ends.
        ("run_end", np.int32),
        # The k-th that has waited too long and is served after all others.
        ("late", np.int32),
        # The k-th to join a payload.
        ("sent", np.int32),
        # The k-th to be answered or refused.
        ("answered", np.int32),
        # Payload k: the first sent with it, when the oldest of it arrived, whether it is closed
        # because another shape follows, and whether it cannot grow although it is scheduled.
        ("first", np.int32),
        ("oldest", np.float64),
        ("of_other_shape", np.bool_),
        ("executing", np.bool_),
        # Execution k.
        ("noise", np.float64),
        ("execution_begin", np.float64),
        ("execution_ms", np.float64),
        ("execution_size", np.int32),
    ],
    align=True,
)
"""Row k holds the k-th request, payload and execution."""

STATE = np.dtype(
    [
        ("now", np.float64),
        # When the batcher wakes by itself, and whether it waits for a slot rather than sleeps.
        ("wake_at", np.float64),
        ("waits_for_slot", np.bool_),
        # Which instance is done first, and when; how many are idle.
        ("next_done", np.float64),
        ("next_instance", np.int64),
        ("idle", np.int64),
        # Arrivals whose times are known, and those that have happened.
        ("arrivals", np.int64),
        ("arrived", np.int64),
        # The queue is `queued` from head up to tail, and then `late`, likewise.
        ("head", np.int64),
        ("tail", np.int64),
        ("late_head", np.int64),
        ("late_tail", np.int64),
        ("runs", np.int64),
        # Payloads: scheduled and not executing from front up to back; the one that is filled.
        ("sent", np.int64),
        ("front", np.int64),
        ("back", np.int64),
        ("open", np.int64),
        # The open one takes no more; the queue length at which it is checked again.
        ("saturated", np.bool_),
        ("next_preferred", np.int64),
        ("executions", np.int64),
        # Requests answered or refused, and those of them whose senders have taken notice.
        ("answered", np.int64),
        ("passed_on", np.int64),
        # Factor of execution times by what other models execute.
        ("slowdown", np.float64),
    ],
    align=True,
)
"""State of a batcher."""
