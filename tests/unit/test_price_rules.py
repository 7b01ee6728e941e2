from __future__ import annotations

from dataclasses import replace

import pytest

from optimizer.errors import UsageError
from optimizer.files.shipped import shipped
from optimizer.fleet.price_list import ListedPrice, read_prices
from optimizer.fleet.price_rules import (
    PriceChoice,
    hardware_differences,
    listed_instance,
    listed_price,
    price_mismatch,
    prices_for,
    same_gpu,
)
from tests.unit.studies import MACHINE

USUAL = PriceChoice()
T4 = replace(MACHINE, cores=4, memory_gib=16, gpus=("Tesla T4",), driver="580.1")
A10G = replace(T4, gpus=("NVIDIA A10G",))
LISTED = read_prices(shipped("prices.csv"))


def entry(name: str) -> ListedPrice:
    return listed_price(LISTED, name, USUAL)


G4, G5, G6 = (entry(f"ml.{family}.xlarge") for family in ("g4dn", "g5", "g6"))


def test_a_machine_that_is_what_its_price_is_for_contradicts_nothing() -> None:
    assert list(hardware_differences(G4, T4)) == []
    assert list(hardware_differences(G5, A10G)) == []
    assert (
        list(hardware_differences(entry("ml.c5.xlarge"), replace(T4, memory_gib=8, gpus=()))) == []
    )
    several = entry("ml.g4dn.12xlarge")
    assert list(hardware_differences(several, replace(T4, cores=48, memory_gib=186))) == []


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (replace(T4, cores=8), "ml.g4dn.xlarge has 4 vCPUs, the machine 8 cores"),
        (replace(T4, gpus=("Tesla T4",) * 2), "ml.g4dn.xlarge has 1 GPUs, the machine 2"),
        (A10G, "ml.g4dn.xlarge has NVIDIA T4, the machine NVIDIA A10G"),
        (replace(T4, memory_gib=31), "ml.g4dn.xlarge has 16 GB of memory, the machine 31 GiB"),
    ],
)
def test_what_contradicts_is_named(machine: object, said: str) -> None:
    assert list(hardware_differences(G4, machine)) == [said]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("listed", "driver", "same"),
    [
        ("NVIDIA T4", "Tesla T4", True),
        ("NVIDIA H100", "NVIDIA H100 80GB HBM3", True),
        ("NVIDIA A100", "NVIDIA A100-SXM4-40GB", True),
        ("NVIDIA L40S", "NVIDIA L4", False),
        ("NVIDIA L4", "NVIDIA L40S", False),
        ("NVIDIA A10G", "NVIDIA A10", False),
    ],
)
def test_lists_and_drivers_name_gpus_in_their_own_ways(
    listed: str, driver: str, same: bool
) -> None:
    assert same_gpu(listed, driver) == same


def test_prices_of_one_kind_may_be_compared() -> None:
    assert price_mismatch([G4.price, entry("ml.g4dn.2xlarge").price]) is None
    assert price_mismatch([]) is None


def test_what_prices_differ_in_is_named() -> None:
    assert price_mismatch([G5.price, G6.price]) == (
        "prices of more than one region: ml.g5.xlarge us-east-1, ml.g6.xlarge us-west-2"
    )
    assert price_mismatch([G4.price, G5.price]) == (
        "prices of more than one basis: ml.g4dn.xlarge published benchmark, "
        "ml.g5.xlarge price list API copy"
    )
    abroad = replace(G5.price, region="eu-west-1", source="price list API copy, eu-west-1")
    assert price_mismatch([G5.price, abroad]) == (
        "prices of more than one region: ml.g5.xlarge eu-west-1, ml.g5.xlarge us-east-1"
    )
    spot = replace(G5.price, instance_type="other", rate="spot")
    assert price_mismatch([G5.price, spot]) == (
        "prices of more than one rate: ml.g5.xlarge on-demand, other spot"
    )


def test_the_latest_price_of_what_is_meant() -> None:
    price = G5.price
    later = ListedPrice(replace(price, region="eu-west-1", as_of="2026-10-01", usd_per_hour=1.6))
    spot = ListedPrice(replace(price, rate="spot", usd_per_hour=0.5))
    listed = (later, G5, spot)
    assert listed_price(listed, "ml.g5.xlarge", USUAL) == later
    assert listed_price(listed, "ml.g5.xlarge", PriceChoice(region="us-east-1")) == G5
    assert listed_price(listed, "ml.g5.xlarge", PriceChoice(rate="spot")) == spot
    with pytest.raises(UsageError) as caught:
        listed_price(listed, "ml.g5.xlarge", PriceChoice("spot", "eu-west-1"))
    assert str(caught.value).startswith(
        "ml.g5.xlarge: no spot price in eu-west-1 is listed (listed: on-demand in eu-west-1, "
        "on-demand in us-east-1, spot in us-east-1)"
    )


def test_each_machine_is_charged_what_its_study_was_unless_another_price_is_asked_for() -> None:
    mine = replace(G4.price, usd_per_hour=0.5, source="space file", region="")
    assert prices_for([(mine, A10G)], USUAL, LISTED, ()) == (mine,), "nothing is known of it"
    assert prices_for([(mine, T4)], PriceChoice("on-demand"), LISTED, ()) == (G4.price,)


def test_prices_of_another_machine_are_refused_unless_accepted() -> None:
    with pytest.raises(UsageError, match=r"NVIDIA T4, the machine NVIDIA A10G.*--accept contr"):
        prices_for([(G4.price, A10G)], USUAL, LISTED, ())
    assert prices_for([(G4.price, A10G)], USUAL, LISTED, ["contradictions"]) == (G4.price,)


def test_a_price_that_is_listed_elsewhere_is_checked_by_its_instance_type() -> None:
    other = replace(G4.price, usd_per_hour=0.8, region="eu-west-1")
    with pytest.raises(UsageError, match="NVIDIA T4, the machine NVIDIA A10G"):
        prices_for([(other, A10G)], USUAL, LISTED, ())
    assert prices_for([(other, T4)], USUAL, LISTED, ()) == (other,)


def test_what_an_instance_has_is_told_by_any_of_its_prices() -> None:
    bare = ListedPrice(replace(G5.price, as_of="2027-01-01"))
    assert listed_instance((bare, G5), "ml.g5.xlarge") == G5
    assert listed_instance((bare,), "ml.g5.xlarge") is None


def test_prices_that_cannot_be_compared_are_refused_unless_accepted() -> None:
    machines = [(G4.price, T4), (G5.price, A10G)]
    with pytest.raises(UsageError, match=r"more than one basis.*--accept mixed-prices"):
        prices_for(machines, USUAL, LISTED, ())
    assert prices_for(machines, USUAL, LISTED, ["mixed-prices"]) == (G4.price, G5.price)
