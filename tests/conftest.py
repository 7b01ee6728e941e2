"""Settings that every suite shares, and which tests run alone."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

from optimizer.machine.blas_threads import one_blas_thread

# A shared machine is slow at times, so an example has no deadline of its own. Continuous
# integration draws the same examples in every run.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")

SERIAL_SUITES = ("contracts", "e2e")
"""They start servers and put load on them."""

WITHOUT_LOAD = {
    "test_architectures.py",
    "test_arrivals.py",
    "test_artifact_builder.py",
    "test_bad_machine.py",
    "test_baseline.py",
    "test_bls.py",
    "test_bursts.py",
    "test_cluster.py",
    "test_dashboard.py",
    "test_doctor.py",
    "test_embedded_gpu.py",
    "test_evaluator.py",
    "test_export.py",
    "test_faults.py",
    "test_gate.py",
    "test_graph_memory.py",
    "test_guided.py",
    "test_init_from.py",
    "test_int8_accuracy.py",
    "test_interruptions.py",
    "test_model_source.py",
    "test_notebook.py",
    "test_nvidia_builder.py",
    "test_observe.py",
    "test_pages.py",
    "test_patch.py",
    "test_pipeline.py",
    "test_postgresql.py",
    "test_prepare.py",
    "test_production.py",
    "test_public_onnx.py",
    "test_real_weights.py",
    "test_recommend.py",
    "test_record.py",
    "test_remote.py",
    "test_response_cache.py",
    "test_repository_source.py",
    "test_search.py",
    "test_serve.py",
    "test_server_launcher.py",
    "test_serving.py",
    "test_several_limits.py",
    "test_several_models.py",
    "test_slots.py",
    "test_team.py",
    "test_text_classification.py",
    "test_time.py",
    "test_winner.py",
}
"""Of those suites, the files that judge answers, messages, pages and what is left, but no times."""


def pytest_configure(config: pytest.Config) -> None:
    """As the commands do, which tests go round."""
    limits = ExitStack()
    limits.enter_context(one_blas_thread())
    config.add_cleanup(limits.close)


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "a skipped test fails, with its reason: for machines that were set up for these tests"
    parser.addoption("--fail-if-skipped", action="store_true", help=text)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and item.config.getoption("--fail-if-skipped"):
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"no test may be skipped here: {reason}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        suite = item.path.relative_to(Path(__file__).parent).parts[0]
        if suite in SERIAL_SUITES and item.path.name not in WITHOUT_LOAD:
            item.add_marker(pytest.mark.serial)
