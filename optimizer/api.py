"""The program from Python: for notebooks, and for programs that search or read what was found.

Everything here is what a command does, see `optimizer.cli`. Tables are pandas DataFrames with units
in the names of their columns, figures are plotly's. All errors are branches of
`optimizer.errors.OptimizerError`. Nothing is printed; whoever wants to see what goes on gives a
`watch`, a function of events (`optimizer.study.events`): `watch=print` shows them all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import pandas as pd

from optimizer.analysis.study_reading import StudyReading, read_study
from optimizer.analysis.summary import StudySummary
from optimizer.commands.measure import MeasureRequest, MeasureResult, measure_configuration
from optimizer.commands.parts import default_cache, open_space
from optimizer.commands.run import RunRequest, run_study
from optimizer.commands.simulate import SimulateRequest, WhatIf, simulate_configuration
from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.errors import UsageError
from optimizer.measurement.trial_record import TrialRecord
from optimizer.report.study_figures import (
    Figure,
    cost_latency_figure,
    history_figure,
    levels_by_configuration,
    load_latency_figure,
)
from optimizer.report.study_frames import (
    confirmations_frame,
    finding_series,
    levels_frame,
    measured_levels_frame,
    predicted_levels_frame,
    trials_frame,
)
from optimizer.space_file.reader import Space
from optimizer.study.decision import Decision
from optimizer.study.events import Event, Watcher

Setting = bool | int | str | list[int]
"""A parameter's value, as the space file writes it."""

_RESULTS = "results"


def load_space(path: str | Path) -> Space:
    """Read a space file for this machine.

    Raises:
        SpaceFileError: with every mistake in it, by key and line.
        RequirementError: when it asks for a GPU, and the machine has none.
    """
    return open_space(Path(path))


def run(
    space: str | Path | Space,
    *,
    study: str | None = None,
    results: str | Path = _RESULTS,
    cache: str | Path | None = None,
    trials: int | None = None,
    timeout_seconds: float | None = None,
    seed: int = 0,
    sampler: str = "guided",
    storage: str | None = None,
    warm_start: str | None = None,
    enqueue: Literal["published"] | None = None,
    watch: Watcher | None = None,
) -> Study:
    """Search a space, or go on where that stopped; returns when the search has ended.

    Servers and load clients are started, and gone again in the end, however it ends.

    Args:
        space: a space file, or what `load_space` read.
        study: another name than the file's.
        results: folder of the studies.
        cache: folder of the artefact cache; the user's own without one.
        trials, timeout_seconds: end the search after so many configurations, or so much time; the
            file's own without.
        sampler: guided, gp, tpe, random or grid.
        storage: URL of a study database; a journal file in the study's folder without one.
        warm_start: name of a study in `results` that what still holds is taken over from.
        enqueue: what is measured before anything is proposed.
        watch: is told what goes on.

    Raises:
        OptimizerError: one of its branches, see `optimizer.errors`.
    """
    request = RunRequest(
        space=_given(space),
        results=Path(results),
        cache=_cache(cache),
        study=study,
        trials=trials,
        timeout_seconds=timeout_seconds,
        seed=seed,
        sampler=sampler,
        storage=storage,
        warm_start=warm_start,
        enqueue=enqueue,
    )
    result = run_study(request, watch or _unseen)
    return Study(result.directory.root)


def measure(
    space: str | Path | Space,
    settings: Mapping[str, Setting] | None = None,
    *,
    results: str | Path = _RESULTS,
    cache: str | Path | None = None,
    seed: int = 0,
    curve: bool = False,
    rate_per_second: float | None = None,
    watch: Watcher | None = None,
) -> MeasuredConfiguration:
    """Serve one configuration and measure it: its capacity, its curve, or one rate.

    Args:
        space: a space file, or what `load_space` read.
        settings: values by parameter, such as {"precision": "int8", "bert.max_batch_size": 16}; for
            the rest the baseline's, or what is next to them and goes with what is set.
        results: folder of the studies; this is kept in STUDY/measured/NUMBER below it.
        cache: folder of the artefact cache; the user's own without one.
        curve: measure the load-latency curve after the capacity.
        rate_per_second: measure this rate alone, and no capacity.
        watch: is told what goes on.

    Raises:
        OptimizerError: one of its branches, see `optimizer.errors`.
    """
    if curve and rate_per_second is not None:
        raise UsageError("give curve or rate_per_second, not both: a rate is measured alone")
    opened = open_space(_given(space))
    request = MeasureRequest(
        space=opened,
        settings=_texts(settings),
        results=Path(results),
        cache=_cache(cache),
        seed=seed,
        curve=curve,
        rate_per_second=rate_per_second,
    )
    return MeasuredConfiguration(opened, measure_configuration(request, watch or _unseen))


