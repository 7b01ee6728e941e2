"""Recommendations from studies of several hosts, which were copied into one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimizer.commands import recommend as recommending
from optimizer.commands.load_test_job import job_content
from optimizer.commands.recommend import RecommendOptions, recommend_instances
from optimizer.commands.run_options import RunOptions
from optimizer.errors import StorageError, UsageError
from optimizer.files.atomic import write_json
from optimizer.files.shipped import shipped
from optimizer.fleet.price_rules import PriceChoice
from optimizer.fleet.recommendation import Recommendation
from optimizer.load.stopping import StoppingConditions
from optimizer.load.user_load import Phase, UserLoad
from optimizer.load.user_load_file import LoadTestJob
from optimizer.measurement.cost import Demand
from optimizer.measurement.level import Slice
from optimizer.study.directory import StudyDirectory
from optimizer.study.trial_records import measured_record
from optimizer.workload.streams import LatencyLimit
from tests.unit.hosts import A10G, CONTENT, T4, host, on_machine, price_of, space_on, use_of
from tests.unit.studies import MACHINE, SETTING, infeasible, ok

pytestmark = pytest.mark.usefixtures("fast_disk")
EAST = PriceChoice(region="us-east-1")
G5, G5_2 = price_of("ml.g5.xlarge"), price_of("ml.g5.2xlarge")
BIG = replace(A10G, cores=8, memory_gib=32)


@pytest.fixture(autouse=True)
def own_list_of_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two hosts with an A10G each; the larger one serves more, and its best was confirmed."""
    host(tmp_path / "small", G5, A10G, [90.0, 130.0])
    host(tmp_path / "large", G5_2, BIG, [150.0, 180.0], confirmed=[140.0, 145.0])
    return tmp_path


def ask(results: Path, *studies: str, **settings: Any) -> Recommendation:
    request = RecommendOptions(studies or ("small", "large"), results=results, **settings)
    return recommend_instances(request, lambda _: None)


def test_hosts_are_ranked_by_their_fleets(results: Path) -> None:
    found = ask(results)
    assert [(o.study, o.candidate.score.replicas) for o in found.estimates] == [
        ("small", 4),
        ("large", 4),
    ]
    small, large = found.estimates
    assert small.fleet_usd_per_hour == pytest.approx(4 * 1.408)
    space = space_on(A10G)
    assert small.candidate.config == space.config(space.at(1)), "the best of its two"
    figure = large.metrics["MaxInvocations"]
    assert figure is not None
    assert figure.value == pytest.approx(60 * 140)
    assert figure.basis == "confirmed"
    latency = large.metrics["ModelLatency"]
    assert latency is not None
    assert latency.value == 60.0, "of the round whose capacity it is"
    setup = large.metrics["ModelSetupTime"]
    assert setup is not None
    assert (setup.value, setup.basis) == (1.0, "measured")
    memory = small.metrics["GpuMemoryUtilization"]
    assert memory is not None
    assert memory.value == pytest.approx(100 * 3072 / 23_028)


def test_a_copied_folder_is_named_by_its_path_where_names_are_alike(tmp_path: Path) -> None:
    for name, price, machine in (("one", G5, A10G), ("two", G5_2, BIG)):
        host(tmp_path / name / "bert", price, machine, [100.0])
    paths = [str(tmp_path / name / "bert") for name in ("one", "two")]
    found = ask(tmp_path / "nothing here", *paths, paths[0])
    assert [offer.study for offer in found.estimates] == paths


def test_another_demand_is_counted_anew(results: Path) -> None:
    found = ask(results, demand_per_second=5000.0, headroom=0.3)
    assert found.demand == Demand(5000.0, 0.3)
    assert [(o.study, o.candidate.score.replicas) for o in found.estimates] == [
        ("small", 50),
        ("large", 47),
    ]


def test_demands_that_differ_are_refused_unless_one_is_given(results: Path) -> None:
    host(results / "more", G5, A10G, [100.0], demand=Demand(900.0))
    with pytest.raises(UsageError) as caught:
        ask(results, "small", "more")
    assert str(caught.value) == (
        "the studies were not run for the same demand (small 500, more 900): give --demand"
    )
    assert len(ask(results, "small", "more", demand_per_second=700.0).estimates) == 2


