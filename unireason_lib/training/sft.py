"""Supervised fine-tuning: TRL's ``SFTTrainer`` on grounded conversations.

What is ours is little: which parameters learn (the language model; vision tower and merger are
frozen, as in the paper), batches of similar length, and on one CPU a loss that computes logits for
labelled tokens only. Optimizer, schedule, accumulation, checkpoints, mixed precision, DeepSpeed,
FSDP and trackers are the trainer's, configured by the section ``sft`` of a profile.

    records -> Examples -> [features of the frozen tower] -> SFTTrainer -> model/, log.jsonl
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import DistributedType
from torch.nn import functional
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTConfig, SFTTrainer

from unireason_lib.config import Grounding, Profile
from unireason_lib.dataset.schema import Record
from unireason_lib.errors import DatasetError
from unireason_lib.grounding.model import base_model
from unireason_lib.io import read_lines
from unireason_lib.training.callbacks import LOG, RunLog, sharding
from unireason_lib.training.checkpoints import (
    ExactResume,
    count_parameters,
    open_run,
    run_settings,
    save_model,
    train,
    trainer_arguments,
)
from unireason_lib.training.data import Examples, Images
from unireason_lib.training.encoding import IGNORED, Collator, FeatureCollator
from unireason_lib.training.optim import MuonWithAdamW

LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""Linear layers of the language model. A regular expression, because plain names would also fit the
vision tower."""


def train_sft(
    model: Any,
    processor: Any,
    records: Sequence[Record],
    images: Images,
    out: str | Path,
    profile: Profile,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    progress: bool = False,
) -> Path:
    """Fine-tune a model on grounded records; a stopped run goes on from its last checkpoint.

    Args:
        model, processor: From :func:`unireason_lib.grounding.load_model`. The model is changed in
            place.
        records: What to learn from.
        images: Gives the images of a record.
        out: Folder of the run (:mod:`unireason_lib.training.checkpoints`), with ``too_long.jsonl``
            when records were cut or left out.
        profile: All settings: sections ``sft`` and ``grounding``.
        callbacks: Of the trainer, such as :class:`~unireason_lib.training.callbacks.FreeRunning`.
        progress: Whether to show bars.

    Returns:
        ``out/model``: a checkpoint in plain transformers form, or a PEFT adapter.

    Raises:
        DatasetError: No record is left to train on; another process trains in the folder, or it
            holds another run; the disk is full.
        TrainingError: Settings that do not fit together, or a loss that is not finite.
    """
    out, ours = Path(out), profile.grounding
    section, ready = profile.sft.model_dump(), {"skip_prepare_dataset": True}
    arguments = trainer_arguments(SFTConfig, section, out, progress, dataset_kwargs=ready)
    with open_run(out, run_settings(profile, "sft"), model, records):
        if (out / "model").is_dir():
            return out / "model"
        added = add_think_tokens(model, processor)
        freeze(model, ours.freeze_vision)
        examples = Examples(
            records,
            images,
            processor,
            components=ours.components,
            max_length=profile.sft.max_length,
            keep=ours.feature_cache,
            too_long=out / "too_long.jsonl",
            progress=progress,
        )
        if not len(examples):
            too_long = len(read_lines(out / "too_long.jsonl"))
            found = f"{len(records)} records, {too_long} of them too long"
            do = "give more records, or a larger sft.max_length"
            raise DatasetError(out, "records to train on", found, do)
        collator = FeatureCollator(processor, model) if ours.feature_cache else Collator(processor)
        if ours.feature_cache:
            collator.add([image for one in examples.kept for image in one.images], progress)
        trainer = GroundedSFTTrainer(
            model=model,
            args=arguments,
            # TRL asks for a datasets.Dataset: it holds row numbers, workers look the examples up
            train_dataset=datasets.Dataset.from_dict({"row": range(len(examples))}),
            data_collator=partial(_collate, examples, collator),
            lengths=examples.lengths,
            processing_class=processor,
            peft_config=lora_config(ours.sft_lora_r, model, ours, added),
            callbacks=[RunLog(out / LOG), *callbacks],
            optimizer_cls_and_kwargs=_muon(profile, arguments),
        )
        keep_full_precision(trainer)
        train(trainer, out)
        return save_model(trainer, processor, out / "model", records)


def _collate(examples: Examples, collator: Collator, rows: Sequence[Mapping[str, int]]) -> Any:
    return collator([examples[row["row"]] for row in rows])


