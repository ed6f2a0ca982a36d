"""How the tiny base learns: a plan of stages, one loop, checkpoints, and tests of its skills on held-out exercises.

Tying an option's text to its letter is a skill of its own, and it comes abruptly; so it is taught first, on text
alone, where a sample costs little: single words and nothing but the letter, then phrases, with filler between options
and answer, so that it does not depend on their distance. Then the model learns to point, then everything together.
The loop is transformers' ``Trainer``: batches are numbered, every one follows from its number, so a run that is killed
goes on exactly where its last checkpoint was.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from unireason_lib.training.base.skills import measure
from unireason_lib.training.base.tasks import exercise
from unireason_lib.training.checkpoints import ExactResume, latest, save_model
from unireason_lib.training.encoding import Collator, Encoded, Encoder
from unireason_lib.training.logbook import Logbook, Probe
from unireason_lib.training.loss import own_token_loss

Groups = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Plan:
    """What is learnt when.

    Attributes:
        stages: (Share of the steps, groups of every step in that stage as (stage of exercises, how many)). Every
            step has the same number of groups; one group is one forward pass, so that short samples are not
            padded to the length of long ones.
        steps: Optimizer steps in all.
        learning_rate: Highest rate, reached after ``warmup`` steps, then falling along a cosine to a tenth.
        warmup: Steps.
        seed: Of the exercises.
    """

    stages: tuple[tuple[float, Groups], ...] = (
        (0.10, (("letters", 40), ("letters", 40), ("letters", 40))),
        (0.10, (("text", 24), ("text", 24), ("text", 24))),
        (0.20, (("pointing", 24), ("pointing", 24), ("text", 16))),
        (0.60, (("one picture", 32), ("several pictures", 8), ("text", 12))),
    )
    steps: int = 3000
    learning_rate: float = 1e-3
    warmup: int = 100
    seed: int = 0

    def groups(self, step: int) -> Groups:
        """The groups of a step."""
        end = 0.0
        for share, groups in self.stages:
            end += share * self.steps
            if step < round(end):
                return groups
        return self.stages[-1][1]

    @property
    def per_step(self) -> int:
        """Groups of a step."""
        return len(self.stages[0][1])


class Batches(Dataset):
    """Numbered groups of encoded exercises."""

    def __init__(self, plan: Plan, processor: Any) -> None:
        self.plan, self.encode = plan, Encoder(processor)

    def __len__(self) -> int:
        return self.plan.steps * self.plan.per_step

    def __getitem__(self, index: int) -> list[Encoded]:
        step, place = divmod(index, self.plan.per_step)
        stage, count = self.plan.groups(step)[place]
        first = 1000 * index
        return [self.encode(exercise(stage, first + k, self.plan.seed).messages) for k in range(count)]


class BaseTrainer(ExactResume, Trainer):
    """``Trainer`` whose loss looks at labelled tokens only, and whose rate ends at a tenth."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        return own_token_loss(model, inputs, num_items_in_batch)[0]


def pretrain(
    start: str | Path,
    out: str | Path,
    plan: Plan | None = None,
    *,
    save_steps: int = 100,
    measure_steps: int = 250,
    measure_size: int = 64,
    workers: int = 1,
    progress: bool = False,
) -> Path:
    """Train a fresh tiny checkpoint on generic exercises; a run that was stopped goes on.

    Args:
        start: A checkpoint of :func:`unireason_lib.grounding.build_tiny`.
        out: Folder of the run: ``checkpoint-*``, ``log.jsonl``, at the end ``model/``.
        plan: What is learnt when.
        save_steps: Steps between checkpoints; two are kept.
        measure_steps: Steps between tests of the skills.
        measure_size: Held-out exercises of each test.
        workers: Processes that make exercises beside the training.
        progress: Whether to show a bar.

    Returns:
        Folder of the finished model.
    """
    from unireason_lib.grounding import load_model

    plan, out = plan or Plan(), Path(out)
    if (out / "model").is_dir():
        return out / "model"
    model, processor = load_model(start, dtype="float32", device="cpu")
    model.requires_grad_(True)
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=plan.steps,
        per_device_train_batch_size=1,  # one item is a whole group
        gradient_accumulation_steps=plan.per_step,
        train_sampling_strategy="sequential",
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=plan.warmup,
        weight_decay=0.01,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        logging_steps=10,
        save_steps=save_steps,
        save_total_limit=2,
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=4 if workers else None,
        dataloader_persistent_workers=workers > 0,
        remove_unused_columns=False,
        use_cpu=True,
        seed=plan.seed,
        report_to="none",
        disable_tqdm=not progress,
    )
    skills = Probe("skills", measure_steps, partial(measure, size=measure_size))
    collate = Collator(processor)
    trainer = BaseTrainer(
        model=model,
        args=arguments,
        train_dataset=Batches(plan, processor),
        data_collator=lambda items: collate(items[0]),
        callbacks=[Logbook(out / "log.jsonl", processor, [skills])],
    )
    trainer.train(resume_from_checkpoint=latest(out))
    return save_model(model, processor, out / "model")
