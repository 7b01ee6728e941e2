"""Which prices may be compared, and which may be charged for a machine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from optimizer.errors import UsageError
from optimizer.fleet.price_list import ListedPrice
from optimizer.machine.fingerprint import Machine
from optimizer.measurement.cost import ON_DEMAND, Price

_MEMORY_TOLERANCE = 0.15
"""What firmware, kernel and rounding keep of the memory that is listed."""


@dataclass(frozen=True)
class PriceChoice:
    """Which of an instance type's listed prices are meant; None leaves what is usual."""

    rate: str | None = None
    region: str | None = None

    @property
    def chosen(self) -> bool:
        """Whether anything but the usual was asked for."""
        return self.rate is not None or self.region is not None


Accepted = Literal["contradictions", "mixed-prices"]
"""What is refused unless the user says that it is meant."""


def prices_for(
    machines: Sequence[tuple[Price, Machine]],
    choice: PriceChoice,
    listed: Sequence[ListedPrice],
    accepted: Collection[Accepted],
) -> tuple[Price, ...]:
    """What each machine is charged, in their order.

    Args:
        machines: each with the price that its study was run with.

    Raises:
        UsageError: where a price is of another machine, or prices cannot be compared, and that was
            not accepted.
    """
    charged = tuple(
        listed_price(listed, price.instance_type, choice).price if choice.chosen else price
        for price, _ in machines
    )
    for price, (_, machine) in zip(charged, machines, strict=True):
        wrong = hardware_mismatch(price, machine, listed)
        if wrong is not None and "contradictions" not in accepted:
            raise UsageError(
                f"price: {wrong}; name what the machine is, or accept it: --accept contradictions"
            )
    refuse_mixed_prices(charged, accepted)
    return charged


def hardware_mismatch(price: Price, machine: Machine, listed: Sequence[ListedPrice]) -> str | None:
    """How a machine is not what its price is for; None where it is, or nobody can tell.

    Of a price that a person gave by hand nothing is known. One that was listed where its study was
    run names a region, and need not be listed here.
    """
    own = [entry for entry in listed if entry.price.instance_type == price.instance_type]
    same = [entry for entry in own if entry.price == price]
    known = [*same, *(own if price.region else ())]
    return "; ".join(hardware_differences(known[0], machine)) or None if known else None


def refuse_mixed_prices(prices: Sequence[Price], accepted: Collection[Accepted]) -> None:
    """Raises UsageError where prices cannot be compared, and that was not accepted."""
    if "mixed-prices" not in accepted and (found := price_mismatch(prices)) is not None:
        raise UsageError(
            f"{found}; choose --rate and --region, or accept them: --accept mixed-prices"
        )


def listed_price(
    listed: Sequence[ListedPrice], instance_type: str, choice: PriceChoice
) -> ListedPrice:
    """The latest price of an instance type that is meant; on-demand where no rate is named.

    Raises:
        UsageError: where there is none, with those that there are.
    """
    own = [entry for entry in listed if entry.price.instance_type == instance_type]
    rate = choice.rate or ON_DEMAND
    meant = [
        entry
        for entry in own
        if entry.price.rate == rate and choice.region in (None, entry.price.region)
    ]
    if not meant:
        where = f" in {choice.region}" if choice.region is not None else ""
        there = ", ".join(f"{e.price.rate} in {e.price.region}" for e in own) or "none of that type"
        raise UsageError(
            f"{instance_type}: no {rate} price{where} is listed ({there}); "
            "`python -m optimizer prices update` asks AWS, or put one into your own list"
        )
    return max(meant, key=lambda entry: entry.price.as_of)


def listed_instance(listed: Sequence[ListedPrice], instance_type: str) -> ListedPrice | None:
    """What an instance type has, by the latest entry that says its GPUs; None where none does."""
    own = [e for e in listed if e.price.instance_type == instance_type and e.gpus is not None]
    return max(own, key=lambda entry: entry.price.as_of, default=None)


def price_mismatch(prices: Iterable[Price]) -> str | None:
    """In what the prices differ that makes them unfit to be compared; None where in nothing."""
    kinds: Sequence[tuple[str, Callable[[Price], str]]] = (
        ("region", lambda price: price.region),
        ("rate", lambda price: price.rate),
        ("basis", lambda price: price.basis),
    )
    every = list(prices)
    for name, kind in kinds:
        found = sorted({(price.instance_type, kind(price)) for price in every})
        if len({each for _, each in found}) > 1:
            told = ", ".join(
                f"{instance_type} {each or 'unknown'}" for instance_type, each in found
            )
            return f"prices of more than one {name}: {told}"
    return None


def hardware_differences(entry: ListedPrice, machine: Machine) -> Iterator[str]:
    """What a machine has that the listed instance type has not: it was measured on another one.

    A machine may have more GPUs than a study used, and fingerprints name those alone.
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
    """Whether the price list and the driver name the same model: "NVIDIA T4" and "Tesla T4"."""
    makers = {"NVIDIA", "TESLA"}
    wanted, found = (
        {word for word in name.upper().replace("-", " ").split() if word not in makers}
        for name in (listed, driver)
    )
    # Drivers say the memory too: "NVIDIA H100 80GB HBM3", "A100-SXM4-40GB".
    return bool(wanted) and wanted <= found
