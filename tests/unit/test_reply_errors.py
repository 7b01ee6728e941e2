"""Errors in replies name the step that failed."""

from __future__ import annotations

import pytest

from optimizer.triton.reply_errors import explained_error

GROUPS = [("classifier", "classifier"), ("labeller", "main"), ("top", "top")]
OF_CLASSIFIER = (
    "Failed to process the request(s) for model 'classifier_0', message: RuntimeError: no weights"
    "\n\nAt:\n  /models/classifier/1/model.py(21): execute\n"
)
OF_TOP = "Failed to process the request(s) for model 'top_0', message: "
NOT_READY = (
    "Model tokenizer - Error when running inference: Failed for execute the inference request. "
    "Model 'tokenizer' is not ready."
)


@pytest.mark.parametrize(
    ("text", "explained"),
    [
        (f"{OF_TOP}ValueError: 3 At: model.py", "ValueError: 3"),
        (f"in ensemble 'top', {OF_CLASSIFIER}", "step classifier: RuntimeError: no weights"),
        (f"INTERNAL: in ensemble 'top', {OF_CLASSIFIER}",
         "INTERNAL: step classifier: RuntimeError: no weights"),
        # A step of a BLS model, which repeats the message.
        (f"{OF_TOP}TritonModelException: {OF_CLASSIFIER}",
         "step classifier: RuntimeError: no weights"),
        # Its instance group has a name of its own, and it is on a GPU.
        ("in ensemble 'top', " + OF_CLASSIFIER.replace("classifier_0", "main_1_gpu0"),
         "step labeller: RuntimeError: no weights"),
        (OF_CLASSIFIER.replace("classifier_0", "other_0"), "step other: RuntimeError: no weights"),
        (f"{OF_TOP}TritonModelException: {NOT_READY}",
         f"TritonModelException: {NOT_READY} If top calls tokenizer by its own code, list it under "
         "source.calls."),
        ("in ensemble 'top', inference input 'TOKENS' data-type is 'INT32', but model 'classifier' "
         "expects 'INT64'",
         "in ensemble 'top', inference input 'TOKENS' data-type is 'INT32', but model 'classifier' "
         "expects 'INT64'"),
    ],
)  # fmt: skip
def test_the_innermost_model_is_named(text: str, explained: str) -> None:
    assert explained_error(text, "top", GROUPS) == explained
