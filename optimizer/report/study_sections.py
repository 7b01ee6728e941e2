"""A study told section by section; the page and the Markdown file are made of these. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import plotly.graph_objects as go

from optimizer.analysis.summary import SummaryArtifact
from optimizer.configuration.serving_config import describe
from optimizer.measurement.trial_record import Outcome, TrialRecord
from optimizer.report.cells import (
    CANDIDATE_COLUMNS,
    TRIAL_COLUMNS,
    candidate_cells,
    price_text,
    trial_cells,
)
from optimizer.report.model_figures import (
    importances,
    main_effects,
    median_error,
    predicted_against_measured,
)
from optimizer.report.pareto_page import per_million_chart
from optimizer.report.server_figures import HOST, batch_histogram, parts_of, time_split
from optimizer.report.study_figures import (
    cost_latency_figure,
    history_figure,
    levels_by_configuration,
    load_latency_figure,
)
from optimizer.report.study_report import StudyReport
from optimizer.report.text_table import TextTable

_HOST_NOTE = (
    "Python host is the part of Triton's compute time that its Python backend adds to a model, by "
    "what both took when the artefact was prepared."
)
_PAIRS = 8
"""Interactions that are listed."""

Chart = Callable[[], go.Figure]


@dataclass(frozen=True)
class ReportSection:
    """A part of the report.

    Attributes:
        anchor: its name in links.
        paragraphs: sentences, before tables and charts.
        charts: what draws them, by what they show.
        code: lines to be copied.
    """

    anchor: str
    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[TextTable, ...] = ()
    charts: tuple[tuple[str, Chart], ...] = ()
    code: tuple[str, ...] = ()


def sections(report: StudyReport) -> list[ReportSection]:
    """In the order of reading; those that have nothing to say are left out."""
    makers = (
        _recommendation,
        _what_mattered,
        _cost_and_latency,
        _loads,
        _course,
        _predictions,
        _failures,
        _accuracy,
        _machine,
        _commands,
        _trials,
    )
    return [section for make in makers if (section := make(report)) is not None]


def _recommendation(report: StudyReport) -> ReportSection:
    tables = [table for table in (_compared(report), _claims(report)) if table is not None]
    return ReportSection(
        "recommendation",
        "Recommendation",
        (report.headline(), *report.cautions()),
        tuple(tables),
    )


def _compared(report: StudyReport) -> TextTable | None:
    """Baseline, best and all that cost the same."""
    if report.best is None:
        return None
    equal = [each.candidate for each in report.decision.equal_cost]
    named = [("best", equal[0]), *(("equal cost", each) for each in equal[1:])]
    if report.baseline is not None and report.baseline not in equal:
        named.append(("baseline", report.baseline))
    return TextTable(
        "The best and what it is compared with",
        ("which", "configuration", *CANDIDATE_COLUMNS),
        tuple((name, describe(each.config), *candidate_cells(each)) for name, each in named),
        (
            "Requests/s, p95 and $ per million: of one instance at its capacity. Replicas and "
            "$ an hour: of the fleet for the demand, by the lower end of the interval. Of "
            "equal costs the higher precision goes first, then the lower latency at demand.",
        ),
        texts=("configuration",),
    )  # fmt: skip


def _claims(report: StudyReport) -> TextTable | None:
    if not report.claims:
        return None
    return TextTable(
        "How much more one instance of the best serves, 95 % interval",
        ("than", "times as much", "interval", "confidence", "told apart"),
        tuple(
            (
                describe(claim.rival),
                f"{claim.ratio:.2f}",
                f"{claim.low:.2f} to {claim.high:.2f}",
                f"{claim.confidence:.1%}",
                "yes" if claim.apart else "no",
            )
            for claim in report.claims
        ),
    )


def _what_mattered(report: StudyReport) -> ReportSection | None:
    effects = report.effects
    if effects is None or not effects.main:
        return None
    first = effects.main[0]
    tables: tuple[TextTable, ...] = ()
    if effects.interactions:
        rows = [
            (" and ".join(pair.parameters), f"{pair.share:.1%}")
            for pair in effects.interactions[:_PAIRS]
        ]
        title = "What two parameters do together, beyond what each does alone"
        tables = (TextTable(title, ("parameters", "share of variance"), tuple(rows)),)
    return ReportSection(
        "what-mattered",
        "What mattered",
        (
            f"{first.parameter} mattered most: {first.share:.0%} of the variance of the cost's "
            f"logarithm over {effects.points:,} configurations. Its best value on average is "
            f"{first.best.value}.",
            "Costs of configurations that were not measured are what the study's simulator "
            "expects, corrected by the trials.",
        ),
        tables,
        (
            ("Importance of parameters", lambda: importances(effects)),
            ("Main effects", lambda: main_effects(effects)),
        ),
    )


def _cost_and_latency(report: StudyReport) -> ReportSection | None:
    met = [record for record in report.study.trials if record.score is not None]
    if not met:
        return None
    best = report.best.config if report.best is not None else None
    charts: list[tuple[str, Chart]] = [
        ("Cost against latency of the trials", lambda: cost_latency_figure(met, best))
    ]
    paragraphs = []
    costs = report.costs
    if costs is not None and costs.front:
        charts.append(("Cost of each latency limit", lambda: per_million_chart(costs)))
        on = len(costs.front)
        paragraphs.append(
            f"{on} configuration{'s are' if on != 1 else ' is'} cheapest within some limit, by "
            "what was measured; the command pareto says more, and what is predicted of others."
        )
    return ReportSection(
        "cost-and-latency", "Cost and latency", tuple(paragraphs), charts=tuple(charts)
    )


def _loads(report: StudyReport) -> ReportSection | None:
    at_capacity = report.levels_at_capacity()
    if not at_capacity:
        return None
    runs = [*report.study.trials, *report.study.confirmations]
    shown = levels_by_configuration(runs, report.finalists(), most=0)
    split = report.times_at_capacity()
    parts = parts_of(split)
    rows = [
        (name, *(f"{times[part]:.2f}" if part in times else "-" for part in parts))
        for name, times in split.items()
    ]
    table = TextTable(
        "Mean ms of a request at the capacity",
        ("configuration", *parts),
        tuple(rows),
        notes=(_HOST_NOTE,) if HOST in parts else (),
    )
    return ReportSection(
        "loads",
        "Latency against load, and where the time goes",
        ("Marks are what was measured, lines what the study's simulator expects.",)
        if report.curves
        else (),
        (table,),
        (
            ("Latency against load", lambda: load_latency_figure(shown, report.curves)),
            ("Where the time goes", lambda: time_split(split)),
            ("Batch sizes", lambda: batch_histogram(at_capacity)),
        ),
    )


def _course(report: StudyReport) -> ReportSection | None:
    if not report.study.trials:
        return None
    summary = report.summary
    measured = sum(record.seconds.measuring for record in report.study.trials)
    said = f"{len(report.study.trials)} trials, {measured:,.0f} s of load tests"
    if summary is not None:
        said += (
            f"; {summary.measuring_seconds:,.0f} s with calibration and confirmation, "
            f"{summary.building_seconds:,.0f} s of building, "
            f"{summary.overhead_seconds_per_trial_median:.1f} s else per trial (median)"
        )
    trials = report.study.trials
    chart = ("Course of the search", lambda: history_figure(trials))
    return ReportSection("course", "Course of the search", (said + ".",), charts=(chart,))


def _predictions(report: StudyReport) -> ReportSection | None:
    pairs = report.predicted
    if not pairs:
        return None
    return ReportSection(
        "predictions",
        "Predicted and measured",
        (
            f"The simulator, by the calibration alone, was off by {median_error(pairs):.0%} "
            f"(median of {len(pairs)} configurations that it had not seen).",
        ),
        charts=(("Predicted against measured", lambda: predicted_against_measured(pairs)),),
    )


def _failures(report: StudyReport) -> ReportSection | None:
    wrong = [r for r in report.study.trials if r.outcome in ("infeasible", "failed")]
    if not wrong:
        return None
    by_reason: dict[tuple[Outcome, str], list[TrialRecord]] = defaultdict(list)
    for record in wrong:
        by_reason[record.outcome, _kind_of_reason(record.reason)].append(record)
    rows = [
        (
            outcome,
            str(len(records)),
            records[0].reason,
            ", ".join(str(record.number) for record in records[:12])
            + (" ..." if len(records) > 12 else ""),
        )
        for (outcome, _), records in sorted(by_reason.items(), key=lambda each: -len(each[1]))
    ]
    table = TextTable(
        "Trials by reason",
        ("outcome", "trials", "reason, of the first", "numbers"),
        tuple(rows),
        texts=("reason, of the first", "numbers"),
    )
    return ReportSection("failures", "What did not work, and why", (), (table,))


def _accuracy(report: StudyReport) -> ReportSection | None:
    artifacts = report.summary.artifacts if report.summary is not None else ()
    if not artifacts:
        return None
    rows = []
    for each in artifacts:
        accuracy = each.accuracy
        figures = ("-",) * 4
        if accuracy is not None:
            error = accuracy.max_abs_error
            figures = (
                f"{accuracy.argmax_agreement:.3f}",
                f"{accuracy.mean_cosine:.5f}",
                f"{accuracy.min_cosine:.5f}",
                f"{error:.3g}" if error is not None else "not finite",
            )
        rows.append((each.artifact, *figures, _verdict(each)))
    table = TextTable(
        "Answers of each artefact beside the FP32 reference",
        ("artefact", "argmax agreement", "mean cosine", "least cosine", "largest error",
         "verdict"),
        tuple(rows),
        texts=("verdict",),
    )  # fmt: skip
    return ReportSection("accuracy", "Accuracy", (), (table,))


def _verdict(artifact: SummaryArtifact) -> str:
    failing = artifact.failing_batch
    if artifact.dropped is not None:
        return artifact.dropped
    if failing is not None:
        return f"kept with batches below {failing.size}: {failing.reason}"
    return "kept"


def _machine(report: StudyReport) -> ReportSection:
    machine, searched = report.study.machine, report.study.searched
    rows = [
        ("machine", machine.summary),
        ("server", machine.server),
        ("system", f"{machine.system}, Python {machine.python}"),
        *((f"package {name}", version) for name, version in machine.packages),
        ("price", price_text(searched.price)),
        ("demand", f"{searched.demand.requests_per_second:g} requests/s"),
        ("headroom", f"{searched.demand.headroom:.0%}"),
        *(
            (
                f"limit of {stream.name}",
                f"p{stream.limit.percentile:g} <= {stream.limit.latency_ms:g} ms",
            )
            for stream in searched.workload.streams
        ),
        ("report written", report.written),
    ]
    table = TextTable("", ("what", "value"), tuple(rows), texts=("value",))
    return ReportSection("machine", "Machine, versions, prices", (), (table,))


def _commands(report: StudyReport) -> ReportSection:
    name = report.study.name
    return ReportSection(
        "commands",
        "Reproduce, serve, roll back",
        (
            "space.yaml is the file below; it is also in the study's space.json. The winner's "
            "model repository is best/ in the study's folder, the baseline's baseline/: to "
            "serve the one is to go forward, the other to roll back.",
        ),
        code=(
            f"python -m optimizer run space.yaml --study {name}-again",
            f"python -m optimizer serve {name}",
            f"python -m optimizer serve {name} --baseline",
            f"python -m optimizer plan {name}",
            f"python -m optimizer pareto {name}",
        ),
    )


def _trials(report: StudyReport) -> ReportSection | None:
    trials = report.study.trials
    if not trials:
        return None
    return ReportSection(
        "trials",
        "All trials",
        (),
        (
            TextTable(
                "",
                TRIAL_COLUMNS,
                tuple(map(trial_cells, trials)),
                texts=("configuration", "why it ended"),
            ),
        ),
    )  # fmt: skip


def _kind_of_reason(reason: str) -> str:
    """Reasons that differ in their figures alone are one."""
    return re.sub(r"\d+(\.\d+)?", "#", reason)
