"""The evaluation of one configuration: two protocols and their implementation on a real server.

A `TrialFailure` becomes the outcome "failed" with its reason; any other error ends the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, TypeVar

from optimizer.configuration.serving_config import ArtifactSpec, ServingConfig
from optimizer.errors import TrialFailure
from optimizer.load.capacity import (
    CapacityProtocol,
    CapacitySearch,
    RunLevel,
    find_capacity,
)
from optimizer.load.certification import CertificationTask, certify_load
from optimizer.load.curve import find_service
from optimizer.load.extra_limits import find_capacities
from optimizer.machine.slots import Slot
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import Failure, Seconds
from optimizer.search.level_runner import LevelRunner, concurrency
from optimizer.study.events import StepStarted, Watcher
from optimizer.triton.session import ModelFiles, ServingSession, files_of
from optimizer.workload.streams import Workload

_Result = TypeVar("_Result")

WinnerTestFunction: TypeAlias = Callable[["LiveEvaluator", ServingConfig, float, float], _Result]


class Evaluator(Protocol):
    """Measures configurations on a slot."""

    def evaluate(
        self,
        config: ServingConfig,
        slot: Slot,
        prune_below: float | None = None,
        expected_share: float | None = None,
    ) -> Evaluation:
        """Find the capacity.

        Args:
            prune_below: load factor that the configuration must reach to be of use; one that is
                provably below it ends as "bounded".
            expected_share: share of its saturation rate that it is likely to serve within the
                limits.
        """

    def saturate(self, config: ServingConfig, slot: Slot) -> Evaluation:
        """Measure the saturation rate alone; the outcome is "bounded" unless it failed."""

    def calibrate(self, config: ServingConfig, slot: Slot) -> Evaluation:
        """Measure saturation and then a light load, from which service times are learnt.

        A configuration of some of the models gets their requests alone. The outcome is "bounded"
        unless it failed.
        """


class Confirmer(Protocol):
    """Measures the finalists of a search again."""

    def confirm(self, config: ServingConfig, slot: Slot, task: CertificationTask) -> Evaluation:
        """Measure at a load factor and at the demand per replica, see `certify_load`."""


class WinnerTester(Protocol):
    """Measures the winner of a search further."""

    def run_winner_test(
        self,
        test: WinnerTestFunction[_Result],
        config: ServingConfig,
        load_factor: float,
        seconds: float,
    ) -> _Result:
        """Run a test where the configuration is served, with its server and load client.

        Args:
            test: measures within about `seconds`; can be pickled.
            load_factor: certified load.

        Raises:
            TrialFailure: the server is stopped.
        """


class PhaseEvaluator(Evaluator, Confirmer, WinnerTester, Protocol):
    """What the phases of a run measure with, one configuration at a time."""


@dataclass(frozen=True)
class Protocols:
    """Durations of load levels in the search and in the confirm phase."""

    search: CapacityProtocol
    confirm: CapacityProtocol


@dataclass(frozen=True)
class LiveEvaluator:
    """Serves configurations on a real server and load-tests them.

    Args:
        files: model files by artefact.
        extra_limits_ms: latency limits for which a capacity is found too.
    """

    session: ServingSession
    levels: LevelRunner
    workload: Workload
    files: Mapping[ArtifactSpec, ModelFiles]
    protocols: Protocols
    watch: Watcher
    extra_limits_ms: tuple[float, ...] = ()

    def evaluate(
        self,
        config: ServingConfig,
        slot: Slot,
        prune_below: float | None = None,
        expected_share: float | None = None,
    ) -> Evaluation:
        """Find the capacity on a real server, see `Evaluator.evaluate`."""
        workload, protocol = self.workload, self.protocols.search
        outstanding, extra_limits_ms = concurrency(config), self.extra_limits_ms
        if extra_limits_ms:
            return self.serve_and_measure(
                config,
                lambda run: find_capacities(
                    run, workload, protocol, outstanding, extra_limits_ms, expected_share
                ),
            )
        return self.serve_and_measure(
            config,
            lambda run: find_capacity(
                run, workload, protocol, outstanding, prune_below, expected_share
            ),
        )

    def saturate(self, config: ServingConfig, slot: Slot) -> Evaluation:
        """Measure the saturation rate, see `Evaluator.saturate`."""
        protocol, outstanding = self.protocols.search, concurrency(config)
        return self.serve_and_measure(
            config,
            lambda run: CapacitySearch(run, self.workload, protocol).find_saturation(outstanding),
        )

    def calibrate(self, config: ServingConfig, slot: Slot) -> Evaluation:
        """Measure saturation and a light load, see `Evaluator.calibrate`."""
        protocol, outstanding = self.protocols.search, concurrency(config)
        workload = self.workload.to([model.name for model in config.models])
        own = self
        if workload is not self.workload:
            own = replace(self, workload=workload, levels=self.levels.for_workload(workload))
        return own.serve_and_measure(
            config, lambda run: find_service(run, workload, protocol, outstanding)
        )

    def confirm(self, config: ServingConfig, slot: Slot, task: CertificationTask) -> Evaluation:
        """Measure a finalist again, see `Confirmer.confirm`."""
        protocol, outstanding = self.protocols.confirm, concurrency(config)
        return self.serve_and_measure(
            config, lambda run: certify_load(run, self.workload, protocol, outstanding, task)
        )

    def run_winner_test(
        self,
        test: WinnerTestFunction[_Result],
        config: ServingConfig,
        load_factor: float,
        seconds: float,
    ) -> _Result:
        """Measure the winner further, see `WinnerTester.run_winner_test`."""
        return test(self, config, load_factor, seconds)

    def serve_and_measure(
        self, config: ServingConfig, measure: Callable[[RunLevel], Evaluation]
    ) -> Evaluation:
        """Serve a configuration and return what `measure` finds by running load levels on it."""
        started = time.monotonic()
        self.watch(StepStarted("loading the model"))
        serving = measuring = 0.0
        try:
            served = self.session.serve(config, files_of(config, self.files))
            serving = time.monotonic() - started
            try:
                with self.levels.on(served, config) as run:
                    result = measure(run)
            except TrialFailure as error:
                raise self.session.failure(error) from error
            measuring = time.monotonic() - started - serving
            self.session.retire()
        except TrialFailure as error:
            measuring = measuring or max(0.0, time.monotonic() - started - serving)
            spent = Seconds(serving=serving, measuring=measuring if serving else 0.0)
            kind = type(error).__name__
            failure = Failure(kind, error.transient, error.out_of_memory)
            return Evaluation("failed", str(error), failure=failure, seconds=spent)
        except BaseException:
            # What was cut off may have left a model half loaded, or requests that nobody awaits.
            self.session.stop()
            raise
        return replace(result, seconds=Seconds(measuring=measuring, serving=serving))
