"""Pages that are made when the site is built: the reference, the notebook, what has been run.

The reference comes from the command line itself, the schema of space files and the dataclasses of
the records; the notebook and what has been run on real hardware from the files that hold them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from command_pages import command_line, exit_codes
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from record_page import records
from space_file_page import space_file

ROOT = Path(__file__).parents[2]
RUN_ON_HARDWARE = "What has been run on real hardware, and what has not"
REAL_RUN = "A real run"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """What mkdocs calls when it has found the pages in the folder."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """Markdown by the page's path."""
    return {
        "hardware.md": section_of_readme(RUN_ON_HARDWARE),
        "reference/commands.md": command_line(),
        "reference/exit-codes.md": exit_codes(),
        "reference/records.md": records(),
        "reference/space-file.md": space_file(),
        "tutorial/notebook.md": notebook(ROOT / "examples" / "quickstart.ipynb"),
        "tutorial/real-run.md": section_of_readme(REAL_RUN, "../"),
    }


def section_of_readme(title: str, top: str = "") -> str:
    """A section of the README as a page; `top` leads from the page to the site's top."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise LookupError(f"README.md: needs a section {title!r}")
    return f"# {title}\n{found[1]}".replace("](docs/", f"]({top}")


def notebook(path: Path) -> str:
    """A notebook's cells as one page."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    note = f"This is `examples/{path.name}`, without what a run shows."
    return "\n\n".join([parts[0], note, *parts[1:]]) + "\n"
