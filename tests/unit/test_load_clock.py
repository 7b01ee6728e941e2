"""A level during which the machine's clock is set: latencies are those of a steady clock.

No other process shall see the step, so a library that is loaded into the measuring ones takes it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest

from tests.unit.fake_triton import Serve

pytestmark = [pytest.mark.serial, pytest.mark.tools]

COMPILER = shutil.which("cc")

# Adds the seconds that the file CLOCK_STEP holds to the time of day, whichever way it is asked for.
STEPPED_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile int64_t *step;

__attribute__((constructor)) static void begin(void) {
    step = mmap(0, sizeof *step, PROT_READ, MAP_SHARED, open(getenv("CLOCK_STEP"), O_RDONLY), 0);
}

int clock_gettime(clockid_t id, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int answer = real(id, now);
    if (id == CLOCK_REALTIME && step) now->tv_sec += *step;
    return answer;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now) *now = precise.tv_sec;
    return precise.tv_sec;
}
"""

MEASURE = """
import json, sys, time
import numpy as np
from optimizer.load.client import LoadClient
from optimizer.load.level_plan import LevelPlan, OpenLoop
from tests.unit.fake_triton import target

if __name__ == "__main__":
    walls = [time.time()]
    with LoadClient() as client:
        level = client.run_level(
            LevelPlan(OpenLoop(1.0), 0.2, 3.0, 5.0), target(sys.argv[1]), np.random.default_rng(5)
        )
    walls.append(time.time())
    [stream] = level.streams
    print(json.dumps({
        "wall_seconds": walls[1] - walls[0], "seconds": level.seconds, "sent": stream.sent,
        "errors": stream.errors, "p99_ms": stream.latency_ms(99), "lag_ms": level.client.lag_ms,
    }))
"""


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize("step_seconds", [3600, -3600])
def test_a_step_of_the_clock_in_a_level_changes_nothing(
    serve: Serve, tmp_path: Path, step_seconds: int
) -> None:
    program, library, clock = (tmp_path / name for name in ("measure.py", "clock.so", "step"))
    program.write_text(MEASURE)
    clock.write_bytes(bytes(8))
    subprocess.run(
        [str(COMPILER), "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"],
        input=STEPPED_CLOCK.encode(),
        check=True,
    )

    def step() -> None:
        with clock.open("r+b") as file:  # the file that is mapped, not another
            file.write(step_seconds.to_bytes(8, sys.byteorder, signed=True))

    stepper = threading.Timer(1.5, step)
    first = threading.Lock()

    def answer(_: grpc.ServicerContext) -> None:
        if first.acquire(blocking=False):
            stepper.start()

    ended = subprocess.run(
        [sys.executable, str(program), serve(answer).endpoint],
        env={
            **os.environ,
            "PYTHONPATH": str(Path.cwd()),
            "LD_PRELOAD": str(library),
            "CLOCK_STEP": str(clock),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    stepper.join()
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert abs(found["wall_seconds"] - step_seconds) < 60, "no step while it measured"
    # What is found to be warm-up is cut off, at most half.
    assert 1.4 < found["seconds"] < 3.1
    assert found["sent"] > 100
    assert found["errors"] == 0
    assert found["p99_ms"] < 100
    assert found["lag_ms"] < 100
