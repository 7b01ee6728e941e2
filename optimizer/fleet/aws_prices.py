"""Today's prices by the AWS price list: of SageMaker's hosting instances, and of EC2's.

The price list's own API, in us-east-1 for all regions; it costs nothing, but needs credentials.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optimizer.errors import RequirementError
from optimizer.fleet.price_list import ListedPrice
from optimizer.measurement.cost import Price

_API_REGION = "us-east-1"
_BASIS = "AWS price list"

_RESERVED = {"LeaseContractLength": "1yr", "PurchaseOption": "No Upfront"}
"""Of EC2's reserved instances, the one that can be compared by the hour."""


def aws_client() -> Any:
    """A client of the price list. Raises RequirementError without boto3."""
    try:
        import boto3
    except ImportError as error:
        raise RequirementError(
            "prices are asked for with boto3: pip install 'triton-cost-optimizer[aws]'"
        ) from error
    return boto3.client("pricing", region_name=_API_REGION)


def todays_prices(client: Any, instance_types: Sequence[str], region: str) -> Iterator[ListedPrice]:
    """On-demand prices of these types in a region; of EC2's also those reserved for a year.

    Args:
        client: see `aws_client`.
        instance_types: "ml." in front for SageMaker's hosting, EC2's otherwise.

    Raises:
        RequirementError: without credentials or network.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        for name in instance_types:
            for product in _products(client, name, region):
                yield from _prices(product, name, region)
    except (BotoCoreError, ClientError) as error:
        raise RequirementError(
            f"the AWS price list did not answer ({error}): set up credentials that may call "
            "pricing:GetProducts, or put prices into your own list by hand"
        ) from error


def _products(client: Any, name: str, region: str) -> Iterator[Mapping[str, Any]]:
    hosted = name.startswith("ml.")
    wanted = {"regionCode": region}
    if hosted:
        wanted |= {"instanceName": name, "platoinstancetype": "Hosting"}
    else:
        wanted |= {
            "instanceType": name,
            "operatingSystem": "Linux",
            "tenancy": "Shared",
            "preInstalledSw": "NA",
            "capacitystatus": "Used",
        }
    pages = client.get_paginator("get_products").paginate(
        ServiceCode="AmazonSageMaker" if hosted else "AmazonEC2",
        Filters=[
            {"Type": "TERM_MATCH", "Field": field, "Value": value}
            for field, value in wanted.items()
        ],
    )
    for page in pages:
        for text in page["PriceList"]:
            yield json.loads(text)


def _prices(product: Mapping[str, Any], name: str, region: str) -> Iterator[ListedPrice]:
    """The hourly terms of a product."""
    attributes = product["product"]["attributes"]
    for rate, terms in (("on-demand", "OnDemand"), ("reserved", "Reserved")):
        for term in product["terms"].get(terms, {}).values():
            chosen = term.get("termAttributes", {})
            if rate == "reserved" and any(chosen.get(k) != v for k, v in _RESERVED.items()):
                continue
            for dimension in term["priceDimensions"].values():
                usd = float(dimension["pricePerUnit"].get("USD", 0))
                if dimension["unit"] not in ("Hrs", "hrs", "Hours") or usd == 0:
                    continue
                price = Price(
                    instance_type=name,
                    usd_per_hour=usd,
                    source=f"{_BASIS}, {region}",
                    as_of=term["effectiveDate"][:10],
                    region=region,
                    rate=rate,
                )
                yield ListedPrice(price, _number(attributes, "vcpu"))


def _number(attributes: Mapping[str, str], name: str) -> int | None:
    """Of an attribute, whose name is spelt in several ways."""
    found = {key.lower(): value for key, value in attributes.items()}.get(name, "")
    return int(found) if found.isdigit() else None
