"""The contract of evaluators, on a recorded table and on the live evaluator without a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import ModelLoadFailure, TrialFailure
from optimizer.load.capacity import CapacityProtocol, RunLevel
from optimizer.search.evaluator import LiveEvaluator, Protocols
from optimizer.search.recorded.evaluator import RecordedEvaluator
from optimizer.search.recorded.table import RecordedTable
from tests.contracts.evaluator import EvaluatorCase, EvaluatorContract, evaluations
from tests.unit.simulated_server import SimulatedServer, workload
from tests.unit.studies import SETTING, small_space
from tests.unit.tables import recorded_table

SPACE = small_space()
CONFIG, BROKEN = SPACE.config(SPACE.at(3)), SPACE.config(SPACE.at(5))


class TestRecordedTable(EvaluatorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> EvaluatorCase:
        whole = recorded_table(SPACE)
        rows = [
            replace(row, outcome="failed", reason="broke", saturation=None, light=None)
            if SPACE.config(row.position) == BROKEN
            else row
            for row in whole.rows
        ]
        table = RecordedTable(whole.space, tuple(rows))
        evaluator = RecordedEvaluator(table, np.random.default_rng(0))
        slot = SETTING.slot
        return EvaluatorCase(evaluator, CONFIG, slot, lambda: evaluations(evaluator, BROKEN, slot))


class SessionWithoutServer:
    def serve(self, config: ServingConfig, files: Mapping[str, Any]) -> ServingConfig:
        if config == BROKEN:
            raise ModelLoadFailure("the model does not load")
        return config

    def failure(self, error: TrialFailure) -> TrialFailure:
        return error

    def retire(self) -> None:
        """Keep nothing."""


class SimulatedLevels:
    @contextmanager
    def on(self, served: ServingConfig, config: ServingConfig) -> Iterator[RunLevel]:
        assert served == config
        yield SimulatedServer(workload(50.0))


class TestLiveEvaluatorOnASimulatedServer(EvaluatorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> EvaluatorCase:
        protocol, slot = CapacityProtocol(), SETTING.slot
        evaluator = LiveEvaluator(
            cast(Any, SessionWithoutServer()),
            cast(Any, SimulatedLevels()),
            workload(50.0),
            dict.fromkeys(SPACE.artifacts, cast(Any, None)),
            Protocols(protocol, protocol),
            lambda _: None,
        )
        return EvaluatorCase(evaluator, CONFIG, slot, lambda: evaluations(evaluator, BROKEN, slot))
