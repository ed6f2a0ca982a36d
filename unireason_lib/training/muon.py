"""Muon for the matrices of a small model, AdamW for the rest of it.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces the momentum of a weight matrix by the
nearest orthogonal matrix before it is added, so that all its directions learn at one pace. A step costs a few products
of small matrices more. Both parts are PyTorch's, the first in other arithmetic where bfloat16 is slow; what is here
makes them one optimizer, which trainers of transformers take as ``optimizer_cls_and_kwargs``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from unireason_lib.training.loss import fast_bfloat16


class FloatMuon(torch.optim.Muon):
    """PyTorch's Muon with the products of its Newton-Schulz iteration in the type of the gradients.

    PyTorch's own are in bfloat16, which a CPU without such instructions emulates: there they take a quarter of a step
    of the tiny model, these a twentieth. Steps agree within the rounding of bfloat16, and so do states, which either
    can load. Always with Nesterov's momentum and ``match_rms_adamw``.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """A step of all matrices that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                update = matrix.grad.lerp(state["momentum_buffer"], group["momentum"])
                update = orthogonal(
                    update, group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))
        return loss


def orthogonal(
    matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """The matrix with its singular values brought near 1 (Newton-Schulz iteration, Jordan et al. 2024).

    Args:
        matrix: (rows, columns).
        coefficients: Of the quintic polynomial that each iteration applies to the singular values.
        steps: Iterations.
        eps: Least norm that is divided by.
    """
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

    Args:
        model: Whose parameters learn. The weights of its linear layers go to Muon, but those of tied or output
            embeddings; embeddings, norms, biases and convolutions go to AdamW.
        lr: Rate of AdamW.
        muon_lr: Rate of Muon, whose steps are scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982).
        weight_decay: Of both; vectors have none.
        betas: Of AdamW.
        bf16: Whether Muon multiplies in bfloat16; None: where the machine does that fast.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        muon_lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        bf16: bool | None = None,
    ) -> None:
        matrices = list(_matrices(model))
        known = {id(parameter) for parameter in matrices}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
        muon = torch.optim.Muon if (fast_bfloat16() if bf16 is None else bf16) else FloatMuon
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            muon(matrices, lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                [
                    {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay},
                    {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
                ],
                lr=lr,
                betas=betas,
            ),
        )
        super().__init__([{"params": group["params"]} for group in self._groups()], {})
        self.param_groups = (
            self._groups()
        )  # the parts' own: what a schedule writes there, they read

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """A step of both."""
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of :meth:`state_dict`."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = self._groups()


def muon_factory() -> Callable[..., torch.optim.Optimizer]:
    """What transformers takes in place of a class: called without anything, it gives what is called with the model."""
    return MuonWithAdamW


def _matrices(model: nn.Module) -> Iterator[nn.Parameter]:
    embeddings = {
        id(module.weight)
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        if module is not None
    }
    for module in model.modules():
        if (
            isinstance(module, nn.Linear)
            and module.weight.requires_grad
            and id(module.weight) not in embeddings
        ):
            yield module.weight
