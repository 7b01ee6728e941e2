"""The pools of workers that need no other process."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.configuration.serving_config import ServingConfig
from optimizer.machine.slots import local_slot
from optimizer.search.recorded.evaluator import RecordedEvaluator
from optimizer.search.recorded.virtual_pool import VirtualPool
from optimizer.search.worker_pool import InlinePool, WorkerPool
from tests.contracts.worker_pool import WorkerPoolContract
from tests.unit.studies import small_space
from tests.unit.tables import recorded_table

SPACE = small_space()


def evaluator() -> RecordedEvaluator:
    return RecordedEvaluator(recorded_table(SPACE), np.random.default_rng(0))


class _Recorded(WorkerPoolContract):
    @pytest.fixture
    def config(self) -> ServingConfig:
        return SPACE.config(SPACE.baseline)


class TestInlinePool(_Recorded):
    @pytest.fixture
    def pool(self) -> WorkerPool:
        return InlinePool(evaluator(), local_slot())


class TestVirtualPool(_Recorded):
    @pytest.fixture
    def pool(self) -> WorkerPool:
        return VirtualPool(evaluator(), local_slot(), workers=5)
