"""The price of a machine in a space file, and the prices of machines with other accelerators."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, model_validator

from optimizer.measurement.cost import OWNED, Price, Purchase
from optimizer.space_file.section import Positive, Section, wrong

_TYPE = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


def _day(value: object) -> object:
    """Return the text of a day, which YAML reads as a date."""
    return value.isoformat() if isinstance(value, datetime.date) else value


Day = Annotated[str, BeforeValidator(_day)]


class PurchaseSection(Section):
    """A machine that you own: its purchase price over its lifetime, and its power."""

    usd: Positive = Field(description="purchase price")
    lifetime_years: Positive = Field(4, description="years over which it is depreciated")
    watts: Positive = Field(description="power while it serves, cooling included")
    usd_per_kwh: Positive = Field(description="price of electricity")

    def to_value(self) -> Purchase:
        """Return the purchase."""
        return Purchase(self.usd, self.lifetime_years, self.watts, self.usd_per_kwh)


class PriceSection(Section):
    """The price of one machine, from the price list if neither price nor purchase is given."""

    instance_type: str = Field(
        description="name of the instance type; in the price list if no price is given here"
    )
    usd_per_hour: Positive | None = Field(None, description="price of the whole machine")
    purchase: PurchaseSection | None = Field(
        None, description="for a machine that you own, instead of usd_per_hour"
    )
    source: str | None = Field(
        None,
        description="source of the price, for the report; `example` marks an invented price",
    )
    as_of: Day | None = Field(None, description="date of the price")

    @model_validator(mode="after")
    def _priced(self, info: ValidationInfo) -> Self:
        prices: Mapping[str, Price] = (info.context or {}).get("prices", {})
        if self.usd_per_hour is not None and self.purchase is not None:
            raise wrong("purchase", "must not be given beside usd_per_hour", self.purchase.usd)
        given = self.usd_per_hour is not None or self.purchase is not None
        if not given and self.instance_type not in prices:
            rule = f"must be listed ({', '.join(sorted(prices))}) if usd_per_hour is not given"
            raise wrong("instance_type", rule, self.instance_type)
        return self

    def to_value(self, prices: Mapping[str, Price]) -> Price:
        """Return the price with its source."""
        as_of = self.as_of or "undated"
        if self.purchase is not None:
            owned = self.purchase.to_value()
            source = self.source or f"bought, over {owned.lifetime_years:g} years, and power"
            return Price(self.instance_type, owned.usd_per_hour, source, as_of, rate=OWNED)
        if self.usd_per_hour is None:
            return prices[self.instance_type]
        return Price(self.instance_type, self.usd_per_hour, self.source or "space file", as_of)


class AcceleratorPricesSection(Section):
    """The price of one machine with each type of accelerator, for a run on a Ray cluster."""

    by_accelerator: Annotated[dict[_TYPE, PriceSection], Field(min_length=1)] = Field(
        description="prices by the type of the accelerator as Ray names it, such as T4"
    )


def _kind_of_price(value: object) -> str:
    """Return the member of the union that is meant, so that errors are about it alone."""
    several = isinstance(value, Mapping) and "by_accelerator" in value
    return "several" if several or isinstance(value, AcceleratorPricesSection) else "one"


PriceChoice = Annotated[
    Annotated[PriceSection, Tag("one")] | Annotated[AcceleratorPricesSection, Tag("several")],
    Discriminator(_kind_of_price),
]
