"""The guided search against another sampler on the real server.

    .venv/bin/python -m tests.benchmarks.quickstart_race

Both search the quickstart from nothing, one after the other, and confirm what they find. Counted
are the seconds of load tests and model loads, calibration and references included, up to the first
trial that serves 95 % of the best capacity that either of them has confirmed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from optimizer.files.shipped import shipped
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.directory import StudyDirectory

NEAR = 0.05


def run(study: str, sampler: str, trials: int, results: Path) -> StudyDirectory:
    """Search the quickstart to its end; a study that is there already goes on."""
    space = shipped("search_spaces") / "quickstart.yaml"
    command = [sys.executable, "-m", "optimizer", "run", str(space), "--sampler", sampler]
    command += ["--study", study, "--trials", str(trials), "--timeout", "1h"]
    subprocess.run([*command, "--results", str(results)], check=True)
    return StudyDirectory(results / study)


def spent(record: TrialRecord) -> float:
    """Seconds that a record's load tests and model loads took."""
    return record.seconds.measuring + record.seconds.serving


def first_near(study: StudyDirectory, least: float) -> tuple[int, float] | None:
    """(trials, seconds) up to the first trial of at least this capacity."""
    seconds = sum(map(spent, study.calibration.read_all().values()))
    references = list(map(spent, study.drift_runs.read_all().values()))
    for count, record in enumerate(study.trials.read_all().values(), 1):
        seconds += spent(record)
        served = record.measurement.capacity_per_second if record.measurement is not None else 0.0
        if record.outcome == "ok" and served >= least:
            # One reference run before every tenth trial after the first.
            return count, seconds + sum(references[: (count - 1) // 10])
    return None


def main() -> None:
    """Run both and print how soon each was near."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", default="gp")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--results", type=Path, default=Path("results/benchmarks/race"))
    given = parser.parse_args()
    studies = {
        sampler: run(f"race-{sampler}", sampler, given.trials, given.results)
        for sampler in ("guided", given.other)
    }
    summaries = {name: study.read_json(study.summary) for name, study in studies.items()}
    best = max(
        summary["best"]["capacity_per_second"] for summary in summaries.values() if summary["best"]
    )
    print(f"the best that either has confirmed: {best:.0f}/s")
    for name, study in studies.items():
        found, summary = first_near(study, (1 - NEAR) * best), summaries[name]
        confirmed = summary["best"]["capacity_per_second"] if summary["best"] else 0.0
        near = f"after {found[0]} trials, {found[1]:.0f} s" if found is not None else "never"
        print(
            f"{name}: within {NEAR:.0%} {near}; confirmed {confirmed:.0f}/s; "
            f"{summary['measuring_seconds']:.0f} s measuring in all; ended: {summary['ended']}"
        )


if __name__ == "__main__":
    main()
