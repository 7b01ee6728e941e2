"""Whether runs end in time, by the real server: `python -m tests.benchmarks.kept_time`.

Runs of a space that they cannot exhaust, half of them with `--timeout` and half with `--until`, and
half of them beside a process that takes cores for some seconds, again and again. The time of a run
is from the start of its process to its end. The table has the earliest, the median and the latest.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.e2e import tiny

_PARAMETERS = {
    "precision": ["fp32"],
    "batching": [True],
    "max_batch_size": [2, 4, 8, 16, 32],
    "max_queue_delay_microseconds": [0, 500, 1000, 2000],
    "instance_count": [1, 2],
}
_MEASUREMENT = {
    "saturation_seconds": 1.0,
    "check_seconds": 2.0,
    "confirm_seconds": 8.0,
    "confirm_requests": 10_000,
}
_DISTURBANCE = """
import random, sys, time
drawn = random.Random(int(sys.argv[1]))
while True:
    time.sleep(drawn.uniform(2, 10))
    end = time.monotonic() + drawn.uniform(2, 10)
    while time.monotonic() < end:
        pass
"""
_FILL_SECONDS = 1800


@dataclass(frozen=True)
class KeptTime:
    """One run.

    Attributes:
        seconds: that it had.
        used: share of them that it took.
        shortened: how its confirm phase was shortened.
    """

    option: str
    loaded: bool
    seconds: float
    used: float
    exit_code: int
    trials: int
    confirmed: bool
    shortened: str


@contextmanager
def disturbed(seed: int, processes: int) -> Iterator[None]:
    """Have processes take cores for some seconds, again and again."""
    command = [sys.executable, "-c", _DISTURBANCE]
    running = [subprocess.Popen([*command, str(seed + n)]) for n in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def run(folder: Path, cache: Path, number: int, arguments: Sequence[object]) -> tuple[int, float]:
    """Run the optimizer; return its exit code and when it ended, in Unix time."""
    command = [sys.executable, "-m", "optimizer", "run", "space.yaml", "--cache", cache]
    with (folder / f"{number}.log").open("w") as log:
        code = subprocess.run(
            [*map(str, command), "--study", f"run-{number}", *map(str, arguments)],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    return code, time.time()


def kept_time(folder: Path, cache: Path, number: int, seconds: float, sampler: str) -> KeptTime:
    """Run once: every second run is disturbed, every second pair gets a time of day."""
    loaded = number % 2 == 1
    started, option = time.time(), "--until" if number // 2 % 2 else "--timeout"
    value = f"{seconds:g}s"
    if option == "--until":
        until = datetime.datetime.fromtimestamp(math.ceil(started + seconds)).astimezone()
        seconds, value = until.timestamp() - started, f"{until:%H:%M:%S}"
    with disturbed(number, 2 if loaded else 0):
        code, ended = run(folder, cache, number, [option, value, "--sampler", sampler])
    summary = folder / "results" / f"run-{number}" / "summary.json"
    content = json.loads(summary.read_text()) if summary.exists() else {}
    return KeptTime(
        option,
        loaded,
        seconds,
        (ended - started) / seconds,
        code,
        sum(content.get("trials", {}).values()),
        content.get("best") is not None,
        content.get("confirm_shortened") or "",
    )


def table(runs: Sequence[KeptTime]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| machine | runs | too late | earliest | median | latest | confirmed | shortened |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for loaded in (False, True):
        own = [each for each in runs if each.loaded == loaded]
        if not own:
            continue
        used = [each.used for each in own]
        cells = [
            "with a disturbing process" if loaded else "without",
            len(own),
            sum(share > 1 for share in used),
            *(f"{share:.1%}" for share in (min(used), statistics.median(used), max(used))),
            sum(each.confirmed for each in own),
            sum(bool(each.shortened) for each in own),
        ]
        yield f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Run them all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=110.0)
    parser.add_argument("--sampler", default="guided")
    parser.add_argument("--cache", type=Path, help="with the artefacts; one run fills it otherwise")
    parser.add_argument("--json", type=Path, help="file for the figures of each run")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        folder, runs = Path(name), list[KeptTime]()
        space = tiny.space(
            parameters=_PARAMETERS, measurement=_MEASUREMENT, budget={"trials": 1000}
        )
        tiny.write_space(folder, space)
        cache = options.cache or folder / "cache"
        if options.cache is None:
            run(folder, cache, -1, ["--trials", "1", "--timeout", f"{_FILL_SECONDS}s"])
        for number in range(options.runs):
            runs.append(kept_time(folder, cache, number, options.seconds, options.sampler))
            print(runs[-1], flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps([asdict(each) for each in runs], indent=1))
    print("\n".join(table(runs)))


if __name__ == "__main__":
    main()
