"""`make test-gpu` proves something: on a machine that was set up for it, no test is skipped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest

from tests.conftest import pytest_runtest_makereport


def reported(outcome: Literal["passed", "skipped"], *, fail_if_skipped: bool) -> Any:
    """What becomes of a report of pytest."""
    config = SimpleNamespace(getoption=lambda _: fail_if_skipped)
    longrepr = ("test_gpu.py", 7, "Skipped: no driver") if outcome == "skipped" else None
    report = pytest.TestReport("a test", ("test_gpu.py", 7, ""), {}, outcome, longrepr, "setup")
    hook = pytest_runtest_makereport(cast(pytest.Item, SimpleNamespace(config=config)))
    next(hook)
    with pytest.raises(StopIteration) as ended:
        hook.send(report)
    return ended.value.value


def test_a_skipped_test_fails_with_its_reason_where_it_is_asked_to() -> None:
    report = reported("skipped", fail_if_skipped=True)
    assert report.failed
    assert report.longrepr == "no test may be skipped here: Skipped: no driver"
    assert reported("skipped", fail_if_skipped=False).skipped
    assert reported("passed", fail_if_skipped=True).passed
