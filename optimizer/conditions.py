"""Conditions that a person writes in a space file, such as "batching or cores > 1". Pure."""

from __future__ import annotations

import numpy as np
import pandas as pd

from optimizer.parameters import PARAMETER_NAMES


class ConditionError(ValueError):
    """A condition cannot be evaluated; args are the rule that it breaks and its text."""


def evaluate(condition: str, rows: pd.DataFrame) -> pd.Series[bool]:
    """Which rows meet a condition such as "max_queue_delay_us == 0 or batching".

    Raises:
        ConditionError: when the text is no comparison of known names.
    """
    names = [*PARAMETER_NAMES, "cores", "gpus"]
    if "@" in condition or "__" in condition:
        raise ConditionError("must compare parameters and numbers only", condition)
    try:
        result = rows[names].eval(condition, engine="python", local_dict={}, global_dict={})
    except Exception as error:  # pandas raises many types for a wrong expression
        rule = f"must be a comparison of {', '.join(names)} ({error})"
        raise ConditionError(rule, condition) from error
    if not isinstance(result, pd.Series) or not all(isinstance(v, bool | np.bool_) for v in result):
        raise ConditionError("must be true or false for every point", condition)
    return result.astype(bool)
