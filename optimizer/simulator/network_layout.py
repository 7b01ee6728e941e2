"""Array layouts of the compiled network of batchers; times in ms.

A program is a list of calls of batchers: what a request of a source goes through, or what a request
of a composed model calls while it occupies an instance. A run is one pass of a request through a
program. The runs of sources come first, one for each request, and then those of composed models,
one for each row of their batchers.
"""

from __future__ import annotations

import numpy as np

NODE = np.dtype(
    [
        # Where the batcher's part of the joined arrays of `STEP`, and of `ROW` and `JOB`, is.
        ("step", np.int64),
        ("step_end", np.int64),
        ("row", np.int64),
        ("row_end", np.int64),
        # The program of a composed model, -1 for others, and the run of its first row.
        ("program", np.int64),
        ("run", np.int64),
        # Instances whose requests call other models, so that they execute nothing.
        ("held", np.int64),
    ],
    align=True,
)
"""Row k holds batcher k."""

CALL = np.dtype(
    [
        ("node", np.int64),
        # Whole calls, and the probability of a further one.
        ("whole", np.int64),
        ("further", np.float64),
        # Calls of the same program that it waits for.
        ("waits_for", np.int64),
    ],
    align=True,
)
"""A call of a program, shape [programs, calls]; `node` is -1 behind the last one."""

RUN = np.dtype(
    [
        ("program", np.int64),
        # The request of a source that it belongs to.
        ("request", np.int64),
        # Of a composed model: its batcher and its instance; -1 and the request of a source.
        ("node", np.int64),
        ("instance", np.int64),
        # Calls that are not completed, and those of them that were begun.
        ("left", np.int64),
        ("begun", np.int64),
        ("failed", np.bool_),
    ],
    align=True,
)

PROGRESS = np.dtype(
    [
        # Calls that it still waits for; -1 from its beginning on.
        ("waits_for", np.int16),
        # How often it is still to be made.
        ("repeats", np.int16),
    ],
    align=True,
)
"""Progress of each call of a run, shape [runs, calls]."""

JOB = np.dtype([("run", np.int64), ("call", np.int64)], align=True)
"""The run and the call of it that a row of a batcher belongs to."""

REQUEST = np.dtype(
    [
        ("arrive", np.float64),
        ("done", np.float64),
        # Of its source, or that of a request that a response cache answers.
        ("program", np.int64),
        ("shape", np.int32),
        ("factor", np.float64),
        # Decides about further calls, 0 to 1.
        ("chance", np.float64),
        ("refused", np.bool_),
    ],
    align=True,
)
"""Row k holds the k-th request."""

TRAFFIC = np.dtype(
    [
        ("now", np.float64),
        # From a reply until its client's next request is there.
        ("again_ms", np.float64),
        # Requests whose arrivals are determined, those that have arrived, and those answered.
        ("arrivals", np.int64),
        ("arrived", np.int64),
        ("answered", np.int64),
        # Held instances whose execution may go on, in `resumed` from resume up to resume_end.
        ("resume", np.int64),
        ("resume_end", np.int64),
        # Whether executions slow each other down.
        ("contention", np.bool_),
    ],
    align=True,
)
"""State of a simulation beside that of its batchers."""
