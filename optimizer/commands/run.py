"""A study from the space file to its summary."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from optimizer.analysis.measured_configurations import measured_configurations
from optimizer.analysis.pareto_front import pareto_front
from optimizer.analysis.run_summary import LoadRuns, summarise
from optimizer.analysis.summary import DisturbanceSummary, StudySummary, SummaryEntry, write_summary
from optimizer.cluster.choice import ClusterChoice
from optimizer.commands.finished_study import finished_summary
from optimizer.commands.packages import require_packages
from optimizer.commands.protocols import require_one_limit, search_protocol
from optimizer.commands.run_context import RunContext, open_run, warn_of_space_file
from optimizer.commands.run_time import RunTime, chosen_seconds
from optimizer.commands.sampler_choice import Strategies
from optimizer.commands.trial_site import TrialSite, open_site
from optimizer.configuration.model_space import Position
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import UsageError
from optimizer.export.bundle.commented_config import origins_in
from optimizer.export.bundle.repository import (
    Provenance,
    labels_in,
    remove_model_repository,
    write_model_repository,
)
from optimizer.files.shipped import shipped
from optimizer.machine.blas_threads import one_blas_thread
from optimizer.machine.fingerprint import Machine
from optimizer.machine.slots import Slot
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.bounded_sampler import MOST_TRIALS, bounded_text
from optimizer.search.confirm import Confirmed, ConfirmPhase, search_reserve
from optimizer.search.evaluator import PhaseEvaluator
from optimizer.search.lent_calibration import lend, lending_study, read_prior
from optimizer.search.loop import SearchLoop, SearchTime
from optimizer.search.prepared import Prepared
from optimizer.search.published_grid import published_positions
from optimizer.search.samplers import BOUNDED, CALIBRATED, SAMPLER_PACKAGES, SAMPLERS, Strategy
from optimizer.search.trial_ledger import SearchedStudy
from optimizer.search.winner_phase import (
    WinnerPhase,
    WinnerTest,
    reserved_seconds,
)
from optimizer.simulator.service_prior import ServicePrior
from optimizer.space_file.reader import Budget, Space
from optimizer.study.dashboard.trial_files import TrialFiles
from optimizer.study.decision import contradicted_by
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Note, Watcher, to_all, warnings_to
from optimizer.study.files import read_source_cards, read_start, write_source_cards
from optimizer.study.gated_artifact import reject_wrong_answers
from optimizer.study.history import History
from optimizer.study.notification import NotificationTarget, notifying, target_of
from optimizer.study.optuna_study import OptunaStudy
from optimizer.study.search_status import SearchEnd
from optimizer.study.searched_space import SearchedSpace, write_searched
from optimizer.study.trial_records import objective_names
from optimizer.study.warm_start import blocking_differences, carried_over, differences
from optimizer.triton.session import config_texts, files_of

_REMEDY = (
    "restore it, or start another study that reuses the still-valid results: "
    "--study NEW --warm-start {}"
)

_WITHOUT_SIMULATOR = "tpe"
"""The default sampler where that with a simulator cannot be used."""


@dataclass(frozen=True)
class RunOptions:
    """Options of `run`, see `optimizer.api.run`; None leaves the space file's own value."""

    space: Path | Space
    study: str | None = None
    trials: int | None = None
    timeout_seconds: float | None = None
    until: datetime.time | None = None
    regret_percent: float | None = None
    seed: int = 0
    sampler: str | None = None
    storage: str | None = field(default=None, repr=False)  # may have a password
    warm_start: str | None = None
    prior: str | None = None
    enqueue: Literal["published"] | None = None
    also_limits_ms: tuple[float, ...] = ()
    winner_tests: tuple[WinnerTest, ...] = ()
    gpus: str | None = None
    slots: int | None = None
    max_disturbance_percent: float | None = None
    notify: str | None = field(default=None, repr=False)  # may have a password
    cluster: ClusterChoice | None = None
    wait_for_quiet_seconds: float | None = None
    results: Path = Path("results")
    cache: Path | str | None = None

    @property
    def chosen_sampler(self) -> str:
        """The sampler, the default one where none was given."""
        return self.sampler or (_WITHOUT_SIMULATOR if self.also_limits_ms else "guided")

    @property
    def extra_limits_ms(self) -> tuple[float, ...]:
        """The latency limits beside the space file's, ascending."""
        return tuple(sorted(set(self.also_limits_ms)))


