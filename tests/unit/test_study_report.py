from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.analysis.study_reading import read_study
from optimizer.analysis.summary import MachineDrift, SummaryArtifact
from optimizer.artifacts.accuracy import FailingBatch
from optimizer.commands.report import ReportResult, report_study
from optimizer.errors import UsageError
from optimizer.measurement.host_share import HostTiming
from optimizer.report.configurations import rejections_table
from optimizer.report.number_formats import usd
from optimizer.report.study_sections import sections
from optimizer.report.table import Table
from optimizer.study.directory import StudyDirectory
from tests.unit.reported import Names, studied
from tests.unit.studies import MACHINE, PRICE, found_by, four_points, ok, record_of
from tests.unit.winners import bursts, cold_start, transports

ANCHORS = [
    "recommendation", "what-mattered", "cost-and-latency", "loads", "course", "predictions",
    "failures", "accuracy", "machine", "commands", "trials",
]  # fmt: skip
HOSTILE = '<script>window.hacked = 1</script><img src=x onerror="window.hacked=1">\'&\u202eabc'


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> ReportResult:
    results = tmp_path_factory.mktemp("results")
    studied(results / "made-up", trials=40)
    return report_study(results, "made-up")


def test_every_section_has_something_to_say(found: ReportResult) -> None:
    assert [section.anchor for section in sections(found.report)] == ANCHORS
    page = found.page.read_text()
    for anchor in ANCHORS:
        assert f'<section id="{anchor}"' in page
        assert f'href="#{anchor}"' in page


@pytest.mark.parametrize(
    ("rates", "change", "text"),
    [
        ((100.0, 103.0), None, "Machine performance was stable (baseline rerun: it saturated at"),
        ((60.0, 61.2, 78.4), None, "It is not known whether machine performance drifted"),
        ((60.0, 61.2, 78.4), 0.31, "Machine performance drifted by up to +31% (baseline rerun"),
        ((60.0, 60.5), 0.01, "Machine performance was stable (baseline rerun: it saturated at"),
    ],
)
def test_noise_is_not_called_stability(
    found: ReportResult, rates: tuple[float, ...], change: float | None, text: str
) -> None:
    outcome = found.report.outcome
    assert outcome.summary is not None
    pace = MachineDrift("the baseline", rates, change)
    summary = replace(outcome.summary, pace=pace)
    assert any(text in caution for caution in replace(outcome, summary=summary).cautions())


def test_what_was_measured_of_the_winner_has_sections_of_its_own(
    found: ReportResult, tmp_path: Path
) -> None:
    best = found.report.outcome.best
    assert best is not None
    shutil.copytree(found.page.parent, tmp_path / "made-up")
    directory = StudyDirectory(tmp_path / "made-up")
    directory.cold_start.write(cold_start(best.config))
    directory.transports.write(transports(best.config))
    directory.bursts.write(bursts(best.config))
    measured = report_study(tmp_path, "made-up")
    page, markdown = measured.page.read_text(), measured.markdown.read_text()
    for anchor, title, text in (
        ("cold-start", "Cold start", "an instance serves 2.5 s after its server is started"),
        ("transports", "Payload and protocol", "HTTP with JSON serves 50% of that"),
        ("bursts", "Bursts", "50% of the requests are answered within the limit with an unbounded"),
    ):
        assert f'<section id="{anchor}"' in page
        assert text in page
        assert f"## {title}\n" in markdown
        assert text in markdown


def test_the_headline_names_configuration_count_cost_interval_and_latency(
    found: ReportResult,
) -> None:
    report = found.report
    best = report.outcome.best
    assert best is not None
    said = report.outcome.headline()
    assert f"on {best.candidate.score.replicas} x test.large: " in said
    assert usd(best.candidate.score.fleet_usd_per_hour) in said
    assert re.search(r"one instance serves \d+ requests/s \(\d+ to \d+\) within the limit", said)
    assert re.search(r"p95 \d+ of 100 ms", said)
    assert "of the baseline's" in said
    assert found.markdown.read_text().count("##") == len(ANCHORS) - 1, "all but the trials"


def test_what_a_reader_must_know_stands_below_it(found: ReportResult) -> None:
    said = " ".join(found.report.outcome.cautions())
    assert (
        "The search ended: the budget is used up. Remaining potential: up to 3% (95% bound)" in said
    )
    assert "serves more than the next best" in said
    assert "generated inputs" in said


def test_all_trials_are_there_with_their_reasons(found: ReportResult) -> None:
    by_anchor = {section.anchor: section for section in sections(found.report)}
    [trials] = by_anchor["trials"].tables
    assert [row[0] for row in trials.rows] == [str(n) for n in range(40)]
    [failures] = by_anchor["failures"].tables
    assert [row[:2] for row in failures.rows] == [("failed", "5"), ("infeasible", "5")]
    assert failures.rows[0][2].endswith(" 5"), "figures alone make no new reason"


def test_predictions_are_of_configurations_that_calibration_has_not_seen(
    found: ReportResult,
) -> None:
    report = found.report
    saturated = {record.config for record in report.study.calibration}
    ok = [r for r in report.study.trials if r.outcome == "ok" and r.config not in saturated]
    assert len(report.predicted) == len(ok)
    assert all(pair.predicted > 0 for pair in report.predicted)


