"""Names of the package: no banned word, and no class name twice."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import optimizer

PACKAGE = Path(optimizer.__file__).parent

BANNED_WORDS = {
    "found",
    "seen",
    "known",
    "said",
    "asked",
    "ended",
    "way",
    "ways",
    "place",
    "places",
    "setting",
    "outlook",
    "gap",
    "belief",
    "guide",
    "likeness",
    "wrongness",
    "untaught",
    "looked",
    "whereabouts",
    "introduce",
    "hold",
    "eight",
    "workshop",
    "workbench",
    "workplace",
    "pace",
}
"""Words that name nothing in this field, or that stood for several ideas at once."""


def definitions() -> Iterator[tuple[Path, str, bool]]:
    """Yield the name of each module, class and function, and whether it is a class."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, path.stem, False
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node.name, isinstance(node, ast.ClassDef)


def words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def test_words() -> None:
    expected = {"build", "location", "hold", "to", "http", "server"}
    assert words("_BuildLocation_hold_to2_HTTPServer") == expected


def test_no_name_has_a_banned_word() -> None:
    assert [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path, name, _ in definitions()
        if words(name) & BANNED_WORDS
    ] == []


def test_no_class_name_occurs_twice() -> None:
    classes = sorted(
        (name, str(path.relative_to(PACKAGE))) for path, name, is_class in definitions() if is_class
    )
    repeated = [list(group) for _, group in groupby(classes, key=lambda pair: pair[0])]
    assert [group for group in repeated if len(group) > 1] == []
