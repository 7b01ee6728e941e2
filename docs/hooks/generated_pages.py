"""Fills the generated parts of pages when the site is built.

A page holds `<!-- generated -->` and `<!-- /generated -->` around what stands there in the source,
so that links to it and its introduction work where the site is not built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from command_pages import command_line, errors_table
from mkdocs.structure.pages import Page
from record_page import records
from space_file_page import space_file

ROOT = Path(__file__).parents[2]
_PART = re.compile(r"<!-- generated -->.*?<!-- /generated -->", re.DOTALL)


def notebook() -> str:
    """Return the cells of the example notebook as Markdown, without its title."""
    path = ROOT / "examples" / "quickstart.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(parts).partition("\n")[2]


GENERATED: Mapping[str, Callable[[], str]] = {
    "reference/commands.md": command_line,
    "reference/exit-codes.md": errors_table,
    "reference/records.md": records,
    "reference/space-file.md": space_file,
    "tutorial/notebook.md": notebook,
}


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Replace a page's generated part (an event of MkDocs)."""
    make = GENERATED.get(page.file.src_uri)
    if make is None:
        return markdown
    text, count = _PART.subn(lambda _: make(), markdown)
    if count != 1:
        raise LookupError(f"docs/{page.file.src_uri}: needs one part between the generated marks")
    return text