def simulate(
    study: str | Path | Study,
    settings: Mapping[str, Setting] | None = None,
    *,
    results: str | Path = _RESULTS,
    seed: int = 0,
) -> SimulatedConfiguration:
    """Predict a configuration from what a study has measured of others; nothing is served.

    Args:
        study: a name in `results`, a study's own folder, or a Study.
        settings: see `measure`; values need not be among those that were searched.

    Raises:
        UsageError: where there is no such study, or nothing saturated in it, or a setting is wrong.
        StorageError: when its files are damaged.
    """
    name = str(study.folder if isinstance(study, Study) else study)
    request = SimulateRequest(name, Path(results), _texts(settings), seed)
    return SimulatedConfiguration(simulate_configuration(request))


def _unseen(_: Event) -> None:
    """Nobody watches."""


def _given(space: str | Path | Space) -> Path | Space:
    return space if isinstance(space, Space) else Path(space)


def _cache(folder: str | Path | None) -> Path:
    return (Path(folder) if folder is not None else default_cache()).absolute()


def _texts(settings: Mapping[str, Setting] | None) -> dict[str, str]:
    """Values as YAML writes them, of which JSON is a part."""
    return {name: json.dumps(value) for name, value in (settings or {}).items()}


class Study:
    """What lies in a study's folder, as it was when this was made: it may be running still.

    Args:
        name_or_path: a name in `results`, or a study's own folder, which may have come from another
            machine.
        results: folder of the studies.

    Raises:
        UsageError: where there is no such study, or it has not come to its search yet.
        StorageError: when its files are damaged.
    """

    def __init__(self, name_or_path: str | Path, results: str | Path = _RESULTS) -> None:
        self._reading: StudyReading = read_study(Path(results), str(name_or_path))

    def __repr__(self) -> str:
        return f"Study({str(self.folder)!r})"

    @property
    def name(self) -> str:
        """The study's name."""
        return self._reading.name

    @property
    def folder(self) -> Path:
        """Where all of it lies: records, logs, best/, which `optimizer serve` starts."""
        return self._reading.directory.root

    @cached_property
    def summary(self) -> StudySummary | None:
        """The content of summary.json, with the same names; None where it has not ended yet."""
        return self._reading.summary

    @property
    def best(self) -> pd.Series | None:
        """What it recommends, by its own price and demand; None where nothing met the limits.

        Confirmed figures where there are any (`confirmed`), else those of the best trial.
        """
        found = self._decision.best
        return finding_series(found, self._reading.searched.search_space) if found else None

    @property
    def baseline(self) -> pd.Series | None:
        """What someone serves who changes nothing, likewise; None where it missed the limits."""
        found = self._decision.entry_of(self._reading.baseline)
        return finding_series(found, self._reading.searched.search_space) if found else None

    def trials(self) -> pd.DataFrame:
        """One row for each trial of the search: what was served, its capacity, latency and cost.

        Of a trial that did not meet the limits, capacity and cost are missing (NaN). Latencies are
        those of the highest load level within the limits, in ms, and `latencies_at_per_second` is
        its rate; rates are requests a second.
        """
        return trials_frame(self._reading.trials, self._reading.searched.search_space)

    def confirmations(self) -> pd.DataFrame:
        """One row for each round of the confirm phase, like those of `trials`, without a cost.

        Rounds are numbered by themselves; `trial` is the one that was measured again.
        """
        reading = self._reading
        return confirmations_frame(
            reading.confirmations, reading.trials, reading.searched.search_space
        )

    def levels(
        self, of: Literal["trials", "confirmations", "calibration"] = "trials"
    ) -> pd.DataFrame:
        """One row for each load level and stream, in the order of measuring.

        Latencies count from when requests were due, in ms; `queue_ms` and `compute_ms` are the
        server's own means, `client_lag_ms` is how late the load client sent (p99).

        Args:
            of: whose levels; `trial` is the number of the trial, round or run among them.
        """
        records = {
            "trials": self._reading.trials,
            "confirmations": self._reading.confirmations,
            "calibration": self._reading.calibration,
        }[of]
        return levels_frame(records, self._reading.searched.workload)

    def simulate(
        self, settings: Mapping[str, Setting] | None = None, *, seed: int = 0
    ) -> SimulatedConfiguration:
        """What another configuration would do, see `optimizer.simulate`."""
        return simulate(self, settings, seed=seed)

    def figure_history(self) -> Figure:
        """Cost of each trial at its capacity, and the least so far."""
        return history_figure(self._reading.trials)

    def figure_cost_latency(self) -> Figure:
        """Cost beside latency of the trials that met the limits, each at its capacity."""
        return cost_latency_figure(self._reading.trials, self._best_config)

    def figure_load_latency(self) -> Figure:
        """Latency against load of the best, the baseline and the next cheapest trials."""
        reading = self._reading
        space = reading.searched.search_space
        best = [self._best_config] if self._best_config else []
        first = [*best, space.config(space.baseline)]
        records = [*reading.trials, *reading.confirmations]
        return load_latency_figure(levels_by_configuration(records, first))

    @cached_property
    def _decision(self) -> Decision:
        return self._reading.own_decision

    @property
    def _best_config(self) -> ServingConfig | None:
        best = self._decision.best
        return best.config if best is not None else None


