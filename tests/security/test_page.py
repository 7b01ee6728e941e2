"""SECURITY.md names a test for each promise, and each test of this folder."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = re.findall(
    r"^\| (.+) \| `(tests/\S+?)::(test_\w+)` \|$", (ROOT / "SECURITY.md").read_text(), re.M
)


def names_in(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_promise_names_a_test_that_exists() -> None:
    assert len(ROWS) > 50
    missing = [f"{path}::{test}" for _, path, test in ROWS if test not in names_in(ROOT / path)]
    assert missing == []


def test_every_test_of_this_folder_holds_a_promise() -> None:
    named = {(path, test) for _, path, test in ROWS}
    own = {
        (path.relative_to(ROOT).as_posix(), test)
        for path in sorted((ROOT / "tests/security").glob("test_*.py"))
        if path.name != Path(__file__).name
        for test in names_in(path)
    }
    assert own - named == set()


def test_no_promise_is_made_twice() -> None:
    promises = [promise for promise, _, _ in ROWS]
    assert len(set(promises)) == len(promises)
