"""What a person sees of a recommendation."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from rich.console import Console

from optimizer.cli import main
from optimizer.cli.terminal import print_parts
from optimizer.fleet.price_rules import PriceChoice, listed_price
from optimizer.fleet.recommendation import Recommendation, StudyObservations, recommend
from optimizer.measurement.cost import Demand
from optimizer.report.recommendation_tables import recommendation_parts
from tests.unit.hosts import A10G, LISTED, T4, host, price_of
from tests.unit.test_instance_estimate import observation

GOLDEN = Path(__file__).parents[1] / "golden"
DEMAND = Demand(500.0, headroom=0.1)


def shown(found: Recommendation, *, by_users: bool = False) -> str:
    file = io.StringIO()
    parts = recommendation_parts(found, date(2026, 1, 1), by_users=by_users)
    print_parts(Console(file=file, width=100), parts)
    return file.getvalue()


def studied(*, capacity: float = 100.0, confirmed: bool = True) -> StudyObservations:
    seen = observation(capacity=capacity, confirmed=confirmed, busy_cores=1.5)
    # Recent whenever the test is run.
    price = replace(price_of("ml.g4dn.xlarge"), as_of="2999-01")
    return StudyObservations("t4", price, T4, (seen,))


def test_every_figure_is_marked_with_what_it_rests_on() -> None:
    twelve = listed_price(LISTED, "ml.g4dn.12xlarge", PriceChoice())
    twelve = replace(twelve, vcpus=5, price=replace(twelve.price, as_of="2999-01"))
    a10g = observation(A10G, 190, confirmed=False, study="a10g")
    a10g = replace(a10g, use=None)
    price = replace(price_of("ml.g5.xlarge"), as_of="2999-01")
    empty = StudyObservations("l4", price, T4, (), "all 12 trials missed the limit")
    both = [studied(), StudyObservations("a10g", price, A10G, (a10g,)), empty]
    found = recommend(both, [twelve], LISTED, DEMAND)
    found = replace(found, accepted=("prices of more than one basis: one A, another B",))
    assert shown(found) == (GOLDEN / "recommended.txt").read_text()


def test_five_offers_are_in_tables_that_fit() -> None:
    every = [replace(studied(capacity=100.0 + n), study=f"t4-{n}") for n in range(5)]
    text = shown(recommend(every, [], LISTED, DEMAND))
    assert text.count("Instance types for 500 requests/s, 10% headroom") == 2
    assert all(f"{rate} c" in text for rate in ("6,240", "6,180", "6,120", "6,060", "6,000"))


def test_nothing_is_extrapolated_unsaid() -> None:
    cheap = listed_price(LISTED, "ml.g4dn.12xlarge", PriceChoice())
    cheap = replace(cheap, price=replace(cheap.price, usd_per_hour=1.0))
    text = shown(recommend([studied()], [cheap], LISTED, DEMAND))
    assert "Recommended: 2 x ml.g4dn.12xlarge" in text
    assert "The recommendation is extrapolated; the best measured one: 6 x ml.g4dn.xlarge" in text


def test_what_users_have_shown_says_over_what_time() -> None:
    found = recommend([studied(confirmed=False)], [], LISTED, DEMAND)
    assert "means over the whole load" in shown(found, by_users=True)
    assert "means over the whole load" not in shown(found)


def run(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        main(["recommend", *arguments])
    return caught.value.code


@pytest.mark.usefixtures("fast_disk")
def test_the_exit_code_says_whether_anything_met_the_limits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    price = price_of("ml.g5.xlarge")
    host(tmp_path / "found", price, A10G, [100.0])
    host(tmp_path / "empty", price, A10G, [])
    results = ["--results", str(tmp_path)]
    assert run("found", "empty", *results, "--demand", "700", "--rate", "on-demand") == 0
    output = capsys.readouterr().out
    assert "Recommended: 7 x ml.g5.xlarge" in output
    assert "empty: nothing within the limits: nothing was measured yet" in output
    assert run("empty", *results) == 1
    assert run("found", *results, "--trials", "3") == 2
    assert "--trials and --timeout are options of a --search" in capsys.readouterr().err
    assert run("nowhere", *results) == 2
    assert "study 'nowhere' not found" in capsys.readouterr().err
