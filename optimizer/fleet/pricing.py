"""Which prices may be compared, and which may be charged for a machine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from optimizer.cost import ON_DEMAND, Price
from optimizer.errors import UsageError
from optimizer.fleet.price_catalogue import ListedPrice
from optimizer.machine.fingerprint import Machine

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
    charged = []
    for price, machine in machines:
        entry = listed_price(listed, price.instance_type, choice) if choice.chosen else None
        charged.append(entry.price if entry is not None else price)
        known = entry or next((e for e in listed if e.price == price), None)
        wrong = list(contradictions(known, machine)) if known is not None else []
        if wrong and "contradictions" not in accepted:
            raise UsageError(
                f"price: {'; '.join(wrong)}; name what the machine is, or accept it: "
                "--accept contradictions"
            )
    if "mixed-prices" not in accepted and (found := mixture(charged)) is not None:
        raise UsageError(
            f"{found}; choose --rate and --region, or accept them: --accept mixed-prices"
        )
    return tuple(charged)


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


def mixture(prices: Iterable[Price]) -> str | None:
    """In what the prices differ that makes them unfit to be compared; None where in nothing."""
    kinds: Sequence[tuple[str, Callable[[Price], str]]] = (
        ("region", lambda price: price.region),
        ("rate", lambda price: price.rate),
        ("basis", lambda price: price.basis),
    )
    of = {price.instance_type: price for price in prices}
    for name, kind in kinds:
        if len({kind(price) for price in of.values()}) > 1:
            told = ", ".join(f"{key} {kind(of[key]) or 'unknown'}" for key in sorted(of))
            return f"prices of more than one {name}: {told}"
    return None


def contradictions(entry: ListedPrice, machine: Machine) -> Iterator[str]:
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
