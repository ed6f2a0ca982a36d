"""What fine-tuning and outcome RL are both told, and what their trainers are told of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch

from unireason_lib.training.loss import fast_bfloat16


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run goes, whatever is learnt in it.

    Attributes:
        epochs: Passes over the records; ``steps``, when given, counts instead.
        steps: Optimizer steps.
        learning_rate: Highest rate.
        schedule: Of transformers: ``"cosine"``, ``"linear"``, ``"constant_with_warmup"``, ...
        warmup: Share of the steps in which the rate rises.
        max_grad_norm: Of clipping.
        lora_rank: Rank of LoRA adapters; None trains the language model in full.
        lora_alpha, lora_dropout: Of LoRA.
        freeze_vision: Whether vision tower and merger stay as they are.
        bf16: Train in bfloat16 (autocast); False trains in the model's own type, None takes bfloat16 where the machine
            multiplies in it.
        fp16: Train in float16 (autocast and a loss scale), for GPUs that have no bfloat16.
        gradient_checkpointing: Trade time for memory.
        deepspeed: Path of a DeepSpeed configuration, or None. FSDP comes from the accelerate configuration.
        save_steps, log_steps: Steps between checkpoints, and between lines of the log.
        keep_checkpoints: How many to keep.
        seed: Of everything random.
        report_to: Tracker of transformers (``"tensorboard"``, ``"wandb"``, ``"trackio"``), or ``"none"``.
    """

    epochs: float = 1.0
    steps: int | None = None
    learning_rate: float = 1e-5
    schedule: str = "cosine"
    warmup: float = 0.03
    max_grad_norm: float = 1.0
    lora_rank: int | None = None
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    freeze_vision: bool = True
    bf16: bool | None = None
    fp16: bool = False
    gradient_checkpointing: bool = False
    deepspeed: str | None = None
    save_steps: int = 200
    log_steps: int = 10
    keep_checkpoints: int = 2
    seed: int = 0
    report_to: str = "none"

    @classmethod
    def from_profile(cls, section: Mapping[str, Any], **changes: Any) -> Self:
        """The settings of a profile's section; keys that are not of the trainer are passed over."""
        names = {field.name for field in fields(cls)}
        return cls(**{**{key: value for key, value in section.items() if key in names}, **changes})

    @property
    def in_bfloat16(self) -> bool:
        """What ``bf16`` comes to on this machine."""
        return fast_bfloat16() and not self.fp16 if self.bf16 is None else self.bf16

    def arguments(self, out: Path, progress: bool) -> dict[str, Any]:
        """What a trainer of transformers is told of it.

        Args:
            out: Folder of the run.
            progress: Whether to show bars.
        """
        return {
            "output_dir": str(out),
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": self.schedule,
            "warmup_steps": self.warmup,  # below 1: a share of the steps
            "max_grad_norm": self.max_grad_norm,
            "bf16": self.in_bfloat16,
            "fp16": self.fp16,
            "activation_checkpointing": self.gradient_checkpointing,
            "deepspeed": self.deepspeed,
            "save_steps": self.save_steps,
            "save_total_limit": self.keep_checkpoints,
            "logging_steps": self.log_steps,
            "seed": self.seed,
            "use_cpu": not torch.cuda.is_available(),
            "remove_unused_columns": False,
            "ddp_find_unused_parameters": False,  # all that learn are used in every step
            "report_to": self.report_to,
            "disable_tqdm": not progress,
        }


def spread_by() -> str | None:
    """What spreads weights over processes: ``"deepspeed"``, ``"fsdp"`` or None, as ``accelerate launch`` says."""
    for name in ("deepspeed", "fsdp"):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() in ("true", "1"):
            return name
    return None


def processes() -> int:
    """How many train together: what the launcher (torchrun, accelerate) says, before they have met."""
    return int(os.environ.get("WORLD_SIZE", 1))