@dataclass(frozen=True)
class RunResult:
    """The summary of a study, and whether an earlier run had finished it."""

    directory: StudyDirectory
    summary: StudySummary
    was_finished: bool


@one_blas_thread()
def run_study(options: RunOptions, watch: Watcher, spent_seconds: float = 0.0) -> RunResult:
    """Start or resume a study, and run it to its end.

    Args:
        spent_seconds: time of the run that has passed already.
    """
    started = time.monotonic() - spent_seconds
    percent = options.max_disturbance_percent
    target = target_of(options.notify) if options.notify is not None else None
    if options.cluster is not None and options.wait_for_quiet_seconds is not None:
        raise UsageError("--wait-for-quiet: must be left out with --cluster; it is for one machine")
    with open_site(watch, options.cluster, options.gpus, options.slots, percent) as site:
        return _run_at(site, options, watch, started, target)


def _run_at(
    site: TrialSite,
    options: RunOptions,
    watch: Watcher,
    started: float,
    target: NotificationTarget | None,
) -> RunResult:
    space = _with_options(site.read_space(options.space), options, started)
    if options.also_limits_ms:
        _refuse_with_extra_limits(options, space)
    _refuse_regret_without_model(options)
    lender = None
    if options.prior is not None:
        sampler = options.chosen_sampler
        lender = lending_study(options.results, options.prior, sampler, space.content)
    directory = StudyDirectory(options.results.absolute() / space.study)

    def require(own: Space) -> tuple[Slot, Machine]:
        slot, machine = site.require_machine(own, directory)
        require_packages(own, SAMPLER_PACKAGES[options.chosen_sampler])
        if options.warm_start is not None and not directory.trials:
            _require_reusable(options.results, options.warm_start, own, machine)
        return slot, machine

    with open_run(
        space,
        directory,
        options.cache,
        _REMEDY.format(directory.name),
        seed=options.seed,
        extra_limits_ms=options.extra_limits_ms,
        require=require,
        watch=watch,
    ) as opened:
        run_time = RunTime(space.budget.wall_clock_seconds, started)
        context = replace(
            opened,
            slots=site.slots,
            wait_for_quiet_seconds=run_time.at_most(options.wait_for_quiet_seconds),
        )
        if lender is not None:
            lend(lender, directory)
        summary = finished_summary(
            directory, space.budget, options.chosen_sampler, options.winner_tests
        )
        if summary is not None:
            return RunResult(directory, summary, was_finished=True)
        earlier = directory.trials.read_to_keep()
        with (
            context.watched(watch, earlier) as watch_all,
            notifying(target, directory.name, directory.root, watch_all) as (notifier, send),
        ):
            note = site.note(space)
            if note is not None:
                watch_all(note)
            study = _Study(options, context, site, to_all(watch_all, notifier), earlier, run_time)
            summary = study.run()
            if summary.best is not None:
                send("finished", f"{summary.ended}; best: {_best_text(summary.best)}")
            elif summary.nothing_found is not None:
                send("nothing_confirmed", summary.nothing_found.reason)
            return RunResult(directory, summary, was_finished=False)


def _best_text(best: SummaryEntry) -> str:
    return (
        f"{best.description}: {best.capacity_per_second:.0f}/s, "
        f"${best.usd_per_million_at_capacity:.4f} per million"
    )


def _with_options(space: Space, options: RunOptions, started: float) -> Space:
    seconds = chosen_seconds(options.timeout_seconds, options.until, started)
    budget = Budget(
        options.trials or space.budget.trials,
        seconds or space.budget.wall_clock_seconds,
        options.regret_percent or space.budget.regret_percent,
    )
    return replace(space, study=options.study or space.study, budget=budget)


