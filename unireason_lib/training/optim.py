"""The arithmetic of a small model on a CPU: its optimizer, and scores of labelled tokens only.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces the momentum of a
weight matrix by the nearest orthogonal matrix before it is added, so that all its directions learn
at one pace. It is for the matrices of the layers; AdamW learns the rest. Both are PyTorch's.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import trl.trainer.utils
from torch import nn
from torch.nn import functional

FORBIDDEN_LOGIT = -1e4  # added for tokens that are never sampled: probability 0 in any type


@contextmanager
def token_scores(forbidden: Sequence[int] = ()) -> Iterator[None]:
    """Within it, TRL's log-probabilities and entropies are of a distribution without some tokens,
    and on a CPU of labelled tokens only: TRL's fused function of hidden states and output layer
    scores prompt and images too there, and all twice, which costs as much as all layers."""
    fused = trl.trainer.utils._ChunkedLogProbFunction

    def apply(hidden: Any, weight: Any, bias: Any, targets: Any, temperature: float, *rest: Any):
        if forbidden:
            bias = weight.new_zeros(weight.shape[0], requires_grad=False)
            bias[list(forbidden)] = FORBIDDEN_LOGIT
            bias.ds_status = getattr(weight, "ds_status", None)  # ZeRO-3 need not gather it
        if hidden.device.type != "cpu" or len(targets) > 16384:  # TRL's needs less memory
            return fused.apply(hidden, weight, bias, targets, temperature, *rest)
        logits = functional.linear(hidden, weight, bias).float()
        scores = (logits if temperature == 1 else logits / temperature).log_softmax(-1)
        with torch.no_grad():
            entropy = -scores.exp().mul_(scores).sum(-1)
            likeliest = scores.argmax(-1) == targets
        chosen = -functional.nll_loss(scores, targets, reduction="none")
        return chosen, entropy, None, None, likeliest

    ours = {"_ChunkedLogProbFunction": SimpleNamespace(apply=apply), "_use_triton": lambda _: True}
    with patch.multiple(trl.trainer.utils, **ours):
        yield


def fast_bfloat16() -> bool:
    """Whether this machine has instructions for matrices in bfloat16: a GPU that has them, or a CPU
    with AVX512-BF16 or AMX. Elsewhere bfloat16 is slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


class FloatMuon(torch.optim.Muon):
    """PyTorch's Muon with its Newton-Schulz iteration in the type of the gradients: bfloat16 takes
    a quarter of a step of the tiny model on a CPU without such instructions, this a twentieth.
    Steps agree within the rounding of bfloat16, and either loads the other's state."""

    def step(self, closure: Callable[[], float] | None = None) -> None:
        with patch("torch.optim._muon._zeropower_via_newtonschulz", _orthogonal):
            super().step(closure)


def _orthogonal(
    matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """The matrix with its singular values brought near 1 by a quintic iteration."""
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers in one; rates are scheduled together, states saved and loaded together.

    Weights of the model's linear layers go to Muon with the rate ``muon_lr``, except the output
    layer's; embeddings, norms, biases and convolutions go to AdamW. Muon's steps are scaled to the
    size of AdamW's (Liu et al. 2025, arXiv 2502.16982), and made in bfloat16 if ``bf16`` says so
    (None: where the machine is fast in it). Vectors do not decay."""

    def __init__(
        self,
        model: nn.Module,
        muon_lr: float,
        weight_decay: float = 0.0,
        bf16: bool | None = None,
        **adamw: Any,
    ) -> None:
        output = model.get_output_embeddings()
        linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not output]
        matrices = [m.weight for m in linear if m.weight.requires_grad]
        taken = set(map(id, matrices))
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
        muon = torch.optim.Muon if (fast_bfloat16() if bf16 is None else bf16) else FloatMuon
        vectors = {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0}
        groups, decay = [{"params": [p for p in rest if p.ndim > 1]}, vectors], weight_decay
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            muon(matrices, lr=muon_lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(groups, weight_decay=decay, **adamw),
        )
        super().__init__([{"params": group["params"]} for group in self._groups()], {})
        self.param_groups = self._groups()  # the parts' own: a schedule writes where they read

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = self._groups()
