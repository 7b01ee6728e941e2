import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from optimizer.simulator.service_curve import ServiceCurve


def test_time_is_interpolated_between_known_sizes_and_beyond_them() -> None:
    curve = ServiceCurve((2, 4), (3.0, 5.0))
    assert curve.table_ms(6).tolist() == [0, 2, 3, 4, 5, 6, 7]


def test_one_known_size_is_scaled() -> None:
    assert ServiceCurve((4,), (8.0,)).table_ms(5).tolist() == [0, 2, 4, 6, 8, 10]


def test_time_never_falls_and_is_never_negative() -> None:
    curve = ServiceCurve((2, 4, 6), (1.0, 5.0, 4.0))
    assert curve.table_ms(8).tolist() == [0, 0, 1, 3, 5, 5, 5, 5, 5]


@given(st.dictionaries(st.integers(1, 64), st.floats(0.01, 1e3), min_size=1), st.integers(1, 128))
def test_a_table_has_an_entry_for_every_size_and_does_not_fall(
    known: dict[int, float], largest: int
) -> None:
    sizes = tuple(sorted(known))
    table = ServiceCurve(sizes, tuple(known[size] for size in sizes)).table_ms(largest)
    assert table.shape == (largest + 1,)
    assert table[0] == 0
    assert (np.diff(table) >= 0).all()
