"""What an advanced job takes for its limits and its time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.commands.load_test_job import job_content, within_limits
from optimizer.errors import UsageError
from optimizer.load.stopping import StoppingConditions
from optimizer.load.user_load import Phase, UserLoad
from optimizer.load.user_load_file import LoadTestJob
from optimizer.space_file.reader import load_space
from optimizer.workload.streams import LatencyLimit
from tests.unit.studies import HARDWARE
from tests.unit.test_wiring import SPACE

JOB = LoadTestJob(UserLoad((Phase(2, 2.0, 60.0),)), StoppingConditions(30_000), 3, None)


def test_a_job_without_thresholds_takes_the_spaces_limits() -> None:
    taken = within_limits(JOB, SPACE)
    assert taken.conditions == StoppingConditions(30_000, (LatencyLimit(95.0, 200.0),))
    own = replace(JOB, conditions=StoppingConditions(None, (LatencyLimit(95.0, 50.0),)))
    assert within_limits(own, SPACE) == own


def test_limits_of_another_percentile_are_no_thresholds(tmp_path: Path) -> None:
    text = Path("search_spaces/quickstart.yaml").read_text()
    path = tmp_path / "space.yaml"
    path.write_text(text.replace("percentile: 95", "percentile: 99"))
    space = load_space(path, {SPACE.price.instance_type: SPACE.price}, HARDWARE)
    with pytest.raises(UsageError, match=r"give StoppingConditions\.ModelLatencyThresholds"):
        within_limits(JOB, space)


def test_what_tests_depend_on_is_the_same_after_it_was_kept() -> None:
    kept = job_content(within_limits(JOB, SPACE))
    assert json.loads(json.dumps(kept)) == kept
    longer = job_content(within_limits(replace(JOB, tests=9, seconds=1e6), SPACE))
    assert longer == kept, "not how many there are"
    assert (
        job_content(within_limits(replace(JOB, load=UserLoad(JOB.load.phases, 1.0)), SPACE)) != kept
    )
