"""What one GPU has to hold while it trains, part by part, for each way of spreading a model over GPUs.

The parts and who shares them follow ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054): with AdamW a parameter that
learns costs its weight, its gradient and two moments, in full precision together 16 bytes; ``zero3`` and ``fsdp2``
spread all of it over the GPUs and gather one layer at a time, in 16 bits. Activations follow from what a layer keeps
for its way back (Korthikanti et al. 2022, arXiv 2205.05198), which with checkpointing is its input alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from unireason_lib.planning.machines import Cluster, assumptions
from unireason_lib.planning.shapes import Shape

STRATEGIES = {
    "ddp": "all of the model on every GPU, all of it learns",
    "zero3": "weights, gradients and optimizer spread over the GPUs by DeepSpeed",
    "fsdp2": "the same by PyTorch",
    "lora": "frozen 16-bit weights on every GPU, adapters learn",
    "qlora": "frozen 4-bit weights on every GPU, adapters learn",
}

LEARNING = 16
"""Bytes of a parameter that learns: weight, gradient, two moments, each in 32 bits. (With a 16-bit copy at work and a
16-bit gradient beside a 32-bit master, as DeepSpeed keeps them, it is as much.)"""

QUANTISED = 0.5 + 0.127 / 8
"""Bytes of a 4-bit parameter with double quantisation (Dettmers et al. 2023, arXiv 2305.14314, section 3)."""

CHUNK = 1024
"""Tokens whose logits are there at once: TRL computes losses and log-probabilities in pieces."""

OTHER = 1.5e9
"""Bytes that CUDA, its libraries and communication take."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    Attributes:
        parts: Part -> bytes.
        limit: What may be used of the GPU.
        loading: Bytes before the first step: DeepSpeed puts all of a model on every GPU before it spreads it.
    """

    parts: dict[str, float]
    limit: float
    loading: float = 0.0

    @property
    def total(self) -> float:
        """All parts."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether they fit."""
        return max(self.total, self.loading) <= self.limit


def memory(
    shape: Shape,
    cluster: Cluster,
    strategy: str,
    tokens: int,
    *,
    rank: int = 16,
    checkpointing: bool = True,
    reference: bool = False,
    cache: int = 0,
) -> Memory:
    """What a GPU holds at most.

    Args:
        shape: Of the model.
        cluster: The GPUs.
        strategy: One of :data:`STRATEGIES`; or ``"frozen"`` or ``"frozen 4-bit"``, where nothing learns.
        tokens: Of one forward pass on a GPU, all of its samples together.
        rank: Of adapters.
        checkpointing: Whether activations are computed again.
        reference: Whether a frozen copy is needed beside it (KL term; adapters have theirs by being switched off).
        cache: Tokens whose keys and values are kept while replies are written.
    """
    half, spread = 2, cluster.count if strategy in ("zero3", "fsdp2") else 1
    adapters, quantised = strategy in ("lora", "qlora"), strategy in ("qlora", "frozen 4-bit")
    learns = (
        shape.adapters(rank) if adapters else 0 if strategy.startswith("frozen") else shape.language
    )
    frozen = shape.vision if learns == shape.language else shape.total
    parts: dict[str, float] = {}
    if quantised:
        small = shape.layers * shape.layer_matrices
        parts["frozen weights"] = QUANTISED * small + half * (frozen - small)
    else:
        # a fully trained model is float32 throughout, so that FSDP finds one type; DeepSpeed makes it 16 bits
        parts["frozen weights"] = (4 if strategy in ("ddp", "fsdp2") else half) * frozen / spread
    parts["weights, gradients, optimizer"] = LEARNING * learns / spread
    largest = max(shape.layer, shape.embedding)
    if spread > 1:  # layer by layer; to write replies in the trainer's process, the whole model
        parts["gathered weights"] = half * (shape.total if cache else 2 * largest)
    if strategy == "ddp":
        parts["16-bit copies"] = half * learns  # autocast keeps them for a step
        parts["buckets"] = 4.0 * learns / 20 if cluster.count > 1 else 0.0
    if reference and not adapters:
        parts["reference"] = half * shape.total / spread
    kept = half * (
        6 * shape.hidden + 2 * shape.keys + 4 * shape.intermediate
    )  # of a layer and token
    at_work = kept if not learns else 2 * kept if checkpointing else shape.layers * kept
    stored = shape.layers * half * shape.hidden if learns and checkpointing else 0
    parts["activations"] = float(tokens * (at_work + stored))
    parts["logits"] = 3.0 * 4 * min(tokens, CHUNK) * shape.vocabulary
    parts["keys and values"] = 2.0 * half * cache * shape.layers * shape.keys
    parts["CUDA and libraries"] = OTHER
    copies = 2 if reference and not adapters else 1
    return Memory(
        {name: value for name, value in parts.items() if value},
        assumptions()["reached"]["memory"] * cluster.memory,
        loading=half * shape.total * copies + OTHER if strategy == "zero3" else 0.0,
    )