@dataclass(frozen=True)
class MeasuredConfiguration:
    """One configuration, measured.

    Attributes:
        found: all that was found, and the file that keeps it.
    """

    space: Space
    found: MeasureResult

    @property
    def configuration(self) -> str:
        """In words."""
        return describe(self.found.config)

    @property
    def capacity_per_second(self) -> float | None:
        """Requests a second within the limits, 0 where none are; None where that was not asked."""
        measurement = self.found.found.measurement
        return measurement.capacity_per_second if measurement is not None else None

    @property
    def capacity_interval_per_second(self) -> tuple[float, float | None] | None:
        """Its 95 % interval; without an upper end where no load was too much."""
        measurement = self.found.found.measurement
        if measurement is None:
            return None
        return measurement.capacity_low_per_second, measurement.capacity_high_per_second

    def levels(self) -> pd.DataFrame:
        """One row for each load level and stream, see `Study.levels`."""
        return measured_levels_frame(self.found.found.levels, self.space.workload)

    def figure_load_latency(self) -> Figure:
        """Latency against load."""
        return load_latency_figure({self.configuration: self.found.found.levels})


@dataclass(frozen=True)
class SimulatedConfiguration:
    """One configuration, predicted and not served.

    Attributes:
        found: all that is predicted, by stream.
    """

    found: WhatIf

    @property
    def configuration(self) -> str:
        """In words."""
        return describe(self.found.config)

    @property
    def measured(self) -> TrialRecord | None:
        """The study's own trial of the same configuration, if it has one."""
        return self.found.measured

    def capacities(self) -> pd.DataFrame:
        """One row for each stream: what saturates it, and what it serves within its limit.

        `capacity_per_second` is 0 where even an almost idle server misses the limit.
        """
        rows = [
            {
                "stream": own.stream.name,
                "saturation_per_second": own.capacity.saturation.per_second,
                "capacity_per_second": own.capacity.per_second,
                "limit_percentile": own.stream.limit.percentile,
                "limit_ms": own.stream.limit.latency_ms,
            }
            for own in self.found.streams
        ]
        return pd.DataFrame(rows)

    def levels(self) -> pd.DataFrame:
        """One row for each stream and load, from a tenth of saturation to 95 % of it."""
        return predicted_levels_frame({own.stream.name: own.levels for own in self.found.streams})
