"""How long the report of a study of 1,000 trials takes, how large it is, and how soon it opens.

    .venv/bin/python -m tests.benchmarks.report

The study is made up, over the quickstart's configurations. Seconds are of the wall clock; other
work on the machine shows in them.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from optimizer.commands.report import report_study
from tests.benchmarks.synthetic_tables import quickstart
from tests.browser import WIDTHS, browser, opened
from tests.unit.reported import studied

TRIALS = 1_000


def main() -> None:
    """Print a line for each figure."""
    space = quickstart().search_space
    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        results = Path(folder)
        studied(results / "large", TRIALS, space=space)
        # The first one compiles, or reads what was compiled.
        report_study(results, "large")
        begun = time.perf_counter()
        page = report_study(results, "large").page
        seconds = time.perf_counter() - begun
        print(f"{TRIALS} trials of {len(space)} configurations: written in {seconds:.1f} s")
        print(f"size: {page.stat().st_size / 1e6:.1f} MB")
        for width in WIDTHS:
            found = opened(chromium, page.as_uri(), width)
            loaded: float = found.page.evaluate(
                "performance.getEntriesByType('navigation')[0].loadEventEnd"
            )
            print(f"opened at {width} pixels: {loaded / 1000:.1f} s")


if __name__ == "__main__":
    main()
