"""How OpenVINO is told to compute, in the code that runs inside Triton."""

from __future__ import annotations

import pytest

from optimizer.configuration.runtimes.openvino_session import inference_precision


@pytest.mark.parametrize(
    ("precision", "capabilities", "arithmetic"),
    [
        ("fp32", ["FP32", "BF16", "INT8"], "f32"),
        ("bf16", ["FP32", "BF16", "INT8"], "bf16"),
        ("int8", ["FP32", "BF16", "INT8"], "bf16"),
        # Elsewhere BF16 is emulated, which is slower than FP32.
        ("int8", ["FP32", "INT8"], "f32"),
        ("int8_dynamic", ["FP32", "BF16", "INT8"], "bf16"),
        ("int8_dynamic", ["FP32", "INT8"], "f32"),
    ],
)
def test_what_int8_leaves_is_computed_in_bf16_where_the_processor_has_it(
    precision: str, capabilities: list[str], arithmetic: str
) -> None:
    assert inference_precision(precision, capabilities) == arithmetic
