"""`transformers` classes, each from its space file to load on the real server, or refused.

`CASES=all` serves all of them; by default every fifth.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from optimizer.errors import OptimizerError
from tests.e2e.architecture_page import PAGE
from tests.e2e.architectures import ARCHITECTURES, Architecture
from tests.e2e.served_architectures import (
    GATED_BATCHES,
    ArchitectureBench,
    architecture_bench,
)
from tests.sampling import sampled

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def bench(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArchitectureBench]:
    folder = tmp_path_factory.mktemp("bench")
    with architecture_bench(folder, artifacts / "models") as bench:
        yield bench


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    sampled(ARCHITECTURES, every=5),
    ids=lambda architecture: f"{architecture.class_name}-{ARCHITECTURES.index(architecture)}",
)
def test_an_architecture_is_served_or_refused(
    bench: ArchitectureBench, architecture: Architecture
) -> None:
    if architecture.refusal:
        with pytest.raises(OptimizerError) as raised:
            bench.serve(architecture)
        assert architecture.refusal in str(raised.value)
        return
    served = bench.serve(architecture)
    assert served.shapes is not None
    assert served.shapes.batch_sizes == GATED_BATCHES
    assert served.replies > 0
    assert served.failed == 0


def test_the_page_lists_every_architecture() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    for row, architecture in zip(rows, ARCHITECTURES, strict=True):
        assert row.startswith(f"| {architecture.class_name} |")
        assert ("| refused: " in row) == bool(architecture.refusal)
        assert row.endswith("| served |") != bool(architecture.refusal)
