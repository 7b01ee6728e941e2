"""The simulated batcher beside the real one: `python -m tests.benchmarks.simulator_lab`.

Each case is a generated configuration of Triton's batcher with generated arrivals. The embedded
server executes it with a Python model that sleeps for a set time and logs its batches; the
simulator gets the times at which requests were sent and the times that executions took. Neither is
exact: a request that arrives at the instant at which a batch is formed joins it or does not, and
later batches follow from that. So each case is simulated many times with slightly other times, and
a case agrees where the server's figures are among those of the simulations. A case that does not is
executed again: an accident does not repeat itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.lab_cases import Case, Execution, Overheads, case_of, simulated
from tests.benchmarks.lab_server import LabServer, lab_server

_SIMULATIONS = 300
_RARE = 0.01
_QUEUE_TOLERANCE_MS = 1.0


@dataclass(frozen=True)
class Comparison:
    """How far a server's execution of a case is from the simulated ones.

    Attributes:
        histogram: share of the simulations whose batch histogram is at least as far from their
            mean as the server's, as the next two for their figures.
        rejections: number of rejected requests.
        queue: mean queue time.
        queue_error: relative difference of the mean queue time from the mean of the simulations;
            the tolerance counts as no difference.
        overtaken: requests that began after a later one, less the most in any simulation.
        same_batches: share of the server's batches that the simulation without variation has too.
    """

    histogram: float
    rejections: float
    queue: float
    queue_error: float
    overtaken: int
    same_batches: float

    @property
    def differs(self) -> tuple[str, ...]:
        """Figures that hardly any simulation has."""
        rare = {
            "histogram": self.histogram < _RARE,
            "rejections": self.rejections < _RARE,
            "queue time": self.queue < _RARE,
            "order": self.overtaken > 0,
        }
        return tuple(name for name, is_rare in rare.items() if is_rare)


@dataclass(frozen=True)
class Row:
    """A case, its runs on a server, and how they compare with the simulations.

    Attributes:
        differs: figures by which all runs differ.
        comparison: of the first run.
    """

    number: int
    arrivals: int
    case: str
    requests: int
    differs: list[str]
    comparison: Comparison
    runs: Sequence[Execution]

    def __str__(self) -> str:
        differs = f"differs by {', '.join(self.differs)}" if self.differs else "agrees"
        return f"{self.number}.{self.arrivals} {differs}: {self.case}"

    def to_json(self) -> str:
        """Return the case and its runs, from which `row_of` compares them again."""
        runs = [run.to_json() for run in self.runs]
        return json.dumps({"number": self.number, "arrivals": self.arrivals, "runs": runs})


def compared(case: Case, run: Execution) -> Comparison:
    """Compare a server's execution of a case with simulations of it."""
    overheads, rng = (
        Overheads.of(run, case.scheduler.max_queue_delay_us / 1e3),
        np.random.default_rng(case.number),
    )
    many = [simulated(case, run, overheads, rng) for _ in range(_SIMULATIONS)]
    plain = simulated(case, run, overheads)
    most = case.scheduler.most_requests
    histograms = np.array([each.histogram(most) for each in many], dtype=np.float64)
    rejected = np.array([each.rejected.sum() for each in many], dtype=np.float64)
    queue = np.array([each.mean_queue_ms for each in many])
    off = max(0.0, abs(run.mean_queue_ms - float(queue.mean())) - _QUEUE_TOLERANCE_MS)
    return Comparison(
        _share_as_far(histograms, run.histogram(most), 0.0),
        _share_as_far(rejected[:, None], np.array([run.rejected.sum()]), 0.0),
        _share_as_far(queue[:, None], np.array([run.mean_queue_ms]), _QUEUE_TOLERANCE_MS),
        off / max(float(queue.mean()), 1.0),
        run.overtaken - max(each.overtaken for each in many),
        len({*run.batches} & {*plain.batches}) / max(1, len(run.batches)),
    )


