"""The table of runtimes: everything that a runtime must have beside its entry."""

from __future__ import annotations

import ast

import pytest

from optimizer.artifacts.builders import BUILDERS
from optimizer.configuration.runtimes import (
    HOSTED_PACKAGE,
    PRECISIONS_OF,
    RUNTIME_PACKAGE,
    RUNTIMES,
    STEP_RUNTIMES,
    session_file,
)
from optimizer.configuration.runtimes.spec import RuntimeSpec

SPECS = pytest.mark.parametrize("spec", RUNTIMES.values(), ids=RUNTIMES)


@SPECS
def test_every_precision_has_its_graph_or_none_has(spec: RuntimeSpec) -> None:
    served = {precision for of in spec.precisions.values() for precision in of}
    assert set(spec.graphs) in (served, set())


@SPECS
def test_a_runtime_that_the_python_backend_hosts_has_a_session(spec: RuntimeSpec) -> None:
    hosted = set(spec.precisions) - set(spec.native_on)
    assert bool(hosted) == (spec.package is not None)
    assert (spec.name in RUNTIME_PACKAGE) == (bool(hosted) and not spec.step)
    assert session_file(spec.name).exists() == bool(hosted)


@pytest.mark.parametrize("runtime", HOSTED_PACKAGE)
def test_a_session_needs_nothing_of_this_package(runtime: str) -> None:
    nodes = ast.walk(ast.parse(session_file(runtime).read_text()))
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    assert not [module for module in modules if module and module.startswith("optimizer")]


def test_tables_are_derived_from_the_runtimes() -> None:
    assert BUILDERS.keys() == RUNTIMES.keys()
    assert {"tokenizers", "softmax"} == STEP_RUNTIMES
    models = {"onnxruntime", "openvino", "pytorch", "repository"}
    assert PRECISIONS_OF["KIND_CPU"].keys() == models | STEP_RUNTIMES
    assert PRECISIONS_OF["KIND_GPU"].keys() == {"onnxruntime", "pytorch", "tensorrt", "repository"}
