"""`make test-gpu-embedded`, rehearsed on the CPU: that it runs and reports, and no more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e import embedded_gpu
from tests.e2e.conftest import Built

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ONLY_ON_A_GPU = {"a load that is out of memory", "CUDA graphs"}


def test_all_checks_run_but_those_that_need_a_gpu(built: Built, tmp_path: Path) -> None:
    assert embedded_gpu.main(["--rehearse", "--results", str(tmp_path)], built.cache) == 3
    report = json.loads((tmp_path / "report.json").read_text())
    causes = {each["check"]: each["cause"] for each in report["outcomes"]}
    assert {check for check, cause in causes.items() if cause} == ONLY_ON_A_GPU, causes
    assert "fake NVML: no figure below is one of a GPU" in (tmp_path / "report.md").read_text()
