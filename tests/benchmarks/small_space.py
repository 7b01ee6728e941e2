"""How soon a guided search of ten points is near the best, ends and is confirmed, on a real server.

    .venv/bin/python -m tests.benchmarks.small_space

The space, in `small_space.yaml`, is the kind in which Model Analyzer 1.58 (optuna mode) ended after
107 s with 2 configurations measured. The artefact is built by a run that is not counted, since
Model Analyzer does not make the model either. Seconds are from the start of the process, by the
times at which the study's files were written. The best is that of a search by `grid` afterwards,
which measures all ten points.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.study.directory import StudyDirectory
from optimizer.study.record_store import RecordStore

SPACE = Path(__file__).with_name("small_space.yaml")
NEAR = 0.05


@dataclass(frozen=True)
class Timeline:
    """Seconds from the start of a run.

    Attributes:
        near: end of the first trial within `NEAR` of the best; None where there was none.
        confirmed: end of the last round; None where nothing was confirmed.
        trials: number of them.
        shortened: how the confirm phase was shortened.
        share: true capacity of the recommended configuration, relative to the best.
    """

    prepared: float
    calibrated: float
    near: float | None
    searched: float
    confirmed: float | None
    ended: float
    trials: int
    shortened: str
    share: float | None


def run(results: Path, cache: Path, *arguments: str) -> float:
    """Run a command of the optimizer on the space; return when it began, in Unix time."""
    began = time.time()
    command, *options = arguments
    places = ["--results", str(results), "--cache", str(cache)]
    whole = [sys.executable, "-m", "optimizer", command, str(SPACE), *options, *places]
    code = subprocess.run(whole, check=False).returncode
    print(f"{command}: exit code {code} after {time.time() - began:.0f} s", flush=True)
    return began


def written(store: RecordStore) -> list[float]:
    """Return when each record of a store was written, in Unix time."""
    return sorted(path.stat().st_mtime for path in store.folder.glob("*.json"))


def shares_of(whole: StudyDirectory) -> dict[ServingConfig, float]:
    """Return the capacity of each configuration by its trial, relative to the best.

    That of a pruned one is at most its saturation.
    """
    capacities = {
        record.config: record.measurement.capacity_per_second
        if record.outcome == "ok"
        else record.measurement.capacity_high_per_second or 0.0
        for record in whole.trials.read_all().values()
        if record.measurement is not None
    }
    best = max(capacities.values())
    return {config: capacity / best for config, capacity in capacities.items()}


def timeline(
    study: StudyDirectory, began: float, shares: Mapping[ServingConfig, float]
) -> Timeline:
    """Return when each phase of a run ended."""
    prepared, ended = study.prepared.stat().st_mtime, study.summary.stat().st_mtime
    trials, summary = study.trials.read_all(), study.read_json(study.summary)
    ends, rounds = written(study.trials), written(study.confirmations)
    near = (
        end
        for end, record in zip(ends, trials.values(), strict=True)
        if record.outcome == "ok" and shares[record.config] >= 1 - NEAR
    )
    first, best = next(near, None), summary["best"]
    chosen = next(
        (r for r in trials.values() if best and describe(r.config) == best["description"]), None
    )
    return Timeline(
        prepared - began,
        max([prepared, *written(study.calibration)]) - began,
        None if first is None else first - began,
        ends[-1] - began,
        rounds[-1] - began if rounds and best else None,
        ended - began,
        len(trials),
        summary["confirm_shortened"] or "",
        None if chosen is None else shares[chosen.config],
    )


def lines(runs: Sequence[tuple[str, Timeline]]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield (
        "| run | prepared | calibrated | within 5 % | searched | confirmed | ended | trials "
        "| recommended, of the best | shortened |"
    )
    yield "| --- |" + " ---: |" * 8 + " --- |"
    for name, own in runs:
        seconds = own.prepared, own.calibrated, own.near, own.searched, own.confirmed, own.ended
        shown = ["never" if each is None else f"{each:.0f} s" for each in seconds]
        share = "none" if own.share is None else f"{own.share:.0%}"
        yield f"| {' | '.join([name, *shown, str(own.trials), share, own.shortened])} |"


def main() -> None:
    """Run the searches and the recording; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--timeout", help="of each run, such as 107s; by default the space's")
    parser.add_argument("--results", type=Path, default=Path("results/benchmarks/small"))
    given = parser.parse_args()
    results, cache = given.results, given.results / "cache"
    run(results, cache, "run", "--study", "builds", "--trials", "1", "--sampler", "random")
    limit = ["--timeout", given.timeout] if given.timeout else []
    began = {
        name: run(results, cache, "run", "--study", name, "--seed", str(number), *limit)
        for number in range(given.runs)
        for name in [f"seed-{number}"]
    }
    run(results, cache, "run", "--study", "whole", "--sampler", "grid")
    shares = shares_of(StudyDirectory(results / "whole"))
    runs = [
        (name, timeline(StudyDirectory(results / name), at, shares)) for name, at in began.items()
    ]
    print("\n".join(lines(runs)))


if __name__ == "__main__":
    main()
