"""Cross entropy over the assistant's own tokens, without computing logits that nobody looks at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from unireason_lib.training.encoding import IGNORED


def fast_bfloat16() -> bool:
    """Whether this machine multiplies matrices in bfloat16 by instructions of its own.

    A GPU that has them, or a CPU with AVX512-BF16 or AMX. On a CPU without, bfloat16 is emulated and slower than
    float32 (``bench sft`` compares the two).
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def own_token_loss(
    model: Any, batch: Mapping[str, Any], tokens: torch.Tensor | int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a causal language model on its labelled tokens.

    The same number as the model's own loss. In a small model the output layer is as dear as all the others together,
    and in a grounded conversation four of five tokens are prompt or picture, so only the hidden states that predict a
    labelled token are turned into logits.

    Args:
        model: A ``Qwen2_5_VLForConditionalGeneration``.
        batch: Arguments of its forward pass, ``labels`` included.
        tokens: By how many labelled tokens the sum is divided; None takes those of this batch.

    Returns:
        The loss, and for every labelled token whether it was the likeliest.
    """
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    kept = targets != IGNORED
    logits = model.lm_head(hidden[kept]).float()
    total = functional.cross_entropy(logits, targets[kept], reduction="sum")
    return total / (kept.sum() if tokens is None else tokens), logits.detach().argmax(
        -1
    ) == targets[kept]
