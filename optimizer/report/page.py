"""A page in one file: text from a template, charts by plotly, whose code is in the page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

_CONFIG = {"displaylogo": False, "responsive": True}

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Okabe and Ito (2008): told apart by colour-blind readers too."""

_LABEL_CHARACTERS = 24
_CHARACTER_PX = 6.5
"""Mean width of a character of a tick label in plotly's default font, 12 px."""


def wrapped_label(name: str) -> str:
    """Break the name of a horizontal bar into lines that leave room for the bar on a phone."""
    return "<br>".join(textwrap.wrap(name, _LABEL_CHARACTERS))


def label_margin_px(labels: Iterable[str]) -> int:
    """Return the left margin that the wrapped labels of horizontal bars need.

    plotly's own margin (`automargin`) is not used: where a long name meets a legend on a narrow
    page, it redraws the chart until it gives up with a warning.
    """
    longest = max((len(line) for label in labels for line in label.split("<br>")), default=0)
    return 16 + round(_CHARACTER_PX * longest)


def page(template: str, values: Mapping[str, Any], charts: Mapping[str, go.Figure]) -> str:
    """Fill a template of this package; everything but charts is escaped.

    Args:
        charts: by the names that the template has for them.
    """
    environment = Environment(
        loader=PackageLoader("optimizer.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = {name: _drawn(figure) for name, figure in charts.items()}
    code = Markup(f"<script>{get_plotlyjs()}</script>")  # noqa: S704 - plotly's own
    return environment.get_template(template).render(**values, charts=drawn, plotly=code)


def _drawn(figure: go.Figure) -> Markup:
    html = figure.to_html(full_html=False, include_plotlyjs=False, config=_CONFIG)
    return Markup(html)  # noqa: S704 - made by plotly, which escapes what it is given
