"""The page of the documentation that lists the architectures that were tried.

`python -m tests.e2e.architecture_page` serves each of them and writes the page.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from optimizer.artifacts.cache import versions
from optimizer.errors import OptimizerError
from tests.e2e.architectures import ARCHITECTURES, Architecture
from tests.e2e.served_architectures import ArchitectureBench, architecture_bench

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "architectures.md"

_LABEL = "tiny/onnxruntime/fp32"


def _cell(tensors: Mapping[str, Sequence[object]]) -> str:
    return ", ".join(f"`{name}` {list(shape)}" for name, shape in tensors.items())


def _row(bench: ArchitectureBench, architecture: Architecture) -> str:
    inputs = {name: spec["shape"] for name, spec in architecture.requests["inputs"].items()}
    shown, batches = "", ""
    try:
        served = bench.serve(architecture)
        shown = _cell({output.name: output.shape for output in served.outputs})
        assert served.shapes is not None
        batches = ", ".join(map(str, served.shapes.batch_sizes))
        result = "served"
    except OptimizerError as error:
        reason = str(error).splitlines()[-1].strip().removeprefix(f"{_LABEL}: ")
        result = f"refused: {reason}".replace("|", "\\|")
    listed = _cell(inputs).replace("'", "")
    return f"| {architecture.class_name} | {listed} | {shown} | {batches} | {result} |"


def page(bench: ArchitectureBench) -> str:
    """Return the page of the documentation."""
    libraries = versions("torch", "transformers", "onnxscript", "onnxruntime", "nvidia-pytriton")
    used = ", ".join(f"{name} {version}" for name, version in libraries.items())
    return "\n".join(
        [
            "# Architectures that were tried",
            "",
            "This table shows which classes of `transformers` can be a source. Each was built with"
            " a tiny random configuration,",
            "exported to ONNX, and served by ONNX Runtime on the embedded Triton server, from a"
            " space file to a load level with",
            "requests of all sizes.",
            "",
            "- The accuracy gate compared every output with the model's own, alone and in batches"
            " of the listed sizes.",
            "- The exported graph was also compared with the model at several sizes of the free"
            " dimensions.",
            "- Shapes are without the batch axis; -1 is any size.",
            "",
            f"Versions: {used}.",
            "",
            "| Class | Inputs | Outputs | Batches | Result |",
            "|---|---|---|---|---|",
            *(_row(bench, each) for each in ARCHITECTURES),
            "",
        ]
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with (
        TemporaryDirectory() as scratch,
        architecture_bench(Path(scratch), Path(scratch, "cache")) as shared,
    ):
        PAGE.write_text(page(shared))
