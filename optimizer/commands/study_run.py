"""One run of a study: its phases, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from optimizer.analysis.measured_configurations import measured_configurations
from optimizer.analysis.pareto_front import pareto_front
from optimizer.analysis.run_summary import LoadRuns, summarise
from optimizer.analysis.summary import DisturbanceSummary, StudySummary, write_summary
from optimizer.commands.protocols import search_protocol
from optimizer.commands.run_context import RunContext, warn_of_space_file
from optimizer.commands.run_options import RunOptions
from optimizer.commands.run_time import RunTime
from optimizer.commands.sampler_choice import Strategies
from optimizer.commands.trial_site import TrialSite
from optimizer.configuration.model_space import Position
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.export.bundle.commented_config import origins_in
from optimizer.export.bundle.repository import (
    Provenance,
    labels_in,
    remove_model_repository,
    write_model_repository,
)
from optimizer.files.shipped import shipped
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.bounded_sampler import MOST_TRIALS, bounded_text
from optimizer.search.confirm import Confirmed, ConfirmPhase, search_reserve
from optimizer.search.evaluator import PhaseEvaluator
from optimizer.search.lent_calibration import read_prior
from optimizer.search.loop import SearchLoop, SearchTime
from optimizer.search.prepared import Prepared
from optimizer.search.published_grid import published_positions
from optimizer.search.running_tasks import RunningTasks
from optimizer.search.samplers import BOUNDED, Strategy
from optimizer.search.trial_ledger import SearchedStudy
from optimizer.search.winner_phase import (
    WinnerPhase,
    reserved_seconds,
)
from optimizer.simulator.service_prior import ServicePrior
from optimizer.study.dashboard.trial_files import TrialFiles
from optimizer.study.decision import contradicted_by
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Note, Watcher, to_all, warnings_to
from optimizer.study.files import read_source_cards, write_source_cards
from optimizer.study.gated_artifact import reject_wrong_answers
from optimizer.study.history import History
from optimizer.study.optuna_study import OptunaStudy
from optimizer.study.search_status import SearchEnd
from optimizer.study.searched_space import SearchedSpace, write_searched
from optimizer.study.trial_records import objective_names
from optimizer.study.warm_start import carried_over
from optimizer.triton.session import config_texts, files_of


class StudyRun:
    """One run of a study: its parts, joined.

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
                tasks = RunningTasks(pool, self._watch)
                strategy = strategies.calibrated(
                    self._options.chosen_sampler, tasks, self._directory, self._watch
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
            loop = SearchLoop(searched_study, tasks)
            search_time = self._search_time(history, prepared)
            return loop.run(
                self._space.budget,
                strategy.advise,
                search_time,
                first,
                strategy.explain,
                strategy.calibrated_by,
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