def _refuse_regret_without_model(options: RunOptions) -> None:
    """Refuse --regret with a sampler that cannot tell what an unmeasured configuration saves."""
    if options.regret_percent is not None and options.chosen_sampler not in CALIBRATED:
        raise UsageError(
            f"--regret: must be left out but with --sampler {', '.join(sorted(CALIBRATED))}, which "
            f"bounds what other configurations may save; got --sampler {options.chosen_sampler}"
        )


def _refuse_with_extra_limits(options: RunOptions, space: Space) -> None:
    """Refuse options that do not go with several latency limits."""
    require_one_limit(space.workload, "--also-limit")
    limit_ms = space.workload.shortest_limit_ms
    if limit_ms in options.also_limits_ms:
        raise UsageError(
            f"--also-limit: must be another limit than the space file's; got {limit_ms:g} ms"
        )
    if options.chosen_sampler in CALIBRATED:
        others = ", ".join(name for name in SAMPLERS if name not in CALIBRATED)
        raise UsageError(
            f"--sampler: must be one of {others} with --also-limit; got {options.sampler}, which "
            "minimises the cost within one limit"
        )
    if options.warm_start is not None:
        raise UsageError(
            "--warm-start: must be left out with --also-limit: the other study's trials have no "
            f"cost within further limits; got {options.warm_start}"
        )


def _require_reusable(results: Path, name: str, space: Space, machine: Machine) -> None:
    """Check that measurements of another study would come out the same here."""
    other = StudyDirectory(results.absolute() / name)
    if not other.space.exists():
        raise UsageError(f"--warm-start: study {name!r} not found in {results}")
    started = read_start(other)
    machines = started.machine.to_json(), machine.to_json()
    blocking = [
        *blocking_differences(started.content, space.content),
        *(text for _, text in differences(*machines, ("machine",))),
    ]
    if blocking:
        lines = "\n".join(f"  {text}" for text in blocking)
        raise UsageError(f"--warm-start: no measurement of study {name} is valid here:\n{lines}")


