"""What an instance type costs and does, by made-up measurements."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optimizer.errors import UsageError
from optimizer.fleet.instance_estimate import (
    METRICS,
    Observation,
    SourcedFigure,
    derived,
    estimate_extrapolated,
    estimate_measured,
)
from optimizer.fleet.price_list import ListedPrice
from optimizer.fleet.price_rules import PriceChoice, listed_price
from optimizer.fleet.recommendation import StudyObservations, recommend
from optimizer.machine.fingerprint import Machine
from optimizer.measurement.cost import Demand
from optimizer.study.decision import candidate_of
from tests.unit.hosts import A10G, LISTED, T4, price_of, space_on, use_of
from tests.unit.studies import DEMAND, PRICE, measured

G4, G4_4GPUS, G5 = (
    listed_price(LISTED, f"ml.{name}", PriceChoice())
    for name in ("g4dn.xlarge", "g4dn.12xlarge", "g5.xlarge")
)


def observation(
    machine: Machine = T4,
    capacity: float = 100.0,
    *,
    which: int = 0,
    busy_cores: float = 1.0,
    confirmed: bool = True,
    study: str = "t4",
) -> Observation:
    space = space_on(machine)
    candidate = candidate_of(space.config(space.at(which)), measured(capacity), PRICE, DEMAND)
    assert candidate is not None
    return Observation(
        study=study,
        machine=machine,
        candidate=candidate,
        confirmed=confirmed,
        latency_percentile=95.0,
        latency_ms=50.0,
        use=use_of(machine, busy_cores),
        gpu_memory_mib=15_360.0 * len(machine.gpus),
        setup_seconds=12.0,
    )


def test_a_figure_that_is_worked_out_is_as_sure_as_the_least_sure() -> None:
    price, sure, guess = (
        SourcedFigure(1.0, "price"),
        SourcedFigure(2.0, "confirmed"),
        SourcedFigure(3.0, "extrapolated"),
    )
    assert derived(4.0, price, sure) == SourcedFigure(4.0, "confirmed", worked_out=True)
    assert derived(4.0, guess, price, sure).basis == "extrapolated"


def test_the_metrics_of_a_whole_instance() -> None:
    offer = estimate_measured(observation(), G4.price, G4, DEMAND)
    assert offer.extrapolated is None
    expected = {
        "FleetCostPerHour": SourcedFigure(5 * 0.7364, "confirmed", True),
        "FleetCostPerMillion": SourcedFigure(5 * 0.7364 / 1.8, "confirmed", True),
        "InitialInstanceCount": SourcedFigure(5, "confirmed", True),
        "CostPerHour": SourcedFigure(0.7364, "price"),
        "CostPerInference": SourcedFigure(0.7364 / 360_000, "confirmed", True),
        "MaxInvocations": SourcedFigure(6000.0, "confirmed"),
        "ModelLatency": SourcedFigure(50.0, "confirmed"),
        "CpuUtilization": SourcedFigure(25.0, "confirmed"),
        "MemoryUtilization": SourcedFigure(25.0, "confirmed"),
        "GpuUtilization": SourcedFigure(90.0, "confirmed"),
        "GpuMemoryUtilization": SourcedFigure(20.0, "confirmed"),
        "GpuPower": SourcedFigure(65.0, "confirmed"),
        "ModelSetupTime": SourcedFigure(12.0, "measured"),
    }
    assert list(offer.metrics) == list(METRICS) == list(expected)
    for name, figure in expected.items():
        found = offer.metrics[name]
        assert found is not None
        assert (found.basis, found.worked_out) == (figure.basis, figure.worked_out), name
        assert found.value == pytest.approx(figure.value), name


def test_instances_are_counted_by_the_lower_bound_and_with_headroom() -> None:
    seen = observation()
    measurement = replace(seen.candidate.measurement, load_factor_low=0.18)
    seen = replace(seen, candidate=replace(seen.candidate, measurement=measurement))
    offer = estimate_measured(seen, G4.price, G4, Demand(500.0, headroom=0.1))
    assert offer.candidate.score.replicas == 7, "550 requests/s, 90 an instance"
    invocations = offer.metrics["MaxInvocations"]
    assert invocations is not None
    assert invocations.value == pytest.approx(6000)


def test_what_was_not_seen_is_no_figure() -> None:
    offer = estimate_measured(
        replace(observation(confirmed=False), use=None), G4.price, None, DEMAND
    )
    unseen = {name for name, figure in offer.metrics.items() if figure is None}
    assert unseen == {
        "CpuUtilization", "MemoryUtilization", "GpuUtilization", "GpuMemoryUtilization", "GpuPower",
    }  # fmt: skip
    assert offer.metrics["ModelLatency"] == SourcedFigure(50.0, "measured")


def test_a_gpu_that_does_not_tell_its_power_leaves_it_open() -> None:
    use = use_of(T4, 1.0)
    silent = replace(use, gpus=(replace(use.gpus[0], power_watts=None),))
    offer = estimate_measured(replace(observation(), use=silent), G4.price, G4, DEMAND)
    assert offer.metrics["GpuPower"] is None
    assert offer.metrics["GpuUtilization"] is not None


def test_all_gpus_of_an_instance_count_though_some_were_used() -> None:
    big = replace(T4, cores=48, memory_gib=186)
    offer = estimate_measured(observation(big), G4_4GPUS.price, G4_4GPUS, DEMAND)
    assert offer.extrapolated == "1 of 4 GPUs were used; certain only once all are loaded together"
    invocations = offer.metrics["MaxInvocations"]
    assert invocations is not None
    assert invocations.value == pytest.approx(24_000)
    assert invocations.basis == "extrapolated"
    assert offer.candidate.score.replicas == 2
    assert offer.fleet_usd_per_hour == pytest.approx(2 * 4.89), "the whole instance is charged"
    assert offer.metrics["CpuUtilization"] is None, "what else it does is not extrapolated"
    assert offer.metrics["CostPerHour"] == SourcedFigure(4.89, "price")
    assert offer.warnings == ()


def test_gpus_of_another_model_are_not_counted() -> None:
    offer = estimate_measured(observation(A10G), G4_4GPUS.price, G4_4GPUS, DEMAND)
    assert offer.extrapolated is None


def test_another_instance_type_serves_what_its_gpus_do() -> None:
    offer = estimate_extrapolated(observation(), G4_4GPUS, DEMAND)
    assert offer.extrapolated == "4 x NVIDIA T4, measured on 1 in study t4"
    assert offer.price == G4_4GPUS.price
    assert offer.candidate.measurement.capacity_per_second == pytest.approx(400.0)
    basis = {figure.basis for figure in offer.metrics.values() if figure is not None}
    assert basis == {"price", "extrapolated"}


def test_cores_that_cannot_feed_the_gpus_are_told() -> None:
    hungry = estimate_extrapolated(observation(busy_cores=13.0), G4_4GPUS, DEMAND)
    assert hungry.warnings == (
        "its 48 cores would have to do the work of 52.0: expect a lower capacity",
    )
    assert estimate_extrapolated(observation(busy_cores=11.0), G4_4GPUS, DEMAND).warnings == ()


def test_what_a_load_test_warned_of_stays_with_its_figures() -> None:
    seen = replace(observation(), warnings=("others took part",))
    assert estimate_measured(seen, G4.price, G4, DEMAND).warnings == ("others took part",)


def studied(machine: Machine, entry: ListedPrice, *seen: Observation) -> StudyObservations:
    return StudyObservations(seen[0].study, entry.price, machine, seen)


def test_the_cheapest_fleet_comes_first_with_the_best_configuration_of_each_study() -> None:
    slow, fast = observation(capacity=60), observation(capacity=120, which=1)
    other = observation(A10G, 260, study="a10g")
    found = recommend([studied(A10G, G5, other), studied(T4, G4, slow, fast)], [], LISTED, DEMAND)
    assert [offer.price.instance_type for offer in found.estimates] == [
        "ml.g5.xlarge",
        "ml.g4dn.xlarge",
    ]
    assert found.estimates[1].candidate.config == fast.candidate.config
    assert [offer.fleet_usd_per_hour for offer in found.estimates] == [
        pytest.approx(2 * 1.408), pytest.approx(5 * 0.7364),
    ]  # fmt: skip


def test_every_configuration_may_be_asked_for() -> None:
    seen = [observation(capacity=60), observation(capacity=120, which=1)]
    found = recommend([studied(T4, G4, *seen)], [], LISTED, DEMAND, every_configuration=True)
    assert [offer.candidate.score.replicas for offer in found.estimates] == [5, 9]


def test_of_equal_fleets_the_one_that_was_measured_is_recommended() -> None:
    cheap = replace(G4_4GPUS, price=replace(G4_4GPUS.price, usd_per_hour=4 * 0.7364))
    found = recommend([studied(T4, G4, observation(capacity=125))], [cheap], LISTED, DEMAND)
    assert [offer.extrapolated is None for offer in found.estimates] == [True, False]
    assert len({offer.fleet_usd_per_hour for offer in found.estimates}) == 1
    assert found.best_measured == found.estimates[0]


def test_the_study_with_as_many_cores_for_a_gpu_stands_for_another_type() -> None:
    wide = replace(T4, cores=12)
    twelve = observation(wide, 150, study="twelve cores")
    entry = listed_price(LISTED, "ml.g4dn.2xlarge", PriceChoice())
    both = [studied(T4, G4, observation()), studied(wide, entry, twelve)]
    found = recommend(both, [G4_4GPUS], LISTED, DEMAND)
    [elsewhere] = [o for o in found.estimates if o.price == G4_4GPUS.price]
    assert elsewhere.study == "twelve cores", "48 cores for 4 GPUs"


def test_a_gpu_that_nobody_measured_is_refused_with_what_was() -> None:
    with pytest.raises(UsageError) as caught:
        recommend([studied(T4, G4, observation())], [G5], LISTED, DEMAND)
    assert str(caught.value) == (
        "--instance-type ml.g5.xlarge: it has NVIDIA A10G, and only measurements on the same "
        "GPU can be extrapolated (measured: t4 Tesla T4)"
    )
    c5 = listed_price(LISTED, "ml.c5.xlarge", PriceChoice())
    with pytest.raises(UsageError, match="it has no GPU"):
        recommend([studied(T4, G4, observation())], [c5], LISTED, DEMAND)


def test_a_study_with_nothing_within_the_limits_is_named_with_its_reason() -> None:
    empty = StudyObservations("a10g", price_of("ml.g5.xlarge"), A10G, (), "all missed")
    twelve = listed_price(LISTED, "ml.g5.12xlarge", PriceChoice())
    found = recommend([studied(T4, G4, observation()), empty], [twelve], LISTED, DEMAND)
    assert len(found.estimates) == 1
    assert found.nothing == (
        ("a10g", "all missed"),
        ("ml.g5.12xlarge", "no study on NVIDIA A10G has anything within the limits"),
    )


def test_programs_get_every_figure_with_its_basis() -> None:
    found = recommend([studied(T4, G4, observation())], [G4_4GPUS], LISTED, DEMAND)
    data = found.to_json()
    measured_one, elsewhere = data["offers"]
    assert measured_one["metrics"]["MaxInvocations"] == {
        "value": pytest.approx(6000), "basis": "confirmed", "worked_out": False,
        "unit": "per minute",
    }  # fmt: skip
    assert elsewhere["metrics"]["GpuPower"] is None
    assert elsewhere["metrics"]["InitialInstanceCount"]["worked_out"]
    assert elsewhere["extrapolated"].startswith("4 x NVIDIA T4")
