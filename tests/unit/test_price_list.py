from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from click.testing import CliRunner

from optimizer.cli import commands
from optimizer.commands.prices import PRICE_SOURCES
from optimizer.errors import RequirementError, UsageError
from optimizer.files.shipped import shipped
from optimizer.fleet.aws_prices import AwsPrices
from optimizer.fleet.price_list import (
    merge_prices,
    price_list,
    price_warning,
    read_prices,
    shipped_prices,
    usual_prices,
)
from optimizer.fleet.price_rules import hardware_mismatch
from optimizer.measurement.cost import Price, Purchase
from optimizer.space_file.reader import load_space
from tests.unit.studies import HARDWARE, MACHINE

HEAD = "instance_type,usd_per_hour,region,as_of,basis,rate"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user's own list would be."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "triton-cost-optimizer" / "prices.csv"


def write(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([HEAD, *rows]) + "\n")
    return path


def test_the_users_own_prices_go_before_those_that_ship(own: Path) -> None:
    before = usual_prices(price_list())
    assert before == shipped_prices()
    write(
        own, "ml.g4dn.xlarge,0.5,us-east-1,2026-11-01,our contract,", "mine,2,here,2026-10-01,me,"
    )
    after = usual_prices(price_list())
    assert after["ml.g4dn.xlarge"].usd_per_hour == 0.5
    assert after["ml.g4dn.xlarge"].source == "our contract, us-east-1"
    assert after["mine"].usd_per_hour == 2
    assert after["ml.g5.xlarge"] == before["ml.g5.xlarge"]


def test_spot_and_reserved_prices_stand_beside_the_usual_one(tmp_path: Path) -> None:
    listed = read_prices(
        write(
            tmp_path / "list.csv",
            "g5.xlarge,1.0,us-east-1,2026-01-01,x,",
            "g5.xlarge,0.4,us-east-1,2026-01-01,x,spot",
            "g5.xlarge,0.6,us-east-1,2026-01-01,x,reserved",
            "g5.xlarge,1.2,eu-west-1,2025-01-01,x,on-demand",
        )
    )
    assert [entry.price.rate for entry in listed] == ["on-demand", "spot", "reserved", "on-demand"]
    assert usual_prices(listed)["g5.xlarge"].usd_per_hour == 1.0, "the latest on-demand price"
    assert merge_prices(listed, listed[1:2]) == listed


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            "a,x,us-east-1,2026,x,",
            "line 2: usd_per_hour must be a number from 0 to 1e+06, got 'x'",
        ),
        ("a,0,us-east-1,2026,x,", "line 2: usd_per_hour must be above 0"),
        ("a,-1,us-east-1,2026,x,", "usd_per_hour must be a number from 0 to 1e+06, got '-1'"),
        ("a,inf,us-east-1,2026,x,", "usd_per_hour must be a number from 0 to 1e+06, got 'inf'"),
    ],
)
def test_mistakes_in_a_list_name_file_line_rule_and_value(
    tmp_path: Path, row: str, said: str
) -> None:
    path = write(tmp_path / "list.csv", row)
    with pytest.raises(UsageError) as refused:
        read_prices(path)
    assert said in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_list_without_its_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="must have the columns instance_type, usd_per_hour"):
        read_prices(tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("as_of", "said"),
    [
        ("2026-1-1-1", "no date"),
        ("99999999999999-1-1", "no date"),
        ("2026-09-01", None),
        ("2025-12", None),
        ("2022-10", "2022-10"),
        ("undated", "no date"),
    ],
)
def test_a_price_that_is_older_than_a_year_or_undated_is_said(as_of: str, said: str | None) -> None:
    warning = price_warning(Price("x", 1.0, "s", as_of), date(2026, 11, 25))
    assert (warning is None) == (said is None)
    assert said is None or said in (warning or "")


def test_a_machine_that_is_owned_costs_its_depreciation_and_its_power() -> None:
    owned = Purchase(usd=8766.0, lifetime_years=4, watts=500, usd_per_kwh=0.2)
    assert owned.usd_per_hour == pytest.approx(0.25 + 0.1)


def product(name: str, **terms: Any) -> str:
    attributes = {"instanceName": name, "vCpu": "4"}
    return json.dumps({"product": {"attributes": attributes}, "terms": terms})


def term(usd: str, unit: str = "Hrs", **chosen: str) -> dict[str, Any]:
    return {
        "effectiveDate": "2026-11-01T00:00:00Z",
        "priceDimensions": {"d": {"unit": unit, "pricePerUnit": {"USD": usd}}},
        "termAttributes": chosen,
    }


