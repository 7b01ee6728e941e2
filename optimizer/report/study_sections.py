"""The sections of a study's report; the page and the Markdown file both render these."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import plotly.graph_objects as go

from optimizer.analysis.summary import SummaryArtifact
from optimizer.measurement.trial_record import Outcome, TrialRecord
from optimizer.report import number_formats as form
from optimizer.report.burst_tables import bursts_sentence, bursts_table
from optimizer.report.cold_start_tables import cold_start_sentence, cold_start_tables
from optimizer.report.configurations import trials_table
from optimizer.report.model_figures import (
    importances,
    main_effects,
    median_error,
    predicted_against_measured,
)
from optimizer.report.pareto_page import per_million_chart
from optimizer.report.pipeline_tables import limit_sentences
from optimizer.report.server_figures import HOST, batch_histogram, parts_of, time_split
from optimizer.report.study_figures import (
    cost_latency_figure,
    history_figure,
    levels_by_configuration,
    load_latency_figure,
)
from optimizer.report.study_report import StudyReport
from optimizer.report.table import Table
from optimizer.report.transport_tables import transports_sentence, transports_table

_HOST_NOTE = (
    "Python host is the part of Triton's compute time that its Python backend adds to the model, "
    "estimated from timings of both in the prepare phase."
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
    tables: tuple[Table, ...] = ()
    charts: tuple[tuple[str, Chart], ...] = ()
    code: tuple[str, ...] = ()


def sections(report: StudyReport) -> list[ReportSection]:
    """In the order of reading; those that have nothing to say are left out."""
    makers = (
        _recommendation,
        _what_mattered,
        _cost_and_latency,
        _loads,
        _pipelines,
        _cold_start,
        _transports,
        _bursts,
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
    outcome = report.outcome
    paragraphs = (outcome.headline(), *outcome.cautions())
    return ReportSection("recommendation", "Recommendation", paragraphs, tuple(outcome.tables()))


def _what_mattered(report: StudyReport) -> ReportSection | None:
    effects = report.effects
    if effects is None or not effects.main:
        return None
    first = effects.main[0]
    tables: tuple[Table, ...] = ()
    if effects.interactions:
        rows = [
            (" and ".join(pair.parameters), f"{pair.share:.1%}")
            for pair in effects.interactions[:_PAIRS]
        ]
        title = "Interactions: what two parameters explain beyond each alone"
        tables = (Table(title, ("parameters", "share of variance"), tuple(rows)),)
    return ReportSection(
        "what-mattered",
        "Parameter importance",
        (
            f"{first.parameter} is the most important parameter: it explains "
            f"{form.percent(first.share)} of the variance of the cost's logarithm over "
            f"{form.count(effects.points)} configurations. Its best value on average is "
            f"{first.best.value}.",
            "Costs of configurations that were not measured are predicted by the study's "
            "simulator, corrected by the trials.",
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
    best = report.outcome.best
    config = best.config if best is not None else None
    charts: list[tuple[str, Chart]] = [
        ("Cost against latency of the trials", lambda: cost_latency_figure(met, config))
    ]
    paragraphs = []
    costs = report.costs
    if costs is not None and costs.front:
        charts.append(("Cost of each latency limit", lambda: per_million_chart(costs)))
        on = len(costs.front)
        paragraphs.append(
            f"{on} configuration{'s are' if on != 1 else ' is'} cheapest within some limit, as "
            "measured; the command pareto shows more, with predictions for the others."
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
    table = Table(
        "Mean ms of a request at the capacity",
        ("configuration", *parts),
        tuple(rows),
        notes=(_HOST_NOTE,) if HOST in parts else (),
    )
    return ReportSection(
        "loads",
        "Latency against load, and where the time goes",
        ("Marks are measurements, lines are the predictions of the study's simulator.",)
        if report.curves
        else (),
        (table,),
        (
            ("Latency against load", lambda: load_latency_figure(shown, report.curves)),
            ("Where the time goes", lambda: time_split(split)),
            ("Batch sizes", lambda: batch_histogram(report.batches_at_capacity())),
        ),
    )


def _pipelines(report: StudyReport) -> ReportSection | None:
    outcome = report.outcome
    named = [("Best", outcome.best), ("Baseline", outcome.baseline)]
    if outcome.best == outcome.baseline:
        named.pop()
    tables, paragraphs = list[Table](), list[str]()
    for name, finding in named:
        for own in outcome.breakdowns(finding) if finding is not None else ():
            tables += own.tables(name)
            if own.limits is not None:
                sentences = " ".join(limit_sentences(own.limits))
                paragraphs.append(f"{name}: {sentences}")
    if not tables:
        return None
    return ReportSection("pipeline", "Steps of the pipeline", tuple(paragraphs), tuple(tables))


def _cold_start(report: StudyReport) -> ReportSection | None:
    cold, best = report.outcome.cold_start, report.outcome.best
    if cold is None or best is None:
        return None
    tables = cold_start_tables(cold, best.latency_ms(99))
    return ReportSection("cold-start", "Cold start", (cold_start_sentence(cold),), tables)


def _transports(report: StudyReport) -> ReportSection | None:
    compared = report.outcome.transports
    if compared is None:
        return None
    sentence, table = transports_sentence(compared), transports_table(compared)
    return ReportSection("transports", "Payload and protocol", (sentence,), (table,))


def _bursts(report: StudyReport) -> ReportSection | None:
    compared = report.outcome.bursts
    if compared is None:
        return None
    return ReportSection(
        "bursts", "Bursts", (bursts_sentence(compared),), (bursts_table(compared),)
    )


def _course(report: StudyReport) -> ReportSection | None:
    if not report.study.trials:
        return None
    trials = report.study.trials
    chart = ("Course of the search", lambda: history_figure(trials))
    return ReportSection(
        "course",
        "Course of the search",
        (report.outcome.course(), *report.outcome.lent_text(), *report.left_at_baseline),
        charts=(chart,),
    )


def _predictions(report: StudyReport) -> ReportSection | None:
    pairs = report.predicted
    if not pairs:
        return None
    return ReportSection(
        "predictions",
        "Predicted and measured",
        (
            f"From the calibration alone, the simulator's median error was "
            f"{form.percent(median_error(pairs))} over {len(pairs)} configurations that the "
            "calibration had not measured.",
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
    table = Table(
        "Trials by reason",
        ("outcome", "trials", "reason of the first", "numbers"),
        tuple(rows),
        texts=("reason of the first", "numbers"),
    )
    return ReportSection("failures", "Failed and infeasible trials", (), (table,))


def _accuracy(report: StudyReport) -> ReportSection | None:
    artifacts = report.outcome.summary.artifacts if report.outcome.summary is not None else ()
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
    table = Table(
        "Outputs of each artefact, compared with the FP32 reference",
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
        ("price", form.price_text(searched.price)),
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
    table = Table("", ("what", "value"), tuple(rows), texts=("value",))
    return ReportSection("machine", "Machine, versions, prices", (), (table,))


def _commands(report: StudyReport) -> ReportSection:
    name = report.study.name
    return ReportSection(
        "commands",
        "Reproduce, serve, roll back",
        (
            "space.yaml is the file below; the study's space.json has the same content. The "
            "study's folder holds the model repositories of the winner (best/) and of the "
            "baseline (baseline/): serve best/; to roll back, serve baseline/.",
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
            trials_table(trials),
        ),
    )  # fmt: skip


def _kind_of_reason(reason: str) -> str:
    """Reasons that differ in their figures alone are one."""
    return re.sub(r"\d+(\.\d+)?", "#", reason)
