"""A study's report as a page in one file."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from optimizer.report.page import page
from optimizer.report.study_report import StudyReport
from optimizer.report.study_sections import ReportSection

_FILTERED_FROM = 20
"""Rows of a table above which it can be filtered."""


def study_page(report: StudyReport, sections: Sequence[ReportSection]) -> str:
    """Return HTML in one file."""
    values = {
        "title": report.title,
        "sections": sections,
        "space_content": report.space_content,
        "filtered_from": _FILTERED_FROM,
    }
    charts = {
        f"{section.anchor}/{name}": draw() for section in sections for name, draw in section.charts
    }
    values["captions"] = {name: _without_title(chart) for name, chart in charts.items()}
    return page("study.html", values, charts)


def _without_title(chart: go.Figure) -> str:
    """Remove the title of a chart and return it for the caption, which wraps on a phone."""
    title = chart.layout.title.text or ""
    chart.update_layout(title=None, margin_t=30)
    return title