def test_studies_that_asked_different_things_are_refused_with_every_difference(
    results: Path,
) -> None:
    other: Mapping[str, Any] = {
        "models": {"bert": {"source": {"onnx": "large.onnx"}, "parameters": {"precision": "int8"}}},
        "traffic": {**CONTENT["traffic"], "arrivals": "constant", "demand_per_second": 900.0},
        "limit": {"percentile": 99.0, "latency_ms": 100.0},
    }
    host(results / "other", G5, A10G, [100.0], content=other)
    with pytest.raises(UsageError) as caught:
        ask(results, "small", "large", "other")
    assert str(caught.value).splitlines() == [
        "the workloads of the studies differ, they cannot be compared:",
        "  limit.percentile: 95.0 in small, 99.0 in other",
        "  models.bert.source.onnx: bert.onnx in small, large.onnx in other",
        "  traffic.arrivals: poisson in small, constant in other",
    ]


def test_a_price_of_another_machine_is_refused_unless_accepted(results: Path) -> None:
    host(results / "wrong", price_of("ml.g4dn.xlarge"), A10G, [100.0])
    with pytest.raises(
        UsageError, match=r"ml\.g4dn\.xlarge has NVIDIA T4, the machine NVIDIA A10G"
    ):
        ask(results, "wrong")
    found = ask(results, "wrong", accepted=frozenset({"contradictions"}))
    [offer] = found.estimates
    assert offer.price.instance_type == "ml.g4dn.xlarge"
    assert found.accepted == ("ml.g4dn.xlarge has NVIDIA T4, the machine NVIDIA A10G",)
    host(results / "another", price_of("ml.g4dn.xlarge"), A10G, [100.0])
    alike = ask(results, "wrong", "another", accepted=frozenset({"contradictions"}))
    assert alike.accepted == found.accepted, "said once of hosts that are alike"


def test_a_price_that_only_the_other_host_lists_is_checked_too(results: Path) -> None:
    todays = replace(G5, usd_per_hour=1.5, region="eu-west-1", source="AWS price list, eu-west-1")
    host(results / "wrong", todays, T4, [100.0])
    with pytest.raises(UsageError, match=r"ml\.g5\.xlarge has NVIDIA A10G, the machine Tesla T4"):
        ask(results, "wrong")


def test_prices_that_cannot_be_compared_are_refused_unless_accepted(results: Path) -> None:
    host(results / "t4", price_of("ml.g4dn.xlarge"), T4, [100.0])
    with pytest.raises(UsageError, match=r"more than one basis.*--accept mixed-prices"):
        ask(results, "small", "t4")
    both = ask(results, "small", "t4", accepted=frozenset({"mixed-prices"}))
    assert len(both.estimates) == 2
    assert [text.partition(":")[0] for text in both.accepted] == ["prices of more than one basis"]
    assert ask(results, accepted=frozenset({"mixed-prices"})).accepted == ()


def test_one_type_priced_in_two_regions_is_a_mixture_too(results: Path) -> None:
    elsewhere = replace(G5, region="eu-west-1", source="price list API copy, eu-west-1")
    host(results / "abroad", elsewhere, A10G, [100.0])
    with pytest.raises(UsageError, match=r"ml\.g5\.xlarge eu-west-1, ml\.g5\.xlarge us-east-1"):
        ask(results, "small", "abroad")


def test_types_that_nobody_measured_are_extrapolated_and_marked(results: Path) -> None:
    accepted = frozenset({"mixed-prices"})
    types = ("ml.g5.12xlarge", "ml.g5.2xlarge", "ml.g5.12xlarge")
    with pytest.raises(UsageError, match=r"more than one region.*ml\.g5\.12xlarge us-west-2"):
        ask(results, instance_types=types)
    found = ask(results, instance_types=types, accepted=accepted)
    assert sorted(offer.price.instance_type for offer in found.estimates) == [
        "ml.g5.12xlarge", "ml.g5.2xlarge", "ml.g5.xlarge",
    ]  # fmt: skip
    [twelve] = [o for o in found.estimates if o.extrapolated is not None]
    assert twelve.study == "large", "8 cores for a GPU come nearest to 12"
    capacity = twelve.candidate.measurement.capacity_per_second
    assert capacity == pytest.approx(4 * 140), "of what was confirmed"


