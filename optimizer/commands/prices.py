"""Today's prices, asked of the AWS price list and kept in the user's own list."""

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
    """What was found.

    Attributes:
        missing: instance types that have no price in the region.
        path: the user's own list, which has what was found now.
    """

    found: tuple[ListedPrice, ...]
    missing: tuple[str, ...]
    path: Path


def update_prices(region: str, instance_types: Sequence[str]) -> UpdatedPrices:
    """Ask for these instance types, for all that are listed where there are none.

    Raises:
        RequirementError: without boto3, credentials or network.
        UsageError: when the user's list cannot be read.
        StorageError: when it cannot be written.
    """
    path = own_price_list()
    wanted = tuple(dict.fromkeys(instance_types or (e.price.instance_type for e in price_list())))
    found = tuple(todays_prices(aws_client(), wanted, region))
    text = io.StringIO()
    write_prices(text, merge_prices(read_prices(path) if path.exists() else (), found))
    write_text(path, text.getvalue())
    there = {entry.price.instance_type for entry in found}
    return UpdatedPrices(found, tuple(name for name in wanted if name not in there), path)
