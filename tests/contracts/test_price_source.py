"""What holds for every source of current prices."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import date
from pathlib import Path

import boto3
import pytest
from botocore.stub import Stubber

from optimizer.fleet.aws_prices import AwsPrices
from optimizer.fleet.price_list import PriceSource, price_warning, read_prices, write_prices
from tests.unit.test_price_list import product, term

KNOWN, UNKNOWN = "g5.xlarge", "no-such-type"


def aws(region: str) -> PriceSource:
    """The AWS price list, whose replies are recorded, for `KNOWN` and then `UNKNOWN`."""
    client = boto3.client(
        "pricing", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    stubber = Stubber(client)
    terms = {"OnDemand": {"t": term("1.006")}, "Reserved": {}}
    for found in ([product(KNOWN, **terms)], []):
        stubber.add_response("get_products", {"PriceList": found})
    stubber.activate()
    del region  # the replies are the same in every region
    return AwsPrices(client)


SOURCES: dict[str, Callable[[str], PriceSource]] = {"aws": aws}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_prices_are_of_the_types_and_the_region_that_are_asked_for(
    name: str, tmp_path: Path
) -> None:
    source = SOURCES[name]("elsewhere-1")
    assert source.default_region
    prices = list(source.current_prices([KNOWN, UNKNOWN], "elsewhere-1"))
    assert {entry.price.instance_type for entry in prices} == {KNOWN}
    assert {entry.price.region for entry in prices} == {"elsewhere-1"}
    assert len({entry.key for entry in prices}) == len(prices)
    for entry in prices:
        assert entry.price.usd_per_hour > 0
        assert price_warning(entry.price, date.fromisoformat(entry.price.as_of)) is None
    text = io.StringIO()
    write_prices(text, prices)
    (tmp_path / "prices.csv").write_text(text.getvalue())
    assert read_prices(tmp_path / "prices.csv") == tuple(prices)