class GroundedSFTTrainer(ExactResume, SFTTrainer):
    """TRL's trainer with batches of similar length and, on one CPU, logits of labelled tokens only.

    Args:
        lengths: Tokens of every example of ``train_dataset``.
    """

    def __init__(self, *args: Any, lengths: Sequence[int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lengths, self.order = list(lengths), torch.Generator()
        # transformers says no for this architecture; then every forward pass of a step would weigh
        # the same, however few words it holds. The losses here divide by the tokens of the step.
        self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        args = self.args
        size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return LengthGroupedSampler(size, lengths=self.lengths, generator=self.order)

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> None:
        """The order follows from seed and epoch alone: a run that is resumed in its second epoch
        sees what it would have seen."""
        self.order.manual_seed(self.args.seed + epoch)
        super()._run_epoch(*args, epoch=epoch, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """On one CPU :func:`labelled_token_loss`, else TRL's. Both give the same number, but
        without a Triton kernel TRL's computes the logits of all tokens, which doubles a step."""
        one_process = self.accelerator.distributed_type == DistributedType.NO
        if not one_process or self.args.device.type != "cpu" or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self.accelerator.autocast():
            loss, right = labelled_token_loss(base_model(model), inputs, num_items_in_batch)
        self._total_train_tokens += int(inputs["attention_mask"].sum())
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        self._metrics["train"]["mean_token_accuracy"].append(right.float().mean().item())
        return loss


def labelled_token_loss(
    model: Any, batch: Mapping[str, Any], tokens: torch.Tensor | int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's own loss, with logits for labelled tokens only: in a small model the output layer
    costs as much as all layers, and four of five tokens are prompt or image.

    Args:
        model: A ``Qwen2_5_VLForConditionalGeneration``.
        batch: Arguments of its forward pass, ``labels`` included.
        tokens: Labelled tokens by which the sum is divided; None takes those of this batch.

    Returns:
        The loss, and for every labelled token whether it was the likeliest.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    kept = labels != IGNORED
    targets, logits = labels[kept], model.lm_head(hidden[kept]).float()
    total = functional.cross_entropy(logits, targets, reduction="sum")
    right = logits.detach().argmax(-1) == targets
    return total / (kept.sum() if tokens is None else tokens), right


def freeze(model: Any, vision: bool = True) -> tuple[int, int]:
    """Let the language model learn, and vision tower and merger too unless they are frozen.

    Returns:
        Parameters that learn, and parameters that do not.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # 4-bit weights never do
    base_model(model).model.visual.requires_grad_(not vision)
    return count_parameters(model)


def keep_full_precision(trainer: Any) -> None:
    """Keep what learns in float32, and multiply in 16 bits under autocast.

    Small updates would be lost in the rounding of a bfloat16 weight, and the loss scale of float16
    takes no other type. Of a fully trained model that is all of it, so that FSDP finds one type;
    under adapters the frozen weights stay as they are. DeepSpeed keeps a copy itself. TRL makes
    adapters of 4-bit weights bfloat16, which is undone here.
    """
    if trainer.is_deepspeed_enabled:
        return
    if base_model(trainer.model) is trainer.model:
        trainer.model.float()
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def add_think_tokens(model: Any, processor: Any) -> list[int]:
    """Add ``<think>`` and ``</think>`` as special tokens where the tokenizer lacks them.

    The embedding grows only when the tokenizer is longer than it: checkpoints are padded, and
    ``resize_token_embeddings(len(tokenizer))`` would cut them. The rows of the new tokens, grown or
    padding that nobody trained, begin as the mean of the old ones.

    Returns:
        Ids of the tokens that were added.
    """
    tokenizer = processor.tokenizer
    vocabulary, known = tokenizer.get_vocab(), len(tokenizer)
    missing = [token for token in ("<think>", "</think>") if token not in vocabulary]
    if missing:
        new = {"additional_special_tokens": missing}
        tokenizer.add_special_tokens(new, replace_extra_special_tokens=False)
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            model.tie_weights()
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                layer.weight[known : len(tokenizer)] = layer.weight[:known].mean(0)
    return tokenizer.convert_tokens_to_ids(missing)


def lora_config(r: int | None, model: Any, grounding: Grounding, added: Sequence[int] = ()) -> Any:
    """PEFT's configuration of adapters in the language model's layers; None without a rank.

    Args:
        r: Rank of the adapters.
        model: What gets them.
        grounding: The profile's section: ``lora_alpha``, ``lora_dropout``.
        added: Ids of added tokens, whose rows of the embedding learn besides.
    """
    if r is None:
        return None
    from peft import LoraConfig

    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    matrices = ("embed_tokens",) if tied else ("embed_tokens", "lm_head")
    return LoraConfig(
        trainable_token_indices={name: list(added) for name in matrices} if added else None,
        r=r,
        lora_alpha=grounding.lora_alpha,
        lora_dropout=grounding.lora_dropout,
        target_modules=LORA_TARGETS,
        task_type="CAUSAL_LM",
    )


def _muon(profile: Profile, arguments: SFTConfig) -> tuple[Any, dict[str, Any]] | None:
    """Muon beside AdamW where a full model learns in one piece; None leaves it to the trainer."""
    ours, sharded = profile.grounding, arguments.deepspeed or sharding()
    if not ours.muon_learning_rate or ours.sft_lora_r is not None or sharded:
        return None
    return lambda: MuonWithAdamW, {  # a factory, because it is given the model, not parameters
        "lr": arguments.learning_rate,
        "muon_lr": ours.muon_learning_rate,
        "weight_decay": arguments.weight_decay,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "bf16": arguments.bf16,
    }
