"""Searches of a benchmark side by side, one on each core."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import pandas as pd

from optimizer.machine.cores import usable_cores

_Task = TypeVar("_Task")


def side_by_side(
    searched: Callable[[_Task], object], tasks: Sequence[_Task], path: Path
) -> pd.DataFrame:
    """Return one row for each search, in their order.

    Args:
        searched: makes a search, and returns its row as a mapping or a dataclass.
        path: CSV file that has the rows so far, from the first on.
    """
    # One thread each: the searches are what runs side by side.
    os.environ["OMP_NUM_THREADS"] = "1"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with ProcessPoolExecutor(len(usable_cores()), mp_context=get_context("spawn")) as pool:
        for row in pool.map(searched, tasks):
            rows.append(row)
            pd.DataFrame(rows).to_csv(path, index=False)
    return pd.DataFrame(rows)
