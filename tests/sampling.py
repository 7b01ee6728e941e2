"""Which cases of a long list run: a sample, or with CASES=all every one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

Case = TypeVar("Case")

ALL_CASES = os.environ.get("CASES") == "all"


def sampled(cases: Sequence[Case], every: int = 3) -> Sequence[Case]:
    """Return one of so many cases, beginning with the first; all of them with CASES=all."""
    return cases if ALL_CASES else cases[::every]
