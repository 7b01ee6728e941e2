"""The example notebook, executed from its first cell to its last against a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from optimizer.study.directory import StudyDirectory
from tests.e2e import tiny
from tests.e2e.conftest import Built
from tests.e2e.running import ROOT, Marked

pytestmark = pytest.mark.timeout(300)

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
PLOTLY = "application/vnd.plotly.v1+json"


def shown(notebook: Any, source: str) -> dict[str, Any]:
    """What the cell that ends with this line has shown, by MIME type; printed text too."""
    [cell] = [c for c in notebook.cells if c.source.splitlines()[-1].startswith(source)]
    found: dict[str, Any] = {}
    for output in cell.outputs:
        if output.get("name") == "stderr":
            continue
        found |= output.get("data", {"text/plain": output.get("text", "")})
    return found


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_and_leaves_nothing_running(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked = Marked()
    environment = {
        "PYTHONPATH": str(ROOT),
        "OPTIMIZER_CACHE": str(built.cache),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter"),
        **marked.environment,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    space = tiny.write_space(tmp_path, tiny.space(parameters={"max_batch_size": [4, 16]}))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    [parameters] = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    names = {line.split(" = ")[0] for line in parameters.source.splitlines()}
    values = {
        "SPACE": str(space),
        "RESULTS": str(tmp_path / "results"),
        "TRIALS": 2,
        "WHAT_IF": {"batching": True, "max_batch_size": 8},
    }
    assert names == set(values)
    parameters.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())

    NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()

    assert "tiny: " in shown(notebook, 'print(f"for')["text/plain"]
    assert "fleet_usd_per_hour" in shown(notebook, "study.best")["text/plain"]
    trials = StudyDirectory(tmp_path / "results" / "tiny").trials.read_all()
    assert len(trials) == 2
    table = shown(notebook, "study.trials()")["text/html"]
    assert table.count("<tr") == 1 + len(trials)
    for figure in ("study.figure_history()", "study.figure_cost", "study.figure_load", ")"):
        assert shown(notebook, figure)[PLOTLY]["data"], figure
    assert "measured " in shown(notebook, 'print(f"predicted')["text/plain"]
    assert (tmp_path / "results" / "tiny" / "measured" / "00000" / "measured.json").exists()
    for cell in notebook.cells:
        said = [o.text for o in cell.get("outputs", []) if o.get("name") == "stderr"]
        # Optuna's progress bars would be widgets, were ipywidgets there; none is shown.
        assert [text for text in said if "TqdmWarning" not in text] == [], cell.source
    marked.wait_gone()
