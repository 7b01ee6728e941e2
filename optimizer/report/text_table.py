"""A table of texts, as the terminal, a page and Markdown show it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextTable:
    """The first column is to the left, the others are figures, unless `texts` names them.

    Attributes:
        rows: each with a text for every column.
        notes: sentences below it.
        texts: columns that hold words.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
