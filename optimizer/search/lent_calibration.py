"""The runs that a study of other hardware lends, kept in the folder of the study that takes them.

Times on other hardware are no measurements here: they lend the shape of the service times, which
the few calibration runs here bring to scale, see `ServicePrior`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from optimizer.errors import UsageError
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.samplers import CALIBRATED
from optimizer.search.surrogate.learnt_forecast import calibrated
from optimizer.simulator.service_prior import ServicePrior
from optimizer.study.directory import StudyDirectory
from optimizer.study.files import read_start
from optimizer.study.warm_start import unequal
from optimizer.workload.streams import Workload

_MOST_TRIALS = 100
"""Trials that are lent beside the calibration; more would slow every forecast, and tell little."""

_FREE = frozenset({"accuracy", "evaluation", "calibration", "parameters"})
"""Keys of a model that its service times do not depend on."""


def lending_study(
    results: Path, study: str, sampler: str, content: Mapping[str, Any]
) -> StudyDirectory:
    """Return the directory of a study that has been calibrated on other hardware.

    Args:
        results: folder of the studies.
        sampler: of the study that takes its service times.
        content: of that study's space file, see `Space.content`.

    Raises:
        UsageError: where there is nothing to lend, or nothing that it is of use for.
    """
    if sampler not in CALIBRATED:
        others = ", ".join(sorted(CALIBRATED))
        raise UsageError(
            f"--prior: needs --sampler {others}; got {sampler}, which learns only from trials"
        )
    other = StudyDirectory(results.absolute() / study)
    if not other.space.exists():
        raise UsageError(f"--prior: study {study!r} not found in {results}")
    if not any(record.measurement is not None for record in other.calibration.read_all().values()):
        raise UsageError(
            f"--prior: study {study} has no calibration run to lend: run it first, with the "
            "sampler guided"
        )
    differing = [
        f"  models.{'.'.join(path)}: {there} there, {here} here"
        for path, there, here in unequal(read_start(other).content["models"], content["models"])
        if not _FREE & {*path[1:2]}
    ]
    if differing:
        lines = "\n".join(differing)
        raise UsageError(f"--prior: study {study} serves other models:\n{lines}")
    return other


def lend(other: StudyDirectory, directory: StudyDirectory) -> None:
    """Copy what a study lends, once in the life of the study that takes it. Raises StorageError."""
    if directory.prior.read_all():
        return
    for number, record in enumerate(_lent(other)):
        directory.prior.write(replace(record, number=number, origin=other.name))


def _lent(other: StudyDirectory) -> Iterator[TrialRecord]:
    """Yield the calibration runs, and the saturation of trials."""
    calibration = other.calibration.read_all().values()
    yield from (record for record in calibration if record.measurement is not None)
    for record in islice(other.trials.read_all().values(), _MOST_TRIALS):
        if record.measurement is not None:
            saturated = replace(record.measurement, levels=record.measurement.levels[:1])
            yield replace(record, measurement=saturated)


def read_prior(directory: StudyDirectory, workload: Workload) -> ServicePrior | None:
    """Return the service times that another study has lent; None where none has."""
    return prior_of([*directory.prior.read_all().values()], workload)


def prior_of(records: Sequence[TrialRecord], workload: Workload) -> ServicePrior | None:
    """Return the service times that runs on other hardware show; None without any.

    Args:
        records: calibration runs, and trials with their saturation alone.
    """
    service = calibrated(records, workload)
    if not service.observations:
        return None
    return ServicePrior(records[0].origin or "", service, run_seconds(records))


def run_seconds(records: Iterable[TrialRecord]) -> float:
    """Return the mean time of a run that saturates a configuration; 0 without any."""
    saturated = [record.seconds for record in records if record.outcome == "bounded"]
    return fmean(each.measuring + each.serving for each in saturated) if saturated else 0.0
