"""A study's report as Markdown, without the sections that only a page has room for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from optimizer.report.study_sections import ReportSection
from optimizer.report.table import Table

_LEFT_OUT = ("trials",)
"""Sections that only a page has room for."""


def study_markdown(title: str, sections: Iterable[ReportSection]) -> str:
    """Return GitHub's Markdown; texts from elsewhere are escaped."""
    lines = [f"# {_plain(title)}"]
    for section in sections:
        if section.anchor not in _LEFT_OUT and (own := list(_section(section))):
            lines += ["", f"## {_plain(section.title)}", *own]
    return "\n".join(lines) + "\n"


def _section(section: ReportSection) -> Iterator[str]:
    for paragraph in section.paragraphs:
        yield from ("", _plain(paragraph))
    for table in section.tables:
        yield from ("", *_table(table.for_page))
    if section.code:
        yield from ("", *(f"    {line}" for line in section.code))


def _table(table: Table) -> Iterator[str]:
    if table.title:
        yield from (f"{_plain(table.title)}:", "")
    yield f"| {' | '.join(map(_plain, table.columns))} |"
    marks = ["---", *("---" if name in table.texts else "---:" for name in table.columns[1:])]
    yield f"| {' | '.join(marks)} |"
    for row in table.rows:
        yield f"| {' | '.join(map(_plain, row))} |"
    for note in table.notes:
        yield from ("", _plain(note))


def _plain(text: str) -> str:
    """Escape everything that Markdown or HTML would take for markup, in one line."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|~$])", r"\\\1", text)
