"""Update the user's own price list from the AWS price list."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optimizer.files.atomic import write_text
from optimizer.fleet.aws_prices import aws_client, todays_prices
from optimizer.fleet.price_list import (
    ListedPrice,
    merge_prices,
    own_price_list,
    price_list,
    read_prices,
    write_prices,
)


@dataclass(frozen=True)
class UpdatedPrices:
    """The updated prices.

    Attributes:
        missing: instance types that have no price in the region.
        path: the user's own list, which has the updated prices.
    """

    prices: tuple[ListedPrice, ...]
    missing: tuple[str, ...]
    path: Path


def update_prices(region: str, instance_types: Sequence[str]) -> UpdatedPrices:
    """Update the prices of these instance types, by default of all listed ones.

    Raises:
        RequirementError: without boto3, credentials or network.
        UsageError: when the user's list cannot be read.
        StorageError: when it cannot be written.
    """
    path = own_price_list()
    listed = (entry.price.instance_type for entry in price_list())
    types = tuple(dict.fromkeys(instance_types or listed))
    prices = tuple(todays_prices(aws_client(), types, region))
    text = io.StringIO()
    write_prices(text, merge_prices(read_prices(path) if path.exists() else (), prices))
    write_text(path, text.getvalue())
    priced = {entry.price.instance_type for entry in prices}
    return UpdatedPrices(prices, tuple(name for name in types if name not in priced), path)