def test_the_python_backends_part_of_the_compute_time_is_shown_where_it_is_known(
    found: ReportResult,
) -> None:
    def loads(*artifacts: SummaryArtifact) -> Table:
        assert found.report.outcome.summary is not None
        summary = replace(found.report.outcome.summary, artifacts=artifacts)
        outcome = replace(found.report.outcome, summary=summary)
        shown = sections(replace(found.report, outcome=outcome))
        [table] = next(section for section in shown if section.anchor == "loads").tables
        return table

    first = found.report.finalists()[0].models[0].artifact.label
    timings = (HostTiming(batch_size=1, served_ms=1.0, bare_ms=0.25),)
    without, timed = loads(SummaryArtifact(first)), loads(SummaryArtifact(first, timings=timings))
    assert "Python host" not in without.columns
    assert timed.columns[3:5] == ("compute", "Python host")
    whole, own, host = (float(cell) for cell in (without.rows[0][3], *timed.rows[0][3:5]))
    assert own == pytest.approx(0.25 * whole, abs=0.01)
    assert own + host == pytest.approx(whole, abs=0.02)


def test_an_artefact_kept_with_small_batches_says_so(found: ReportResult) -> None:
    assert found.report.outcome.summary is not None
    artifact = SummaryArtifact("a", failing_batch=FailingBatch(16, "rows are zeros"))
    summary = replace(found.report.outcome.summary, artifacts=(artifact,))
    report = replace(found.report, outcome=replace(found.report.outcome, summary=summary))
    [table] = next(s for s in sections(report) if s.anchor == "accuracy").tables
    assert table.rows[0][-1] == "kept with batches below 16: rows are zeros"


def test_the_most_important_parameter_is_the_one_that_the_truth_has(found: ReportResult) -> None:
    effects = found.report.effects
    assert effects is not None
    assert effects.main[0].parameter in ("precision", "max_batch_size")
    assert effects.points > 50


def test_curves_rise_with_the_load(found: ReportResult) -> None:
    assert found.report.curves
    for curve in found.report.curves.values():
        assert curve[-1][1] > curve[0][1]


def test_names_cannot_be_markup(tmp_path: Path) -> None:
    price = replace(PRICE, instance_type=HOSTILE, source=HOSTILE)
    machine = replace(MACHINE, cpu=HOSTILE, packages=((HOSTILE, HOSTILE),))
    studied(tmp_path / "hostile", 20, Names(price, machine, HOSTILE + "x" * 3000))
    found = report_study(tmp_path, "hostile")
    page, markdown = found.page.read_text(), found.markdown.read_text()
    for text in (page, markdown):
        assert "<script>window.hacked" not in text
        assert "<img src=x" not in text
    assert "&lt;script&gt;window.hacked" in page
    assert "&lt;script&gt;window.hacked" in markdown


def test_a_running_study_is_told_as_it_stands(tmp_path: Path) -> None:
    directory = studied(tmp_path / "running", 10)
    directory.summary.unlink()
    for record in directory.confirmations.folder.glob("*.json"):
        record.unlink()
    found = report_study(tmp_path, "running")
    said = " ".join(found.report.outcome.cautions())
    assert "Not confirmed yet" in said
    assert "The study has not ended" in said
    assert "accuracy" not in [section.anchor for section in sections(found.report)]


def test_a_study_without_a_success_says_why(tmp_path: Path) -> None:
    directory = studied(tmp_path / "poor", 10)
    for n in range(10):
        if n != 6:
            (directory.trials.folder / f"{n:05}.json").unlink()
    for record in directory.confirmations.folder.glob("*.json"):
        record.unlink()
    directory.summary.unlink()
    found = report_study(tmp_path, "poor")
    assert found.report.outcome.headline().startswith(
        "Nothing was found within the limits: none of 1 tri"
    )
    assert found.report.outcome.best is None
    with pytest.raises(UsageError, match="study 'none' not found"):
        report_study(tmp_path, "none")


def test_a_report_can_be_written_again(found: ReportResult) -> None:
    study = read_study(found.page.parent.parent, "made-up")
    before = found.markdown.read_text()
    again = report_study(found.page.parent.parent, str(study.directory.root))
    texts = (before, again.markdown.read_text())
    one, two = ([x for x in text.splitlines() if "report written" not in x] for text in texts)
    assert one == two


def test_rejections_at_the_capacity_have_a_table() -> None:
    space = four_points()
    best = found_by(record_of(0, space.config(space.baseline), ok(100, 40.0)))
    assert rejections_table([best]) is None
    measurement = best.candidate.measurement
    levels = tuple(
        replace(level, streams=tuple(replace(s, rejected=s.sent // 50) for s in level.streams))
        for level in measurement.levels
    )
    rejecting = replace(measurement, levels=levels)
    table = rejections_table(
        [best, replace(best, candidate=replace(best.candidate, measurement=rejecting))]
    )
    assert table is not None
    [(_, _, rejected)] = table.rows
    assert rejected == "2.0%"
