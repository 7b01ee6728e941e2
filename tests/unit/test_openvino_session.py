"""How OpenVINO is told to compute, in the template that runs inside Triton."""

from __future__ import annotations

import importlib.util

import pytest

from optimizer.files.shipped import shipped


@pytest.mark.parametrize(
    ("precision", "capabilities", "arithmetic"),
    [
        ("fp32", ["FP32", "BF16", "INT8"], "f32"),
        ("bf16", ["FP32", "BF16", "INT8"], "bf16"),
        ("int8", ["FP32", "BF16", "INT8"], "bf16"),
        # Elsewhere BF16 is emulated, which is slower than FP32.
        ("int8", ["FP32", "INT8"], "f32"),
    ],
)
def test_what_int8_leaves_is_computed_in_bf16_where_the_processor_has_it(
    precision: str, capabilities: list[str], arithmetic: str
) -> None:
    file = shipped("model_repository_templates") / "python" / "openvino_session.py"
    spec = importlib.util.spec_from_file_location("openvino_session", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.inference_precision(precision, capabilities) == arithmetic
