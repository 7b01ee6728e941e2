from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_a_notebook_is_kept_without_what_a_run_left_in_it(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
        assert not re.search(r"""["'\s](/|~/|[A-Z]:\\)\w""", cell.source), "a path of one machine"


def test_there_is_an_example() -> None:
    assert [path.name for path in EXAMPLES] == ["quickstart.ipynb"]
