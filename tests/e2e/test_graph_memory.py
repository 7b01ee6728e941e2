"""The headline model's graphs are made within 14 GiB of memory, and its calibration as estimated.

A model of the same shape with fewer layers stands for it, with a limit that is smaller in
proportion to its weights: `HEADLINE_LAYERS=24` makes the graphs of the model itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.graph_memory import KINDS, weights

LAYERS = int(os.environ.get("HEADLINE_LAYERS", "2"))
LIMIT_BYTES = 14 * 2**30 * weights(LAYERS) // weights(24)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + 60 * LAYERS)]


def test_the_graphs_of_the_headline_model_are_made_within_14_gib(tmp_path: Path) -> None:
    arguments = [str(LAYERS), str(LIMIT_BYTES), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.graph_memory", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert tuple(result["memory"]) == KINDS
    before, peak = result["memory"]["int8_s8s8"]
    [estimate] = result["estimates"]
    assert estimate / 2 < peak - before < estimate
