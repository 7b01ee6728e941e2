from __future__ import annotations

import pytest

from optimizer.measurement.resource_use import MachineUse


@pytest.mark.parametrize(
    ("foreign_cores", "slowdown"), [(None, 1.0), (0.0, 1.0), (0.5, 4 / 3), (1.0, 2.0), (3.0, 4.0)]
)
def test_a_level_is_slowed_down_by_the_cores_that_are_taken(
    foreign_cores: float | None, slowdown: float
) -> None:
    """However many are taken, half a core is left."""
    assert MachineUse(1.0, 2, 1.0, None, foreign_cores).slowdown == pytest.approx(slowdown)
