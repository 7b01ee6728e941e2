"""What can be searched of one model: its parameters, and the values that they may take. Pure."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

Value = int | bool | str | tuple[int, ...]
ParameterName = Literal[
    "runtime",
    "precision",
    "batching",
    "max_batch_size",
    "preferred_batch_sizes",
    "max_queue_delay_us",
    "instance_count",
    "intra_op_threads",
    "padding",
    "engine_profile",
    "cuda_graphs",
    "execution_policy",
    "rate_limit",
]

PARAMETER_NAMES: tuple[ParameterName, ...] = get_args(ParameterName)

UNSEARCHED: Mapping[ParameterName, Value] = {
    "engine_profile": "shared",
    "cuda_graphs": False,
    "execution_policy": "device_blocking",
    "rate_limit": "off",
}
"""Values of the parameters that few spaces search: Triton's own defaults."""


_TRITON_NAMES: Mapping[str, ParameterName] = {
    "dynamic_batching": "batching",
    "max_queue_delay_microseconds": "max_queue_delay_us",
    "preferred_batch_size": "preferred_batch_sizes",
    "count": "instance_count",
    "instance_group": "instance_count",
    "instance_groups": "instance_count",
    "intra_op_thread_count": "intra_op_threads",
    "backend": "runtime",
    "platform": "runtime",
}
"""What config.pbtxt or a backend calls a parameter."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a message that refuses a name: the known one that may be meant, if any."""
    names = list(known)
    meant = _TRITON_NAMES.get(name)
    near = [meant] if meant in names else difflib.get_close_matches(name, names, 1)
    return f"; did you mean {near[0]}?" if near else ""


@dataclass(frozen=True)
class Parameter:
    """One searched setting of one model and the values it may take, in listed order."""

    model: str
    name: ParameterName
    values: tuple[Value, ...]

    @property
    def key(self) -> str:
        """Name in studies and on the command line: "model.parameter"."""
        return f"{self.model}.{self.name}"

    @property
    def ordinal(self) -> bool:
        """Whether the values are numbers, so that neighbours in the list behave alike."""
        return all(isinstance(v, int) and not isinstance(v, bool) for v in self.values)


def label(value: Value) -> str | int | bool:
    """A value as people and Optuna see it: lists become "4/8"."""
    if isinstance(value, tuple):
        return "/".join(map(str, value))
    return value


def parameters_in_order(model: str, values: Mapping[str, Sequence[Value]]) -> tuple[Parameter, ...]:
    """The parameters of a model in the fixed order, numbers ascending.

    Args:
        values: by parameter; those of `UNSEARCHED` may be left out.
    """
    made = (
        Parameter(model, name, tuple(values[name] if name in values else (UNSEARCHED[name],)))
        for name in PARAMETER_NAMES
    )
    return tuple(
        replace(p, values=tuple(sorted(cast(tuple[int, ...], p.values)))) if p.ordinal else p
        for p in made
    )


def preferred_sizes(value: Value, max_batch_size: int) -> tuple[int, ...]:
    """Batch sizes that a value of `preferred_batch_sizes` stands for.

    "none" leaves the choice to Triton, which takes [max_batch_size], so that list is none too;
    "half" prefers half of the largest batch; "powers" every power of two up to it.
    """
    sizes: tuple[int, ...] = ()
    if isinstance(value, tuple):
        sizes = value
    elif value == "half":
        sizes = (max_batch_size // 2,)
    elif value == "powers":
        sizes = tuple(2**n for n in range(1, int(math.log2(max_batch_size)) + 1))
    return () if sizes == (max_batch_size,) else sizes
