"""Rules for prices: which are comparable, and which may be charged for a machine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from optimizer.errors import UsageError
from optimizer.fleet.price_list import ListedPrice
from optimizer.measurement.cost import ON_DEMAND, Price

if TYPE_CHECKING:
    # Every command has the options of prices; the libraries that read a machine take a while.
    from optimizer.machine.fingerprint import Machine

_MEMORY_TOLERANCE = 0.15
"""Share of the listed memory that firmware, kernel and rounding may take."""


@dataclass(frozen=True)
class PriceChoice:
    """The rate and region of listed prices to use; None for the default."""

    rate: str | None = None
    region: str | None = None

    @property
    def chosen(self) -> bool:
        """Whether rate or region differ from the default."""
        return self.rate is not None or self.region is not None


Accepted = Literal["contradictions", "mixed-prices"]
"""Mismatches that are refused unless the user accepts them."""


def prices_for(
    machines: Sequence[tuple[Price, Machine]],
    choice: PriceChoice,
    listed: Sequence[ListedPrice],
    accepted: Collection[Accepted],
) -> tuple[Price, ...]:
    """Return the price that each machine is charged, in their order.

    Args:
        machines: each with the price of its study.

    Raises:
        UsageError: for a price of different hardware, or prices that are not comparable, unless
            that was accepted.
    """
    charged = tuple(
        listed_price(listed, price.instance_type, choice).price if choice.chosen else price
        for price, _ in machines
    )
    for price, (_, machine) in zip(charged, machines, strict=True):
        mismatch = hardware_mismatch(price, machine, listed)
        if mismatch is not None and "contradictions" not in accepted:
            raise UsageError(
                f"price: {mismatch}. The price is for different hardware: set price.instance_type, "
                "or pass --accept contradictions"
            )
    refuse_mixed_prices(charged, accepted)
    return charged


def hardware_mismatch(price: Price, machine: Machine, listed: Sequence[ListedPrice]) -> str | None:
    """Return how a machine differs from the hardware of its price; None if it does not.

    The hardware of a price that was given by hand is unknown. A price with a region was listed on
    the machine of its study, perhaps in another list.
    """
    entries = [entry for entry in listed if entry.price.instance_type == price.instance_type]
    same_price = [entry for entry in entries if entry.price == price]
    candidates = [*same_price, *(entries if price.region else ())]
    if not candidates:
        return None
    return "; ".join(hardware_differences(candidates[0], machine)) or None


def refuse_mixed_prices(prices: Sequence[Price], accepted: Collection[Accepted]) -> None:
    """Raise UsageError for prices that are not comparable, unless that was accepted."""
    if "mixed-prices" not in accepted and (mismatch := price_mismatch(prices)) is not None:
        raise UsageError(
            f"{mismatch}; choose with --rate and --region, or pass --accept mixed-prices"
        )


def listed_price(
    listed: Sequence[ListedPrice], instance_type: str, choice: PriceChoice
) -> ListedPrice:
    """Return the latest price of an instance type with the chosen rate and region.

    Raises:
        UsageError: where there is none, naming those that there are.
    """
    entries = [entry for entry in listed if entry.price.instance_type == instance_type]
    rate = choice.rate or ON_DEMAND
    matching = [
        entry
        for entry in entries
        if entry.price.rate == rate and choice.region in (None, entry.price.region)
    ]
    if not matching:
        where = f" in {choice.region}" if choice.region is not None else ""
        others = ", ".join(f"{e.price.rate} in {e.price.region}" for e in entries)
        raise UsageError(
            f"{instance_type}: no {rate} price{where} is listed "
            f"(listed: {others or 'none of that type'}); fetch one with "
            "`python -m optimizer prices update`, or put one into your own list"
        )
    return max(matching, key=lambda entry: entry.price.as_of)


def listed_instance(listed: Sequence[ListedPrice], instance_type: str) -> ListedPrice | None:
    """Return the latest entry of an instance type that lists its GPUs, if any."""
    entries = [e for e in listed if e.price.instance_type == instance_type and e.gpus is not None]
    return max(entries, key=lambda entry: entry.price.as_of, default=None)


def price_mismatch(prices: Iterable[Price]) -> str | None:
    """Return the first difference that makes prices incomparable; None without one."""
    kinds: Sequence[tuple[str, Callable[[Price], str]]] = (
        ("region", lambda price: price.region),
        ("rate", lambda price: price.rate),
        ("basis", lambda price: price.basis),
    )
    compared = list(prices)
    for name, kind in kinds:
        values = sorted({(price.instance_type, kind(price)) for price in compared})
        if len({value for _, value in values}) > 1:
            text = ", ".join(f"{instance} {value or 'unknown'}" for instance, value in values)
            return f"prices of more than one {name}: {text}"
    return None


def hardware_differences(entry: ListedPrice, machine: Machine) -> Iterator[str]:
    """Yield how a machine differs from a listed instance type.

    A fingerprint names only the GPUs that a study used, so fewer GPUs are no difference.
    """
    name = entry.price.instance_type
    if entry.vcpus is not None and entry.vcpus != machine.cores:
        yield f"{name} has {entry.vcpus} vCPUs, the machine {machine.cores} cores"
    if entry.gpus is not None and len(machine.gpus) > entry.gpus:
        yield f"{name} has {entry.gpus} GPUs, the machine {len(machine.gpus)}"
    for gpu in dict.fromkeys(machine.gpus):
        if entry.gpu is not None and not same_gpu(entry.gpu, gpu):
            yield f"{name} has {entry.gpu}, the machine {gpu}"
    memory = entry.memory_gb
    if memory is not None and abs(machine.memory_gib / memory - 1) > _MEMORY_TOLERANCE:
        yield f"{name} has {memory:g} GB of memory, the machine {machine.memory_gib} GiB"


def same_gpu(listed: str, driver: str) -> bool:
    """Return whether list and driver name the same model, as "NVIDIA T4" and "Tesla T4" do."""
    makers = {"NVIDIA", "TESLA"}
    listed_words, driver_words = (
        {word for word in name.upper().replace("-", " ").split() if word not in makers}
        for name in (listed, driver)
    )
    # Drivers name the memory too: "NVIDIA H100 80GB HBM3", "A100-SXM4-40GB".
    return bool(listed_words) and listed_words <= driver_words
