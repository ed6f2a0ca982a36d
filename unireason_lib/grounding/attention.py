"""Attention for generation on a CPU, registered with transformers when this module is imported.

PyTorch's kernel, made for many queries, takes twice as long for a single one in bfloat16 as in
float32. Here a single query is computed in the type of the cache (:mod:`~.cache`), float32.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from unireason_lib.grounding.cache import SDPA_ON_CPU


def sdpa_on_cpu(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, *args: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """transformers' ``sdpa``, with a single query in the type of the keys."""
    single = query.shape[2] == 1
    with torch.autocast("cpu", enabled=False) if single else nullcontext():
        output, _ = sdpa_attention_forward(module, query.to(key.dtype), key, *args, **options)
    return output.to(query.dtype), None


AttentionInterface.register(SDPA_ON_CPU, sdpa_on_cpu)
AttentionMaskInterface.register(SDPA_ON_CPU, sdpa_mask)
