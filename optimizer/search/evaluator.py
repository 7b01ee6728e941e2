"""Measuring one configuration: two seams, and their implementation on a real server.

What goes wrong with one configuration becomes its outcome, with the reason. Only `TrialFailure` is
turned into one: anything else is a defect or ends the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

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
            prune_below: load factor under which the configuration is not wanted; one that is
                provably below it ends as `bounded`.
            expected_share: what share of its saturation it is likely to serve within the limits.
        """

    def saturate(self, config: ServingConfig, slot: Slot) -> Evaluation:
        """The rate at saturation alone; `bounded` unless it failed."""

    def calibrate(self, config: ServingConfig, slot: Slot) -> Evaluation:
        """Saturation, then a light load: what service times are learnt from.

        `bounded` unless it failed.
        """


class Confirmer(Protocol):
    """Measures what a search has found once more, to be sure of it."""

    def confirm(self, config: ServingConfig, slot: Slot, task: CertificationTask) -> Evaluation:
        """Measure anew at a load factor and at the demand per replica, see `certify_load`."""


@dataclass(frozen=True)
class Protocols:
    """How long levels take in the search, and when confirming."""

    search: CapacityProtocol
    confirm: CapacityProtocol


class LiveEvaluator:
    """Serves configurations on a real server and load-tests them.

    Args:
        files: what serving needs, by artefact.
        extra_limits_ms: latency limits within which the capacity is found as well.
    """

    def __init__(
        self,
        session: ServingSession,
        levels: LevelRunner,
        workload: Workload,
        files: Mapping[ArtifactSpec, ModelFiles],
        protocols: Protocols,
        watch: Watcher,
        extra_limits_ms: tuple[float, ...] = (),
    ) -> None:
        self._session = session
        self._levels = levels
        self._workload = workload
        self._files = files
        self._protocols = protocols
        self._watch = watch
        self._extra_limits_ms = extra_limits_ms

    def evaluate(
        self,
        config: ServingConfig,
        slot: Slot,
        prune_below: float | None = None,
        expected_share: float | None = None,
    ) -> Evaluation:
        """See `Evaluator`."""
        workload, protocol = self._workload, self._protocols.search
        outstanding, extra_limits_ms = concurrency(config), self._extra_limits_ms
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
        """See `Evaluator`."""
        protocol, outstanding = self._protocols.search, concurrency(config)
        return self.serve_and_measure(
            config,
            lambda run: CapacitySearch(run, self._workload, protocol).find_saturation(outstanding),
        )

    def calibrate(self, config: ServingConfig, slot: Slot) -> Evaluation:
        """See `Evaluator`."""
        protocol, outstanding = self._protocols.search, concurrency(config)
        return self.serve_and_measure(
            config, lambda run: find_service(run, self._workload, protocol, outstanding)
        )

    def confirm(self, config: ServingConfig, slot: Slot, task: CertificationTask) -> Evaluation:
        """See `Confirmer`."""
        protocol, outstanding = self._protocols.confirm, concurrency(config)
        return self.serve_and_measure(
            config, lambda run: certify_load(run, self._workload, protocol, outstanding, task)
        )

    def serve_and_measure(
        self, config: ServingConfig, measure: Callable[[RunLevel], Evaluation]
    ) -> Evaluation:
        """Serve a configuration and have `measure` run levels on it."""
        started = time.monotonic()
        self._watch(StepStarted("loading the model"))
        serving = measuring = 0.0
        try:
            served = self._session.serve(config, files_of(config, self._files))
            serving = time.monotonic() - started
            try:
                with self._levels.on(served, config) as run:
                    result = measure(run)
            except TrialFailure as error:
                raise self._session.failure(error) from error
            measuring = time.monotonic() - started - serving
            self._session.retire()
        except TrialFailure as error:
            measuring = measuring or max(0.0, time.monotonic() - started - serving)
            spent = Seconds(serving=serving, measuring=measuring if serving else 0.0)
            kind = type(error).__name__
            failure = Failure(kind, error.transient, error.out_of_memory)
            return Evaluation("failed", str(error), failure=failure, seconds=spent)
        return replace(result, seconds=Seconds(measuring=measuring, serving=serving))
