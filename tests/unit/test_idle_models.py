"""Which models of a pipeline the guided search leaves at the baseline."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from optimizer.commands.replay import replay_table
from optimizer.search.recorded.table import RecordedTable
from optimizer.search.surrogate.idle_models import IdleModel, OpenRows, open_rows
from optimizer.simulator.forecast import Forecast, Forecaster
from optimizer.simulator.service_model import ServiceModel
from optimizer.study.events import Event, Note
from tests.benchmarks.synthetic_pipelines import pipeline_space, table_of

SPACE = pipeline_space(
    {
        "tokenizer.instance_count": [1, 2],
        "classifier.batching": [False, True],
        "classifier.max_batch_size": [8, 16, 32],
        "classifier.instance_count": [1, 2],
        "labeller.instance_count": [1, 2],
    }
).search_space
IDLE = {"tokenizer": 0.3, "classifier": 0.97, "labeller": 0.12}


class GivenForecaster(Forecaster):
    """Forecasts these capacities and utilisations, whatever was measured."""

    def __init__(self, capacity: NDArray[np.float64], busy: dict[str, float]) -> None:
        super().__init__()
        self.capacity, self.busy = capacity, busy

    def of_point(self, service: ServiceModel, row: int) -> Forecast:
        return self.forecast(service).at(row)

    def utilisations(self, service: ServiceModel, row: int) -> dict[str, float]:
        return self.busy

    def _forecast(self, service: ServiceModel) -> Forecast:
        spread = np.full(len(SPACE), 0.05)
        return Forecast(1.1 * self.capacity, self.capacity, -np.ones(len(SPACE)), spread)


def opened(capacity: NDArray[np.float64], busy: dict[str, float]) -> OpenRows:
    return open_rows(SPACE, GivenForecaster(capacity, busy), ServiceModel(()))


def column(key: str) -> NDArray[np.int64]:
    [index] = [n for n, parameter in enumerate(SPACE.parameters) if parameter.key == key]
    return SPACE.points[:, index]


def test_steps_that_cannot_limit_are_left_at_the_baseline() -> None:
    capacity = 1.0 + column("classifier.max_batch_size") + column("classifier.instance_count")
    found = opened(capacity, IDLE)
    assert found.idle == (IdleModel("tokenizer", 0.3), IdleModel("labeller", 0.12))
    assert "labeller at 12% utilisation cannot limit" in found.idle[1].text
    assert set(column("tokenizer.instance_count")[found.rows]) == {0}
    assert set(column("labeller.instance_count")[found.rows]) == {0}
    assert set(column("classifier.instance_count")[found.rows]) == {0, 1}


def test_a_step_that_improves_the_best_is_searched() -> None:
    capacity = 1.0 + column("classifier.max_batch_size") + 0.2 * column("labeller.instance_count")
    assert [idle.model for idle in opened(capacity, IDLE).idle] == ["tokenizer"]


def test_a_step_that_may_limit_is_searched() -> None:
    capacity = 1.0 + column("classifier.max_batch_size")
    busy = {**IDLE, "labeller": 0.8}
    assert [idle.model for idle in opened(capacity, busy).idle] == ["tokenizer"]


def test_a_single_model_is_searched_whole_as_no_other_limits_it() -> None:
    found = opened(np.ones(len(SPACE)), {})
    assert found.rows.all()
    assert found.idle == ()


def whole_table(seed: int) -> RecordedTable:
    space = pipeline_space(
        {
            "tokenizer.instance_count": [1, 2],
            "classifier.batching": [False, True],
            "classifier.max_batch_size": [8, 16, 32],
            "classifier.instance_count": [1, 2],
            "labeller.instance_count": [1, 2],
        }
    )
    points = space.search_space
    return table_of(space, seed, [points.at(row) for row in range(len(points))], requests=1_000)


@pytest.mark.slow
def test_the_guided_search_finds_the_bottleneck_of_a_pipeline_first() -> None:
    table, events = whole_table(3), list[Event]()
    replay = replay_table(table, "guided", 0, 8, events.append, enough=0.05)
    assert replay.first_within(0.05) is not None
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("labeller at" in text and "cannot limit" in text for text in notes)
    first = replay.trials[1].record.config
    classifier = next(model for model in first.models if model.name == "classifier")
    assert classifier.batching is not None, "batches of the slow step are tried first"
