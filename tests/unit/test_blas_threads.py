from __future__ import annotations

from scipy import linalg  # noqa: F401 - so that its library is loaded
from threadpoolctl import threadpool_info, threadpool_limits

from optimizer.commands.replay import replay_table
from tests.unit.studies import small_space
from tests.unit.tables import recorded_table


def blas_threads() -> set[int]:
    return {
        library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
    }


def test_a_search_computes_on_one_thread_and_leaves_its_caller_as_many_as_before() -> None:
    seen = []
    with threadpool_limits(limits=2, user_api="blas"):
        replay_table(
            recorded_table(small_space()), "random", 0, 1, lambda _: seen.append(blas_threads())
        )
        after = blas_threads()
    assert seen
    assert all(each == {1} for each in seen)
    assert after == {2}
