"""Pages in a real browser: they open offline, draw everything, and can be used by anybody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from optimizer.commands.pareto import ParetoOptions, latency_costs
from optimizer.commands.plan import PlanOptions, plan_for
from optimizer.commands.published_benchmark import replay_published_benchmark
from optimizer.commands.report import report_study
from optimizer.fleet.planning.demand_curve import daily_demand
from tests.browser import WIDTHS, Opened, browser, opened, screenshot
from tests.sampling import sampled
from tests.unit.reported import Names, studied
from tests.unit.studies import MACHINE, PRICE

pytestmark = pytest.mark.slow

HOSTILE = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'><b>\u202eevil"
TRIALS = 1_000
LARGEST_BYTES = 10_000_000
PAGES = (("report", 9), ("plan", 2), ("pareto", 2), ("published", 3))
"""Each page and its number of figures."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as launched:
        yield launched


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    studied(results / "large", TRIALS)
    return report_study(results, "large").page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A page of each kind, by what it shows: axe-core would read a thousand rows for a minute."""
    results = tmp_path_factory.mktemp("results")
    studied(results / "small", 20)
    demand = daily_demand(3_000.0, 500.0)
    return {
        "report": report_study(results, "small").page,
        "plan": plan_for(PlanOptions(("small",), daily=demand, results=results)).page,
        "pareto": latency_costs(ParetoOptions("small", results=results))[1],
        "published": replay_published_benchmark(results).page,
    }


def drawn(page: Page) -> list[int]:
    """Marks of each figure: what plotly has put on its axes."""
    marks: list[int] = page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].map("
        "plot => plot.querySelectorAll('.trace, .point, .bars path').length)"
    )
    return marks


def assert_sound(found: Opened) -> None:
    """Nothing was said on the console, nothing asked for beside the file, nothing too wide."""
    assert found.console == []
    assert [url for url in found.requests if not url.startswith("file:")] == []
    assert len(found.requests) == 1
    page = found.page
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert all(marks > 0 for marks in drawn(page))


def serious(page: Page) -> list[str]:
    """What axe-core finds that keeps people from using a page."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("width", sampled(WIDTHS, every=2))
def test_a_report_of_a_thousand_trials_opens_offline(
    chromium: Browser, report: Path, width: int
) -> None:
    assert report.stat().st_size <= LARGEST_BYTES
    found = opened(chromium, report.as_uri(), width)
    assert_sound(found)
    assert len(drawn(found.page)) == 9
    assert found.page.locator("#trials tbody tr").count() == TRIALS
    screenshot(found.page, f"large-report-{width}")


def test_tables_sort_and_filter(chromium: Browser, report: Path) -> None:
    page = opened(chromium, report.as_uri()).page
    head = page.locator("#trials thead th")
    column = [text.strip() for text in head.all_inner_texts()].index("requests/s")

    def rates() -> list[float]:
        texts = page.eval_on_selector_all(
            "#trials tbody tr", f"rows => rows.map(row => row.cells[{column}].textContent)"
        )
        return [float(text.replace(",", "")) for text in texts if text != "-"]

    head.nth(column).get_by_role("button").click()
    assert rates() == sorted(rates())
    assert head.nth(column).get_attribute("aria-sort") == "ascending"
    head.nth(column).get_by_role("button").click()
    assert rates() == sorted(rates(), reverse=True)
    page.locator("#trials input.filter").fill("openvino infeasible")
    shown = page.locator("#trials tbody tr:visible").all_inner_texts()
    assert 0 < len(shown) < TRIALS
    assert all("openvino" in text and "infeasible" in text for text in shown)
    assert page.locator("#trials .found").inner_text() == f"{len(shown)} of {TRIALS}"


def test_hostile_names_run_nothing(chromium: Browser, tmp_path: Path) -> None:
    price = replace(PRICE, instance_type=HOSTILE, source=HOSTILE)
    machine = replace(MACHINE, cpu=HOSTILE, packages=((HOSTILE, "1" * 4000),))
    studied(tmp_path / "hostile", 20, Names(price, machine, HOSTILE))
    found = opened(chromium, report_study(tmp_path, "hostile").page.as_uri(), 390)
    assert_sound(found)
    page = found.page
    page.locator("#course .main-svg").first.hover()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, b:has-text('evil')").count() == 0
    assert page.locator("#machine").get_by_text("<script>window.hacked=1").count() > 0


@pytest.mark.parametrize(
    ("name", "figures", "width"),
    sampled([(*page, width) for page in PAGES for width in WIDTHS], every=3),
)
def test_every_page_opens_offline_and_can_be_used_by_anybody(
    chromium: Browser, pages: Mapping[str, Path], name: str, figures: int, width: int
) -> None:
    found = opened(chromium, pages[name].as_uri(), width)
    assert_sound(found)
    assert len(drawn(found.page)) == figures
    screenshot(found.page, f"{name}-{width}")
    assert serious(found.page) == []


def test_a_report_prints(chromium: Browser, pages: Mapping[str, Path], tmp_path: Path) -> None:
    page = opened(chromium, pages["report"].as_uri()).page
    paper = tmp_path / "report.pdf"
    page.pdf(path=str(paper), format="A4")
    assert paper.read_bytes().startswith(b"%PDF")
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
