"""The tokenizers package: tokenizer.json, the first step of a generated pipeline."""

from __future__ import annotations

from optimizer.configuration.runtimes.spec import RuntimeSpec

TOKENIZERS = RuntimeSpec(
    name="tokenizers",
    precisions={"KIND_CPU": ("as_deployed",)},
    package="tokenizers",
    step=True,
)