def test_a_gpu_that_nobody_measured_is_refused(results: Path) -> None:
    accepted = frozenset({"mixed-prices"})
    with pytest.raises(UsageError, match=r"measured: small NVIDIA A10G, large NVIDIA A10G"):
        ask(results, instance_types=("ml.g6.xlarge",), accepted=accepted)


def test_what_met_no_limit_says_why(results: Path) -> None:
    directory = host(results / "slow", G5, A10G, [])
    space = space_on(A10G)
    for n, p95 in enumerate((180.0, 150.0)):
        record = measured_record(n, space.config(space.at(n)), infeasible(20.0, p95), SETTING)
        directory.trials.write(record)
    found = ask(results, "small", "slow")
    [(study, reason)] = found.nothing
    assert (study, len(found.estimates)) == ("slow", 1)
    assert reason.startswith("none of 2 trials met the limits; the nearest was tensorrt fp32")
    assert reason.endswith("over the limit at the floor")
    assert ask(results, "slow").estimates == ()
    host(results / "empty", G5, A10G, [])
    assert ask(results, "empty").nothing == (("empty", "nothing was measured yet"),)


def test_the_recommendation_is_written_for_programs(results: Path, tmp_path: Path) -> None:
    file = tmp_path / "recommendation.json"
    found = ask(results, json=file)
    assert json.loads(file.read_text()) == json.loads(json.dumps(found.to_json()))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "give studies, or --search SPACE.yaml"),
        ({"job": Path("job.json")}, "--job runs on this machine"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        recommend_instances(RecommendOptions(results=tmp_path, **settings), lambda _: None)


LOAD = UserLoad((Phase(2, 60.0, 100.0),))
JOB = LoadTestJob(LOAD, StoppingConditions(30_000, (LatencyLimit(95, 100.0),)), 3, None)


def keep_tests(
    directory: StudyDirectory, parts: Sequence[tuple[int, float]], job: LoadTestJob = JOB
) -> None:
    """An advanced job whose first test served so many requests, with that p95, in each part."""
    space = space_on(A10G)
    folder = StudyDirectory(directory.root / "advanced")
    write_json(folder.space, {"space": {"job": job_content(job)}, "machine": MACHINE.to_json()})
    evaluation = on_machine(ok(max(n for n, _ in parts) / (100 / len(parts))), use_of(A10G, 1.0))
    assert evaluation.measurement is not None
    level = replace(
        evaluation.measurement.levels[-1],
        kind="user_load",
        seconds=100.0,
        slices=tuple(Slice(n, ms) for n, ms in parts),
    )
    measurement = replace(evaluation.measurement, levels=(level,))
    evaluation = replace(evaluation, measurement=measurement)
    folder.trials.write(measured_record(0, space.config(space.at(0)), evaluation, SETTING))
    failed = infeasible(10.0)
    folder.trials.write(measured_record(1, space.config(space.at(1)), failed, SETTING))


def test_advanced_jobs_of_all_hosts_are_ranked_by_what_they_measured(results: Path) -> None:
    keep_tests(StudyDirectory(results / "small"), [(2000, 20.0), (8000, 90.0)])
    keep_tests(StudyDirectory(results / "large"), [(2000, 20.0), (12_500, 80.0)])
    found = ask(results, advanced=True)
    assert [(o.study, o.candidate.score.replicas) for o in found.estimates] == [
        ("large", 2),
        ("small", 4),
    ]
    best = found.estimates[0]
    latency, invocations = best.metrics["ModelLatency"], best.metrics["MaxInvocations"]
    assert latency is not None
    assert (latency.value, latency.basis) == (80.0, "measured")
    assert invocations is not None
    assert invocations.value == pytest.approx(15_000)
    assert best.warnings == (
        "MaxInvocations is that of the best 50 s: a longer load is more certain",
    )


def test_a_host_without_a_job_or_with_another_one_is_refused(results: Path) -> None:
    keep_tests(StudyDirectory(results / "small"), [(2000, 20.0)])
    with pytest.raises(UsageError, match="study large has no advanced job"):
        ask(results, advanced=True)
    keep_tests(StudyDirectory(results / "large"), [(2000, 20.0)], replace(JOB, load=UserLoad(
        (Phase(4, 60.0, 100.0),), 0.0)))  # fmt: skip
    with pytest.raises(UsageError, match=r"job\.phases: \[\[2, .* in small, \[\[4, .* in large"):
        ask(results, advanced=True)


def test_a_job_whose_tests_all_missed_says_why(results: Path) -> None:
    directory = StudyDirectory(results / "small")
    folder = StudyDirectory(directory.root / "advanced")
    write_json(folder.space, {"space": {"job": job_content(JOB)}, "machine": MACHINE.to_json()})
    assert ask(results, "small", advanced=True).nothing == (
        ("small", "its advanced job has tested nothing yet"),
    )
    record = measured_record(0, space_on(A10G).config(space_on(A10G).at(0)), infeasible(9), SETTING)
    folder.trials.write(record)
    [(_, reason)] = ask(results, "small", advanced=True).nothing
    assert reason.endswith(": over the limit at the floor")
    write_json(folder.space, {"space": {}, "machine": MACHINE.to_json()})
    with pytest.raises(StorageError, match="job is missing"):
        ask(results, "small", advanced=True)


class Searching(Exception):
    """A search would begin now."""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[RunOptions]:
    """This machine is an ml.c5.xlarge; what it is asked to search is kept."""
    asked: list[RunOptions] = []

    def run_study(request: RunOptions, _: object) -> None:
        asked.append(request)
        raise Searching

    machine = replace(MACHINE, cores=4, memory_gib=8)
    monkeypatch.setattr(recommending, "require_machine", lambda _: (SETTING.slot, machine))
    monkeypatch.setattr(recommending, "run_study", run_study)
    return asked


QUICKSTART = shipped("search_spaces") / "quickstart.yaml"


def ask_here(folder: Path, *studies: str, seconds: float | None = None, **settings: Any) -> None:
    options = RecommendOptions(
        studies, QUICKSTART, timeout_seconds=seconds, results=folder, cache=folder, **settings
    )
    recommend_instances(options, lambda _: None)


def job_file(folder: Path, **more: Any) -> Path:
    phase = {"InitialNumberOfUsers": 2, "DurationInSeconds": 60}
    pattern = {"TrafficType": "PHASES", "Phases": [phase]}
    path = folder / "job.json"
    path.write_text(json.dumps({"TrafficPattern": pattern, **more}))
    return path


def test_the_search_has_the_time_that_the_tests_of_a_job_leave(
    tmp_path: Path, here: list[RunOptions]
) -> None:
    for seconds in (None, 100.0, 10_000.0):
        with pytest.raises(Searching):
            ask_here(tmp_path, seconds=seconds, job=job_file(tmp_path, JobDurationInSeconds=600))
    with pytest.raises(Searching):
        ask_here(tmp_path, seconds=77.0, job=job_file(tmp_path))
    assert [request.timeout_seconds for request in here] == [420.0, 100.0, 420.0, 77.0]


def test_what_does_not_fit_is_refused_before_a_search(
    results: Path, here: list[RunOptions]
) -> None:
    with pytest.raises(UsageError, match="workloads of the studies differ"):
        ask_here(results, "small")
    with pytest.raises(UsageError, match="is not a valid job"):
        ask_here(results, job=job_file(results, ResourceLimit={"MaxParallelOfTests": 4}))
    with pytest.raises(UsageError, match="it has NVIDIA A10G"):
        ask_here(results, instance_types=("ml.g5.xlarge",))
    with pytest.raises(UsageError, match="no spot price is listed"):
        ask_here(results, rate="spot")
    assert here == []


def test_a_price_of_another_machine_is_refused_before_a_search(
    tmp_path: Path, here: list[RunOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recommending, "require_machine", lambda _: (SETTING.slot, MACHINE))
    listed = QUICKSTART.read_text().replace(", usd_per_hour: 0.204, source: example", "")
    (tmp_path / "space.yaml").write_text(listed)
    options = RecommendOptions(space=tmp_path / "space.yaml", results=tmp_path, cache=tmp_path)
    with pytest.raises(UsageError, match=r"ml\.c5\.xlarge has 4 vCPUs, the machine 2 cores"):
        recommend_instances(options, lambda _: None)
    assert here == []
