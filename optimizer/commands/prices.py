"""Current prices, fetched from a cloud and kept in the user's own list."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optimizer.files.atomic import write_text
from optimizer.fleet.aws_prices import AwsPrices
from optimizer.fleet.price_list import (
    ListedPrice,
    PriceSource,
    merge_prices,
    own_price_list,
    price_list,
    read_prices,
    write_prices,
)

PRICE_SOURCES: Mapping[str, Callable[[], PriceSource]] = {
    "aws": AwsPrices,
}
"""Clouds whose prices can be fetched, by name."""


@dataclass(frozen=True)
class UpdatedPrices:
    """Prices that were fetched.

    Attributes:
        missing: instance types without a price in the region.
        path: the user's own list, which now has the prices.
    """

    prices: tuple[ListedPrice, ...]
    region: str
    missing: tuple[str, ...]
    path: Path


def update_prices(
    source_name: str, region: str | None, instance_types: Sequence[str]
) -> UpdatedPrices:
    """Fetch the prices of instance types, or of all listed types if none are given.

    Args:
        source_name: one of `PRICE_SOURCES`.
        region: None for the source's own default.

    Raises:
        RequirementError: without what the source needs, such as boto3, credentials or network.
        UsageError: when the user's list cannot be read.
        StorageError: when it cannot be written.
    """
    source, path = PRICE_SOURCES[source_name](), own_price_list()
    region = region or source.default_region
    wanted = tuple(dict.fromkeys(instance_types or (e.price.instance_type for e in price_list())))
    prices = tuple(source.current_prices(wanted, region))
    text = io.StringIO()
    write_prices(text, merge_prices(read_prices(path) if path.exists() else (), prices))
    write_text(path, text.getvalue())
    priced = {entry.price.instance_type for entry in prices}
    return UpdatedPrices(prices, region, tuple(n for n in wanted if n not in priced), path)
