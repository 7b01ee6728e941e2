"""The code blocks and commands of README.md and docs/."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
LANGUAGES = ("bash", "json", "python", "text", "yaml")

_FENCED = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """One fenced block of code; `place` is its file and line."""

    place: str
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """One command line, split into words as a shell does, without its comment."""

    place: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


def blocks(language: str | None = None) -> list[Block]:
    """Return all blocks, or those of a language, in the order of the pages."""
    return [
        block
        for page in PAGES
        for block in _of_page(page)
        if language is None or block.language == language
    ]


def _of_page(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _FENCED.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(f"{page.relative_to(ROOT)}:{line}", match[1], match[2])


def prose() -> Iterator[tuple[str, str]]:
    """Yield each page's name and its text without the fenced blocks."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        yield str(page.relative_to(ROOT)), _FENCED.sub("", text)


def commands() -> list[Command]:
    """Return the distinct commands of the fenced blocks."""
    distinct: dict[str, Command] = {}
    for block in blocks("bash"):
        for command in _commands(block):
            distinct.setdefault(str(command), command)
    return list(distinct.values())


def _commands(block: Block) -> Iterator[Command]:
    for line in block.text.replace("\\\n", " ").splitlines():
        words = tuple(shlex.split(line, comments=True))
        if words:
            yield Command(block.place, words)


def inline_commands() -> Iterator[Command]:
    """Yield the optimizer's commands that are quoted within sentences."""
    for place, text in prose():
        for code in _INLINE.findall(text):
            words = tuple(shlex.split(code)) if "python -m optimizer" in code else ()
            if words and "COMMAND" not in words:
                yield Command(place, words)
