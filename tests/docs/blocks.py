"""What README.md and docs/ tell a reader to type: commands, space files, Python, jobs."""

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
    """One fenced block of code."""

    place: str
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """One command line; `words` as a shell would split it, without its comment."""

    place: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


def blocks(language: str | None = None) -> list[Block]:
    """In the order of the pages, README.md first."""
    return [
        block
        for page in PAGES
        for block in _of_page(page)
        if language is None or block.language == language
    ]


def _of_page(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in _FENCED.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(f"{page.relative_to(ROOT)}:{line}", found[1], found[2])


def prose() -> Iterator[tuple[str, str]]:
    """Each page's name and its text without the fenced blocks."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        yield str(page.relative_to(ROOT)), _FENCED.sub("", text)


def commands() -> list[Command]:
    """Every command of the fenced blocks; what is repeated is there once."""
    found: dict[str, Command] = {}
    for block in blocks("bash"):
        for command in _commands(block):
            found.setdefault(str(command), command)
    return list(found.values())


def _commands(block: Block) -> Iterator[Command]:
    for line in block.text.replace("\\\n", " ").splitlines():
        words = tuple(shlex.split(line, comments=True))
        if words:
            yield Command(block.place, words)


def inline_commands() -> Iterator[Command]:
    """Commands of the optimizer that stand within a sentence."""
    for place, text in prose():
        for found in _INLINE.finditer(text):
            words = tuple(shlex.split(found[1])) if "python -m optimizer" in found[1] else ()
            if words and "COMMAND" not in words:
                yield Command(place, words)
