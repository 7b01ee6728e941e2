"""Current prices from the AWS price list, of SageMaker's hosting instances and of EC2's.

The API serves all regions from us-east-1. It is free, but needs credentials.
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
"""The only one of EC2's reserved terms that is paid by the hour alone."""


class AwsPrices:
    """On-demand prices; of EC2's instances also those reserved for one year.

    Instance types are SageMaker's with the prefix "ml.", else EC2's.

    Args:
        client: of boto3, for "pricing"; made with the user's credentials where it is None.
    """

    default_region = "us-east-1"

    def __init__(self, client: Any = None) -> None:
        self._client = client

    def current_prices(self, instance_types: Sequence[str], region: str) -> Iterator[ListedPrice]:
        """Yield the prices of instance types, as `PriceSource` says."""
        client = self._client or _default_client()
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


def _default_client() -> Any:
    try:
        import boto3
    except ImportError as error:
        raise RequirementError(
            "the AWS price list needs boto3: pip install 'triton-cost-optimizer[aws]'"
        ) from error
    return boto3.client("pricing", region_name=_API_REGION)


def _products(client: Any, name: str, region: str) -> Iterator[Mapping[str, Any]]:
    hosting = name.startswith("ml.")
    filters = {"regionCode": region}
    if hosting:
        filters |= {"instanceName": name, "platoinstancetype": "Hosting"}
    else:
        filters |= {
            "instanceType": name,
            "operatingSystem": "Linux",
            "tenancy": "Shared",
            "preInstalledSw": "NA",
            "capacitystatus": "Used",
        }
    pages = client.get_paginator("get_products").paginate(
        ServiceCode="AmazonSageMaker" if hosting else "AmazonEC2",
        Filters=[
            {"Type": "TERM_MATCH", "Field": field, "Value": value}
            for field, value in filters.items()
        ],
    )
    for page in pages:
        for text in page["PriceList"]:
            yield json.loads(text)


def _prices(product: Mapping[str, Any], name: str, region: str) -> Iterator[ListedPrice]:
    vcpus = _vcpus(product["product"]["attributes"])
    for rate, kind in (("on-demand", "OnDemand"), ("reserved", "Reserved")):
        for term in product["terms"].get(kind, {}).values():
            attributes = term.get("termAttributes", {})
            if rate == "reserved" and any(attributes.get(k) != v for k, v in _RESERVED.items()):
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
                yield ListedPrice(price, vcpus)


def _vcpus(attributes: Mapping[str, str]) -> int | None:
    """Return the vCPUs from an attribute whose capitalisation differs between services."""
    text = {key.lower(): value for key, value in attributes.items()}.get("vcpu", "")
    return int(text) if text.isdigit() else None
