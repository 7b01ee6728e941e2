"""How well the coordinator keeps many workers busy, and what it costs by itself:
`python -m tests.benchmarks.parallel_efficiency`.

Two tables. The first has real time: each worker is a thread that sleeps as long as its trial takes,
as sleeping needs no processor; linear is the time of all trials together over the number of
workers. The second has virtual time: a thousand workers whose trials take no time of their own, so
that all of the time is the coordinator's. It proposes, writes records and Optuna's journal, and
tells, as in a run. Its cost must not grow with the number of trials, so the first and the last
trials are shown apart. Its times are processor time of this process, with one thread for linear
algebra, as in a run: others wait for work by using a processor, which more than doubles that time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import pandas as pd

from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.machine.blas_threads import one_blas_thread
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import Seconds
from optimizer.search.recorded.virtual_pool import VirtualPool
from optimizer.search.worker_pool import Task, TaskEnd, WorkerPool, WorkerState
from optimizer.study.events import PhaseStarted, TrialFinished
from tests.unit.studies import SETTING, FakeEvaluator, Search, capacity_of, ok, small_space

TRIALS_EACH = 40
"""Trials for each worker: with fewer, the baseline, which is measured alone, weighs too much."""


def large_space() -> SearchSpace:
    """About 10,000 points."""
    return small_space(
        runtime=("onnxruntime", "openvino", "pytorch"),
        precision=("fp32", "bf16", "int8"),
        max_batch_size=tuple(range(1, 129)),
        max_queue_delay_us=(0, 100, 200, 500, 1000, 2000, 5000, 10_000),
    )


def evaluation(config: ServingConfig, seconds: float) -> Evaluation:
    """What a configuration serves; its trial takes this time, give or take a half."""
    capacity = capacity_of(config)
    share = 0.5 + int(config.digest[:8], 16) / 16**8
    return replace(ok(capacity), seconds=Seconds(measuring=seconds * share))


class SleepingPool:
    """Threads that sleep as long as their tasks take."""

    def __init__(self, workers: int, seconds: float) -> None:
        self._seconds = seconds
        self._workers = workers
        self._threads = ThreadPoolExecutor(workers)
        self._tasks: dict[Future[TaskEnd], Task] = {}
        self.busy_seconds = 0.0

    @property
    def idle(self) -> int:
        return self._workers - len(self._tasks)

    @property
    def workers(self) -> Sequence[WorkerState]:
        return [WorkerState(str(n), "a thread") for n in range(self._workers)]

    def submit(self, task: Task) -> None:
        self._tasks[self._threads.submit(self._run, task)] = task

    def _run(self, task: Task) -> TaskEnd:
        result = evaluation(task.config, self._seconds)
        time.sleep(result.seconds.measuring)
        return TaskEnd(task, "a thread", result)

    def next_end(self, timeout_seconds: float | None = None) -> TaskEnd | None:
        ended, _ = wait(self._tasks, timeout_seconds, return_when=FIRST_COMPLETED)
        if not ended:
            return None
        future = ended.pop()
        del self._tasks[future]
        end = future.result()
        assert end.evaluation is not None
        self.busy_seconds += end.evaluation.seconds.measuring
        return end


@dataclass(frozen=True)
class Searched:
    """A search: its time, and the times at which its trials were told, in seconds."""

    seconds: float
    told: Sequence[float]


def searched(
    space: SearchSpace,
    pool: WorkerPool,
    sampler: str,
    trials: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Searched:
    """Search a space with a journal and records on disk; times are from the start of the search."""
    starts: list[float] = []
    told: list[float] = []

    def watch(event: object) -> None:
        if isinstance(event, PhaseStarted):
            starts.append(clock())
        if isinstance(event, TrialFinished):
            told.append(clock() - starts[0])

    with TemporaryDirectory(prefix="parallel-") as folder:
        search = Search(Path(folder), space, FakeEvaluator(), sampler=sampler, pool=pool)
        search.watchers.append(watch)
        search.run(trials)
        return Searched(clock() - starts[0], told)


def efficiency(workers: int, sampler: str, seconds: float) -> dict[str, object]:
    """A row of the first table."""
    pool = SleepingPool(workers, seconds)
    trials = TRIALS_EACH * workers
    result = searched(large_space(), pool, sampler, trials)
    linear = pool.busy_seconds / workers
    return {
        "workers": workers,
        "sampler": sampler,
        "trials": trials,
        "seconds of a trial": f"{pool.busy_seconds / trials:.1f}",
        "linear, s": f"{linear:.1f}",
        "took, s": f"{result.seconds:.1f}",
        "efficiency": f"{linear / result.seconds:.1%}",
    }


def overhead(workers: int, sampler: str, trials: int) -> dict[str, object]:
    """A row of the second table."""
    evaluator = FakeEvaluator(lambda config: evaluation(config, 60.0))
    pool = VirtualPool(evaluator, SETTING.slot, workers)
    told = searched(large_space(), pool, sampler, trials, time.process_time).told
    each = [1e3 * (after - before) for before, after in pairwise(told)]
    tenth = len(each) // 10
    return {
        "workers": workers,
        "sampler": sampler,
        "trials": trials,
        "ms a trial": f"{1e3 * told[-1] / len(told):.1f}",
        "first tenth": f"{mean(each[:tenth]):.1f}",
        "last tenth": f"{mean(each[-tenth:]):.1f}",
    }


def as_markdown(rows: Sequence[dict[str, object]]) -> str:
    """A table for the documentation."""
    table = pd.DataFrame(rows)
    lines = ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines) + "\n"


@one_blas_thread()
def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8, 64])
    parser.add_argument("--seconds", type=float, default=4.0, help="of a sleeping trial")
    parser.add_argument("--samplers", nargs="+", default=["random", "tpe", "guided", "grid"])
    parser.add_argument("--trials", type=int, default=3000, help="of the thousand workers")
    given = parser.parse_args()
    rows = [
        efficiency(n, sampler, given.seconds) for n in given.workers for sampler in given.samplers
    ]
    print(as_markdown(rows))
    print(as_markdown([overhead(1000, sampler, given.trials) for sampler in given.samplers]))


if __name__ == "__main__":
    main()
