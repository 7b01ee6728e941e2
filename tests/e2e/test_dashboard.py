"""The dashboard as a process of its own, in a real browser: after a search and during one."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.evaluation import Evaluation
from tests.browser import browser, opened, screenshot
from tests.e2e.running import Optimizer
from tests.unit.shown_studies import one_of_each, shown_search
from tests.unit.studies import Search

pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
pytestmark = pytest.mark.slow

_PATIENCE_MS = 30_000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as launched:
        yield launched


@pytest.fixture
def search(tmp_path: Path) -> Search:
    search = shown_search(tmp_path / "results")
    log = search.directory.server_log
    log.parent.mkdir(parents=True)
    log.write_text("E0101 the model broke\n")
    return search


@pytest.fixture
def address(tmp_path: Path, search: Search) -> Iterator[str]:
    """Of a dashboard that serves, as it prints it; it ends by Ctrl-C, and leaves nothing."""
    search.opened()[0].close()
    dashboard = Optimizer(["dashboard", "test", "--port", "0"], tmp_path)
    try:
        dashboard.wait_for("(Ctrl-C ends it)")
        found = re.search(r"test: (http://127\.0\.0\.1:\d+)/dashboard ", dashboard.output)
        assert found is not None
        yield found[1]
        dashboard.process.send_signal(signal.SIGINT)
        assert dashboard.wait() == 0
        assert dashboard.errors == ""
    finally:
        dashboard.marked.end()


def test_a_study_is_shown_with_notes_files_and_what_is_infeasible(
    search: Search, address: str, chromium: Browser
) -> None:
    search.run(4)
    trials = {record.outcome: record.number for record in search.records}
    best = next(r.number for r in search.records if r == search.opened()[1].incumbent)

    page = opened(chromium, f"{address}/dashboard").page
    expect(page.get_by_text("test", exact=False).first).to_be_visible(timeout=_PATIENCE_MS)

    study = opened(chromium, f"{address}/dashboard/studies/0").page
    expect(study.get_by_text("test (id=0)")).to_be_visible(timeout=_PATIENCE_MS)
    expect(study.get_by_text(f"Best Trial (number={best})")).to_be_visible(timeout=_PATIENCE_MS)
    expect(study.locator(".legendtext", has_text="Infeasible")).to_be_visible(timeout=_PATIENCE_MS)
    expect(study.get_by_text("usd_per_million_at_capacity").first).to_be_visible()
    screenshot(study, "dashboard-study")

    note = opened(chromium, f"{address}/dashboard/studies/0/note").page
    row = note.locator("tr", has_text=f"best, unconfirmed: trial {best}")
    expect(row).to_contain_text("openvino fp32", timeout=_PATIENCE_MS)
    expect(note.get_by_text("4 trials: 2 ok, 1 infeasible, 0 pruned, 1 failed")).to_be_visible()
    screenshot(note, "dashboard-note")

    missed = opened(
        chromium, f"{address}/dashboard/studies/0/trials?numbers={trials['infeasible']}"
    ).page
    expect(missed.get_by_text("outside the limits")).to_be_visible(timeout=_PATIENCE_MS)
    with missed.expect_download() as downloading:
        missed.get_by_role("link").filter(has=missed.get_by_test_id("DownloadIcon")).click()
    assert 'name: "bert"' in downloading.value.path().read_text()
    screenshot(missed, "dashboard-infeasible-trial")

    broken = opened(
        chromium, f"{address}/dashboard/studies/0/trials?numbers={trials['failed']}"
    ).page
    expect(broken.get_by_text("server-log-tail.txt")).to_be_visible(timeout=_PATIENCE_MS)
    expect(broken.get_by_text("it broke | <b>").first).to_be_visible()
    screenshot(broken, "dashboard-failed-trial")


def test_a_search_is_watched_while_it_goes_on(
    search: Search, address: str, chromium: Browser
) -> None:
    go_on = threading.Semaphore(0)

    def after_a_word(config: ServingConfig) -> Evaluation:
        assert go_on.acquire(timeout=120)
        return one_of_each(config)

    search.evaluator.answer = after_a_word
    searching = threading.Thread(target=search.run, args=(4,))
    searching.start()
    try:
        page = opened(chromium, f"{address}/dashboard/studies/0/trials").page
        chips = page.get_by_text("Running")
        expect(chips.first).to_be_visible(timeout=_PATIENCE_MS)
        assert page.get_by_text("Complete").count() == 0
        screenshot(page, "dashboard-running")
        go_on.release()
        # Nobody reloads the page: it asks for new trials by itself.
        expect(page.get_by_text("Complete").first).to_be_visible(timeout=_PATIENCE_MS)
        expect(chips.first).to_be_visible()
        note = opened(chromium, f"{address}/dashboard/studies/0/note").page
        expect(note.get_by_text("1 trial: ")).to_be_visible(timeout=_PATIENCE_MS)
    finally:
        go_on.release(100)
        searching.join()
    assert len(search.records) == 4
    note.reload()
    expect(note.get_by_text("4 trials: ")).to_be_visible(timeout=_PATIENCE_MS)
    screenshot(note, "dashboard-after-the-search")
