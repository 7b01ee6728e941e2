"""Linear algebra on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let NumPy and SciPy use one thread for products and factors of matrices; also a decorator.

    Matrices of a search have some hundred rows. On several threads OpenBLAS waits for the others in
    a loop after each of them: that takes twice as long where other processes keep the cores busy,
    and takes cores from a server that is under load. Results do not depend on the number of cores.
    """
    # Only libraries that are loaded are limited, and SciPy carries one of its own.
    from scipy import linalg  # noqa: F401

    with threadpool_limits(limits=1, user_api="blas"):
        yield
