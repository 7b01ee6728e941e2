"""Tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows as a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    """Return a cell on one line, with the bars outside code escaped."""
    plain = re.sub(r"\s+", " ", text)
    return plain if "`" in plain else plain.replace("|", "&#124;").replace("<", "&lt;")
