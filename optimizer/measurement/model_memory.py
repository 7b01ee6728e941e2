"""Memory that models take. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelMemory:
    """Memory of models; None where it cannot be measured.

    Attributes:
        device_mib: on the fullest GPU, or of the machine for models on its CPU.
        host_mib: of the machine for models on GPUs, whose processes take several GB there; None for
            models on its CPU.
    """

    device_mib: float | None = None
    host_mib: float | None = None

    def __sub__(self, other: ModelMemory) -> ModelMemory:
        """Return what this is more than another, at least 0."""
        return ModelMemory(
            _more(self.device_mib, other.device_mib), _more(self.host_mib, other.host_mib)
        )


def _more(one: float | None, other: float | None) -> float | None:
    return max(0.0, one - other) if one is not None and other is not None else None
