from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from optimizer.analysis.study_reading import read_study
from optimizer.cli import main
from tests.unit.studies import MACHINE
from tests.unit.whole_studies import CONTENT, WholeStudy, configs

pytestmark = pytest.mark.usefixtures("fast_disk")

TRITON_A, TRITON_B = (
    replace(MACHINE, packages=(("nvidia-pytriton", v), ("numpy", "2"))) for v in ("0.6.0", "0.7.0")
)


@dataclass(frozen=True)
class Ran:
    exit_code: int
    output: str


def compare(results: Path, *arguments: str) -> Ran:
    """Run the command; lines are joined, wherever the terminal broke them, and so are cells."""
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output), pytest.raises(SystemExit) as ended:
        main(["compare", *arguments, "--results", str(results)])
    assert isinstance(ended.value.code, int)
    return Ran(ended.value.code, " ".join(output.getvalue().replace("│", " ").split()))


def compared(results: Path, *studies: str) -> dict[str, Any]:
    """What the command writes for programs."""
    path = results / "compared.json"
    ran = compare(results, *studies, "--json", str(path))
    assert ran.exit_code == 0, ran.output
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Before and after Triton was replaced: everything 10 % faster, and another winner."""
    capacities = {0: 100.0, 1: 180.0, 2: 200.0, 3: 150.0}
    WholeStudy(
        tmp_path / "before", capacities, {2: (200.0, 200.0), 0: (100.0, 100.0)},
        machine=TRITON_A, pace=None,
    ).written()  # fmt: skip
    WholeStudy(
        tmp_path / "after", {0: 110.0, 1: 198.0, 2: 0.0, 3: 300.0},
        {3: (300.0, 300.0), 0: (110.0, 110.0)}, machine=TRITON_B, pace=None,
    ).written()  # fmt: skip
    return tmp_path


def test_the_best_and_the_baseline_of_each_stand_side_by_side(results: Path) -> None:
    before, after = compared(results, "before", "after")["studies"]
    assert (before["study"], after["study"]) == ("before", "after")
    [limit] = before["limits"].values()
    assert limit.keys() == {"percentile", "latency_ms"}
    space = read_study(results, "before").searched.search_space
    [fp32, _, int8, int8_twice] = [config.digest for config in configs(space)]
    of = {fp32: 0, int8: 2, int8_twice: 3}
    assert len(of) == 3
    assert before["best"]["capacity_per_second"] == pytest.approx(200.0)
    assert after["best"]["capacity_per_second"] == pytest.approx(300.0)
    assert (before["best"]["replicas"], after["best"]["replicas"]) == (3, 2)
    assert after["best"]["fleet_usd_per_hour"] == pytest.approx(0.72)
    assert before["best"]["latency_ms"] == {"p50": 30.0, "p95": 60.0, "p99": 72.0}
    assert before["best"]["capacity_ratio"] is None
    ratio = after["best"]["capacity_ratio"]
    assert ratio["value"] == pytest.approx(1.5)
    assert 1.3 < ratio["low"] < 1.5 < ratio["high"] < 1.7
    assert ratio["verdict"] == "apart"
    assert after["baseline"]["capacity_ratio"]["value"] == pytest.approx(1.1)
    assert after["baseline"]["description"] == before["baseline"]["description"]


def test_configurations_that_both_measured_are_matched_one_to_one(results: Path) -> None:
    [shared] = compared(results, "before", "after")["shared"]
    assert shared["study"] == "after"
    assert [round(c["capacity_ratio"]["value"], 3) for c in shared["configurations"]] == [
        2.0, 1.1, 1.1,
    ]  # fmt: skip
    assert shared["median_ratio"] == pytest.approx(1.1)
    assert shared["met_the_limits_in_one_alone"] == 1
    for each in shared["configurations"]:
        first, other = each["first_capacity_per_second"], each["capacity_per_second"]
        assert each["capacity_ratio"]["value"] == pytest.approx(other / first)
        assert each["capacity_ratio"]["verdict"] == "apart", "2 % each way, and 10 % between them"


def test_the_machine_is_told_by_its_differences_alone(results: Path) -> None:
    assert compared(results, "before", "after")["differences"] == {
        "machine": {"nvidia-pytriton": ["0.6.0", "0.7.0"]},
        "settings": {},
    }
    elsewhere = replace(MACHINE, gpus=("Tesla T4",), driver="580.1", packages=())
    WholeStudy(
        results / "t4", {0: 100.0}, machine=elsewhere,
        sections={"measurement": {"check_seconds": 3}}
    ).written()  # fmt: skip
    ran = compare(results, "before", "t4", "after")
    for said in (
        "GPUs none 1 x Tesla T4 none",
        "NVIDIA driver none 580.1 none",
        "nvidia-pytriton 0.6.0 - 0.7.0",
        "measurement.check_seconds 10.0 3.0 10.0",
        "t4 has not ended: `run` resumes it",
        "unconfirmed",
    ):
        assert said in ran.output
    assert "memory, GiB" not in ran.output


def test_another_triton_is_no_machine_alike(results: Path) -> None:
    ran = compare(results, "before", "after")
    assert "after serves 1.10 times what before does (median of 3 configurations" in ran.output
    assert "recorded as identical" not in ran.output


def test_what_a_study_took_over_is_not_matched_with_its_origin(results: Path) -> None:
    WholeStudy(results / "warm", {0: 100.0, 1: 180.0}, origin="before").written()
    ran = compare(results, "before", "warm")
    assert ran.exit_code == 0
    assert "before and warm have measured no configuration in common" in ran.output


def test_a_machine_that_changed_its_pace_makes_no_difference_of_as_much(tmp_path: Path) -> None:
    WholeStudy(tmp_path / "steady", {0: 100.0}, {0: (100.0, 100.0)}, pace=None).written()
    WholeStudy(tmp_path / "tired", {0: 110.0}, {0: (110.0, 110.0)}, pace=-0.2).written()
    found = compared(tmp_path, "steady", "tired")
    assert found["studies"][1]["best"]["capacity_ratio"]["verdict"] == "within the pace"
    ran = compare(tmp_path, "steady", "tired")
    assert "tired: machine performance drifted by up to -20% during the study" in ran.output
    assert "how much a machine differs from one day to the next is not in them" in ran.output
    assert "machines that are recorded as identical, yet one serves 1.10 times" in ran.output


def test_another_demand_and_price_are_allowed_and_counted_twice(results: Path) -> None:
    sections: Mapping[str, Mapping[str, Any]] = {
        "traffic": {"demand_per_second": 5000, "headroom": 0.2},
        "price": {"instance_type": "other", "usd_per_hour": 1.0, "as_of": "2026-02-03"},
    }
    WholeStudy(results / "much", {0: 250.0, 3: 300.0}, sections=sections).written()
    first, much = compared(results, "before", "much")["studies"]
    assert first["best_at_the_first_studys_demand"] is None
    own, recounted = much["best"], much["best_at_the_first_studys_demand"]
    assert own["replicas"] == 21
    assert own["fleet_usd_per_hour"] == pytest.approx(21.0)
    assert recounted["replicas"] == 2
    assert recounted["fleet_usd_per_hour"] == pytest.approx(2.0)
    assert recounted["usd_per_million_at_demand"] == pytest.approx(2.0 / 500 / 3600 * 1e6)
    ran = compare(results, "before", "much")
    assert "fleet, $ an hour $1.08 $21.00" in ran.output
    assert "fleet cost / first's - 19.44" in ran.output
    for said in (
        "Best, all at the demand of before (500 requests/s)", "5,000 requests/s, 20% headroom",
        "2026-02-03", "prices of more than one basis",
    ):  # fmt: skip
        assert said in ran.output
    assert "all at the demand of" not in compare(results, "before", "after").output


def test_what_cannot_be_compared_is_refused_with_every_difference(results: Path) -> None:
    WholeStudy(
        results / "other", {0: 100.0},
        sections={
            "limit": {"latency_ms": 50},
            "traffic": {"arrivals": "constant", "transport": {"protocol": "http"}},
        },
    ).written()  # fmt: skip
    longer = {"bert": {**CONTENT["models"]["bert"], "lengths": {"fixed": 64}}}
    WholeStudy(results / "longer", {0: 100.0}, sections={"models": longer}).written()
    ran = compare(results, "before", "other", "longer")
    assert ran.exit_code == 2
    assert "the workloads of the studies differ" in ran.output
    for said in (
        "limit.latency_ms: 100.0 in before, 50.0 in other",
        "traffic.arrivals: poisson in before, constant in other",
        "traffic.transport.protocol: grpc in before, http in other",
        "models.bert.lengths.fixed: 32 in before, 64 in longer",
        "python -m optimizer pareto STUDY",
    ):
        assert said in ran.output
    assert "pareto" not in compare(results, "before", "longer").output


def test_a_folder_of_another_host_is_told_from_a_study_of_the_same_name(
    results: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "host" / "before"
    WholeStudy(copied, {0: 100.0}, pace=None).written()
    found = compared(results, "before", str(copied))
    assert [study["study"] for study in found["studies"]] == ["before", str(copied)]


def test_a_study_in_which_nothing_met_the_limits_is_shown_as_such(results: Path) -> None:
    WholeStudy(results / "slow", {0: 0.0}, pace=None).written()
    ran = compare(results, "before", "slow")
    assert ran.exit_code == 0
    assert "slow: none of 1 trials met the limits" in ran.output
    assert compared(results, "slow", "before")["studies"][1]["best"]["capacity_ratio"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Missing argument"),
        (("before",), "compare needs two studies or more"),
        (("before", "before"), "named more than once"),
        (("before", "none"), "study 'none' not found"),
    ],
)
def test_mistakes_are_told_with_exit_code_2(
    results: Path, arguments: tuple[str, ...], said: str
) -> None:
    ran = compare(results, *arguments)
    assert ran.exit_code == 2
    assert said in ran.output