class _Study:
    """One run of a study: its parts, joined, and its phases in their order.

    Args:
        earlier: the records of earlier runs of the study, by number.
    """

    def __init__(
        self,
        options: RunOptions,
        run: RunContext,
        site: TrialSite,
        watch: Watcher,
        earlier: Mapping[int, TrialRecord],
        run_time: RunTime,
    ) -> None:
        self._earlier = earlier
        self._time = run_time
        self._options = options
        self._run = run
        self._site = site
        self._space = run.space
        self._directory = run.directory
        self._context = run.study_context
        self._watch = watch
        self._templates = shipped("model_repository_templates")
        self._require_leases: tuple[Callable[[], None], ...] = (run.directory.require_lease,)

    def run(self) -> StudySummary:
        """Run all phases; return the summary that was written."""
        warn_of_space_file(self._space, self._watch)
        with self._leased():
            return self._run_leased()

    @contextmanager
    def _leased(self) -> Iterator[None]:
        """Be the only coordinator of a study in a database, from whichever folder it is run."""
        if self._options.storage is None:
            yield
            return
        # It imports SQLAlchemy, which no other run needs.
        from optimizer.study.coordinator_lease import coordinator_lease

        storage, name = self._options.storage, self._space.study
        with coordinator_lease(storage, name, warnings_to(self._watch)) as lease:
            self._require_leases = (*self._require_leases, lease.require)
            yield

    def _require_lease(self) -> None:
        """Check that this process still runs the study, before it is changed."""
        for require in self._require_leases:
            require()

    def _run_leased(self) -> StudySummary:
        # A storage that cannot be opened is an error before the artefacts are built.
        strategies = self._strategies(self._space.search_space, History({}))
        strategy = strategies.uncalibrated(self._options.chosen_sampler)
        with self._open_study(self._space.search_space, strategy) as study:
            if self._options.storage is not None:
                study.require_records(self._earlier, self._directory.root)
        summary = self._phases()
        self._require_lease()
        # Last: a run that is interrupted before leaves it to the one that resumes.
        write_summary(self._directory, summary)
        return summary

    def _phases(self) -> StudySummary:
        with ExitStack() as opened:
            with self._time.kept_by("prepare"):
                evaluator, prepared = opened.enter_context(
                    self._site.evaluator(self._run, self._watch)
                )
            self._time = self._time.before_writing(prepared.files.values())
            history = self._reuse(prepared)
            ended = self._search(history, prepared)
            confirmed = self._confirm(evaluator, history, prepared)
            self._measure_winner(evaluator, history, confirmed)
        self._require_lease()
        self._write_bundles(confirmed, prepared)
        return self._summarise(ended, history, confirmed, prepared)

    def _files(self, study: OptunaStudy, prepared: Prepared) -> TrialFiles:
        """Return what keeps each trial's files for the dashboard."""
        return TrialFiles(
            study,
            self._directory,
            lambda config: config_texts(config, files_of(config, prepared.files), self._templates),
            self._watch,
        )

    def _search(self, history: History, prepared: Prepared) -> SearchEnd:
        """Run the calibrate phase, for samplers that use it, and the search phase."""
        served = prepared.as_served(self._space.workload)
        searched = replace(
            self._searched(prepared.space),
            workload=served,
            steps=prepared.requests_of_steps(served),
        )
        write_searched(self._directory, searched)
        write_source_cards(self._directory, self._space.models)
        if self._options.chosen_sampler in BOUNDED and self._space.budget.trials > MOST_TRIALS:
            self._watch(Note(bounded_text(self._options.chosen_sampler)))
        prior = read_prior(self._directory, self._space.workload)
        strategies = self._strategies(prepared.space, history, prior)
        with ExitStack() as opened:
            with self._time.kept_by("calibrate"):
                pool = opened.enter_context(self._site.pool(self._run, prepared, self._watch))
                strategy = strategies.calibrated(
                    self._options.chosen_sampler, pool, self._directory, self._watch
                )
            study = opened.enter_context(self._open_study(prepared.space, strategy))
            study.reconcile({record.number: record for record in history.records})
            study.name_constraints(self._context.limit_names)
            searched_study = SearchedStudy(
                study,
                prepared.space,
                self._directory,
                history,
                self._context,
                to_all(self._watch, self._files(study, prepared)),
            )
            first = self._enqueued(prepared.space)
            loop = SearchLoop(searched_study, pool)
            search_time = self._search_time(history, prepared)
            return loop.run(
                self._space.budget, strategy.advise, search_time, first, strategy.explain
            )

    def _search_time(self, history: History, prepared: Prepared) -> SearchTime:
        """Return the time of the search, which leaves some to confirm and measure the winner."""
        seconds = self._time.seconds
        reserve = partial(
            search_reserve,
            history,
            prepared.space.config(prepared.space.baseline),
            self._context,
            self._run.protocols,
            seconds,
        )
        of_winner = reserved_seconds(seconds, self._options.winner_tests)
        return SearchTime(self._time.limit.earlier(of_winner), reserve)

    def _enqueued(self, space: SearchSpace) -> list[Position]:
        """Return the points that are measured before any that the sampler proposes."""
        if self._options.enqueue is None:
            return []
        positions = published_positions(space)
        if missing := [name for name, position in positions.items() if position is None]:
            self._watch(Note(f"--enqueue: the space does not have {', '.join(missing)}", True))
        return [position for position in positions.values() if position is not None]

    def _searched(self, space: SearchSpace) -> SearchedSpace:
        own = self._space
        return SearchedSpace(own.study, space, own.workload, own.price, own.demand)

    def _reuse(self, prepared: Prepared) -> History:
        """Return this study's records; a new study starts with those of its warm start."""
        trials, origin, records = self._directory.trials, self._options.warm_start, self._earlier
        if origin is not None and not records:
            reusable = self._reusable(origin, prepared)
            for record in reusable:
                trials.write(record)
            self._watch(Note(f"{len(reusable)} trials of study {origin} are reused"))
            records = {record.number: trials.kept(record) for record in reusable}
        judged = reject_wrong_answers(trials, records, prepared.gated, self._watch)
        return History(judged, contradicted_by(self._directory.confirmations.read_all().values()))

    def _reusable(self, name: str, prepared: Prepared) -> list[TrialRecord]:
        other = StudyDirectory(self._options.results.absolute() / name)
        contradicted = contradicted_by(other.confirmations.read_all().values())
        records = [r for r in other.trials.read_all().values() if r.config not in contradicted]
        return carried_over(records, name, prepared.space, self._space.price, self._space.demand)

    def _strategies(
        self, space: SearchSpace, history: History, prior: ServicePrior | None = None
    ) -> Strategies:
        return Strategies(
            space,
            self._space.workload,
            history,
            self._context,
            search_protocol(self._space, self._run.extra_limits_ms),
            self._options.seed,
            prior=prior,
            regret_percent=self._space.budget.regret_percent,
        )

    def _open_study(self, space: SearchSpace, strategy: Strategy) -> OptunaStudy:
        study = OptunaStudy(
            self._space.study,
            self._directory.journal,
            self._options.storage,
            space,
            strategy.make_sampler,
            self._options.seed,
            objective_names(self._run.extra_limits_ms),
        )
        study.require_lease = self._require_lease
        return study

    def _confirm(
        self, evaluator: PhaseEvaluator, history: History, prepared: Prepared
    ) -> Confirmed:
        asked_for = self._options.winner_tests
        of_winner = reserved_seconds(self._time.seconds, asked_for) if asked_for else 0.0
        phase = ConfirmPhase(
            evaluator,
            self._directory,
            self._context,
            self._watch,
            self._run.protocols,
            self._time.limit.earlier(of_winner),
        )
        space = prepared.space
        # A configuration whose model file a resumed study has lost cannot be measured again.
        measurable = {
            r.number: r for r in history.records if space.position_of(r.config) is not None
        }
        return phase.run(History(measurable), space.config(space.baseline))

    def _measure_winner(
        self, evaluator: PhaseEvaluator, history: History, confirmed: Confirmed
    ) -> None:
        """Measure what is beyond capacity and cost, where time is left for it."""
        if not confirmed.best:
            return
        runs = LoadRuns.of(self._directory)
        own = [record for record in history.records if record.origin is None]
        records = [*own, *runs.calibration, *runs.drift_runs, *runs.confirmations]
        WinnerPhase(evaluator, self._directory, self._watch).run(
            confirmed.best[0],
            self._options.winner_tests,
            measured_seconds=sum(record.seconds.measuring for record in records),
            limit=self._time.limit,
        )

    def _write_bundles(self, confirmed: Confirmed, prepared: Prepared) -> None:
        """Write best/ and baseline/ with copies of their artefacts."""
        if confirmed.best:
            self._write(self._directory.best, confirmed.best[0].config, prepared)
        else:
            # The winner of an earlier run has not been confirmed by this one.
            remove_model_repository(self._directory.best)
        baseline = prepared.space.config(prepared.space.baseline)
        self._write(self._directory.baseline, baseline, prepared)

    def _write(self, target: Path, config: ServingConfig, prepared: Prepared) -> None:
        provenance = Provenance(
            origins_in(prepared.space, self._directory.cold_start.read(config)),
            dict(self._run.machine.packages),
            labels_in(read_source_cards(self._directory)),
        )
        files = files_of(config, prepared.files)
        write_model_repository(target, self._templates, config, files, provenance)

    def _summarise(
        self,
        ended: SearchEnd,
        history: History,
        confirmed: Confirmed,
        prepared: Prepared,
    ) -> StudySummary:
        runs = LoadRuns.of(self._directory)
        summary = summarise(self._space, ended, history, confirmed, runs, prepared)
        if self._run.extra_limits_ms:
            measured = measured_configurations(history.records, runs)
            front = pareto_front(measured, self._space.workload, self._context)
            summary = replace(summary, pareto=front)
        return replace(
            summary,
            disturbance=DisturbanceSummary.of(self._directory.disturbance.read()),
            wall_seconds=self._time.spent,
            machine=self._run.machine_json,
        )