def _share_as_far(
    simulated_figures: NDArray[np.float64], figures: NDArray[np.generic], tolerance: float
) -> float:
    """Return the share of simulations that are as far from their mean as the server, or farther.

    Args:
        simulated_figures: shape [simulations, figures].
        tolerance: distance that counts as none.
    """
    mean, variance = simulated_figures.mean(axis=0), simulated_figures.var(axis=0)
    # Half an execution is the least difference: whole numbers do not vary by less.
    weights = 1 / (variance + 0.25)
    far = ((simulated_figures - mean) ** 2 * weights).sum(axis=-1)
    apart = np.maximum(np.abs(figures - mean) - tolerance, 0.0)
    own = float((apart**2 * weights).sum())
    return float((1 + np.count_nonzero(far >= own - 1e-9)) / (1 + len(far)))


def run_configuration(server: LabServer, number: int, arrivals: Sequence[int]) -> list[Row]:
    """Execute the cases of one configuration and return a row for each.

    A case that differs is executed once more.
    """
    rows = []
    with server.loaded(case_of(number)) as execute:
        for sequence in arrivals:
            case = case_of(number, sequence)
            runs = [execute(case)]
            if compared(case, runs[0]).differs:
                runs.append(execute(case))
            rows.append(row_of(number, sequence, runs))
    return rows


def row_of(number: int, arrivals: int, runs: Sequence[Execution]) -> Row:
    """Compare the runs of a case; it differs by what all of them differ by."""
    case = case_of(number, arrivals)
    each = [compared(case, run) for run in runs]
    differs = [name for name in each[0].differs if all(name in one.differs for one in each)]
    return Row(number, arrivals, str(case), len(case.due_ms), differs, each[0], runs)


def summary(rows: Sequence[Row]) -> str:
    """Return the counts and errors of many cases."""
    lines = [f"{len(rows)} cases, {sum(row.requests for row in rows)} requests"]
    for name in ("histogram", "rejections", "queue time", "order"):
        agree = sum(name not in row.differs for row in rows)
        lines.append(f"{name}: {agree} of {len(rows)} cases agree ({agree / len(rows):.1%})")
    errors = [row.comparison.queue_error for row in rows]
    lines.append(
        "mean queue time: median error {:.1%}, 90 % below {:.1%}".format(
            *np.percentile(errors, (50, 90))
        )
    )
    same = np.mean([row.comparison.same_batches for row in rows])
    lines.append(f"batches of exactly the same requests: {same:.0%}")
    return "\n".join(lines)


def executed(given: argparse.Namespace) -> Iterator[Row]:
    """Execute generated cases on the embedded server."""
    numbers = range(given.first, given.first + given.configurations)
    with (
        tempfile.TemporaryDirectory() as folder,
        lab_server(Path(folder)) as server,
        ProcessPoolExecutor(given.workers, get_context("spawn")) as pool,
    ):
        run = partial(run_configuration, server, arrivals=range(given.arrivals))
        for rows in pool.map(run, numbers):
            yield from rows


def recorded(path: Path) -> Iterator[Row]:
    """Compare recorded runs again."""
    for line in path.read_text().splitlines():
        row = json.loads(line)
        runs = [Execution.from_json(run) for run in row["runs"]]
        yield row_of(row["number"], row["arrivals"], runs)


def main() -> None:
    """Compare cases and print those that differ, and a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configurations", type=int, default=175)
    parser.add_argument("--arrivals", type=int, default=3, help="sequences of each configuration")
    parser.add_argument("--first", type=int, default=0, help="number of the first configuration")
    parser.add_argument("--workers", type=int, default=2, help="cases at the same time")
    parser.add_argument("--record", type=Path, help="file that the runs are written to")
    parser.add_argument("--recorded", type=Path, help="compare the runs of this file again")
    given = parser.parse_args()
    rows = []
    for row in executed(given) if given.recorded is None else recorded(given.recorded):
        rows.append(row)
        if row.differs:
            sys.stdout.write(f"{row}\n")
            sys.stdout.flush()
        if given.record is not None:
            with given.record.open("a") as file:
                file.write(row.to_json() + "\n")
    sys.stdout.write(summary(rows) + "\n")


if __name__ == "__main__":
    main()
