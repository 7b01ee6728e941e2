"""Attention in the form that graphs are exported with: an additive mask and an ordinary softmax.

PyTorch's own attention takes a boolean mask. Exported, it is looked up through an index of
[batch, 1, length, length, 2] integers, and each softmax is followed by a search for NaN, because a
row of the mask may exclude everything. Numbers that are added to the scores need neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

EXCLUDED = -3e4
"""Added to the scores of excluded positions: their share is 0, and FP16 holds the number."""


@contextmanager
def additive_attention() -> Iterator[None]:
    """Let models of `transformers` compute attention with additive masks while they are traced."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention
    from torch.overrides import TorchFunctionMode
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS
    from transformers.masking_utils import bidirectional_mask_function

    class Additive(TorchFunctionMode):  # type: ignore[misc]
        """Replaces PyTorch's attention by its parts."""

        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            """Call `function`, or its replacement."""
            del types
            called = _attention if function is scaled_dot_product_attention else function
            return called(*args, **(kwargs or {}))

    boolean_mask = MASKS["sdpa"]

    def mask(*, attention_mask: torch.Tensor | None = None, **options: Any) -> Any:
        """Return the mask that `transformers` would make, as numbers that are added."""
        included = None
        if attention_mask is not None:
            included = attention_mask[:, None, None, :].to(torch.float32)
        if options["mask_function"] is not bidirectional_mask_function:
            options["allow_is_causal_skip"] = False
            pattern = boolean_mask(attention_mask=None, **options)
            included = pattern if included is None else included * pattern.to(torch.float32)
        return None if included is None else _excluding(included)

    with ExitStack() as overridden, Additive():
        for name in ("eager", "sdpa"):
            MASKS[name] = mask
            overridden.callback(MASKS.__delitem__, name)
        yield


def _attention(  # noqa: PLR0913 - PyTorch's own signature
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Compute `torch.nn.functional.scaled_dot_product_attention`, without dropout."""
    import torch

    del dropout_p
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (each.repeat_interleave(groups, -3) for each in (key, value))
    # Both factors are scaled, since their product could overflow in FP16.
    root = math.sqrt(scale if scale is not None else 1 / math.sqrt(query.shape[-1]))
    scores = (query * root) @ (key * root).transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        boolean = attn_mask.dtype == torch.bool
        scores = scores + (_excluding(attn_mask) if boolean else attn_mask)
    return torch.softmax(scores, -1) @ value


def _excluding(included: torch.Tensor) -> torch.Tensor:
    """Return 0 where `included` is 1 or True, and `EXCLUDED` elsewhere."""
    import torch

    return (1 - included.to(torch.float32)) * EXCLUDED