@pytest.fixture
def aws() -> Iterator[tuple[Any, Stubber]]:
    """A client that answers as it is told; what it is asked is checked by botocore's own model."""
    client = boto3.client(
        "pricing", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    with Stubber(client) as stubber:
        yield client, stubber


def test_prices_of_hosting_are_asked_for_by_instance_name(aws: tuple[Any, Stubber]) -> None:
    client, stubber = aws
    filters = {
        "regionCode": "eu-west-1",
        "instanceName": "ml.g5.xlarge",
        "platoinstancetype": "Hosting",
    }
    stubber.add_response(
        "get_products",
        {"PriceList": [product("ml.g5.xlarge", OnDemand={"t": term("1.57")})]},
        {
            "ServiceCode": "AmazonSageMaker",
            "Filters": [{"Type": "TERM_MATCH", "Field": f, "Value": v} for f, v in filters.items()],
        },
    )
    [found] = AwsPrices(client).current_prices(["ml.g5.xlarge"], "eu-west-1")
    assert found.price == Price(
        "ml.g5.xlarge", 1.57, "AWS price list, eu-west-1", "2026-11-01", "eu-west-1"
    )
    assert found.vcpus == 4


def test_ec2_has_a_reserved_price_too(aws: tuple[Any, Stubber]) -> None:
    client, stubber = aws
    reserved = {
        "a": term("0.6", LeaseContractLength="1yr", PurchaseOption="No Upfront"),
        "b": term("0.3", LeaseContractLength="3yr", PurchaseOption="No Upfront"),
        "c": term("4000", "Quantity", LeaseContractLength="1yr", PurchaseOption="All Upfront"),
    }
    listed = product("g5.xlarge", OnDemand={"t": term("1.0")}, Reserved=reserved)
    stubber.add_response("get_products", {"PriceList": [listed]})
    found = list(AwsPrices(client).current_prices(["g5.xlarge"], "us-east-1"))
    assert [(e.price.rate, e.price.usd_per_hour) for e in found] == [
        ("on-demand", 1.0),
        ("reserved", 0.6),
    ]


def test_without_credentials_the_remedy_is_named(aws: tuple[Any, Stubber]) -> None:
    client, stubber = aws
    stubber.add_client_error("get_products", "AccessDeniedException")
    with pytest.raises(RequirementError, match="pricing:GetProducts"):
        list(AwsPrices(client).current_prices(["ml.g5.xlarge"], "us-east-1"))


def test_prices_lists_all_with_rate_region_and_date(own: Path) -> None:
    write(own, "mine,2,here,2022-01-01,our contract,spot")
    ran = CliRunner().invoke(commands, ["prices"], env={"COLUMNS": "160"})
    assert ran.exit_code == 0, ran.output
    assert "ml.g4dn.12xlarge" in ran.output
    assert "our contract, here" in ran.output
    assert "more than a year old" in ran.output
    assert f"your own list: {own}" in ran.output


def test_update_keeps_todays_prices_in_the_own_list(
    own: Path, aws: tuple[Any, Stubber], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, stubber = aws
    monkeypatch.setitem(PRICE_SOURCES, "aws", lambda: AwsPrices(client))
    write(own, "mine,2,here,2026-10-01,our contract,")
    listed = product("ml.g4dn.xlarge", OnDemand={"t": term("0.8")})
    stubber.add_response("get_products", {"PriceList": [listed]})
    arguments = ["prices", "update", "--type", "ml.g4dn.xlarge"]
    ran = CliRunner().invoke(commands, arguments, env={"COLUMNS": "160"})
    assert ran.exit_code == 0, ran.output
    assert {e.price.instance_type for e in read_prices(own)} == {"mine", "ml.g4dn.xlarge"}
    assert usual_prices(price_list())["ml.g4dn.xlarge"].usd_per_hour == 0.8


def test_a_price_that_init_has_written_is_an_example_until_it_is_replaced(tmp_path: Path) -> None:
    template = shipped("space_template.yaml").read_text()
    (tmp_path / "space.yaml").write_text(template)
    price = load_space(tmp_path / "space.yaml", {}, HARDWARE).price
    warning = price_warning(price, date(2026, 11, 25))
    assert warning is not None
    assert "the price of my-machine, $0.5 per hour, is an example" in warning
    own = template.replace("source: example}", "source: our contract, as_of: 2026-11-01}")
    (tmp_path / "space.yaml").write_text(own)
    own_price = load_space(tmp_path / "space.yaml", {}, HARDWARE).price
    assert price_warning(own_price, date(2026, 11, 25)) is None


def test_the_price_of_the_quickstart_is_an_example_that_contradicts_no_machine() -> None:
    path = shipped("search_spaces") / "quickstart.yaml"
    price = load_space(path, {}, HARDWARE).price
    assert price.is_example
    assert hardware_mismatch(price, MACHINE, price_list()) is None
