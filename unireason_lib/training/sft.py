"""Supervised fine-tuning: TRL's ``SFTTrainer`` on grounded conversations.

What is ours is little: which parameters learn (the language model; vision tower and merger are frozen, as in the
paper), batches of like length, and on one CPU a loss that computes logits for labelled tokens only. Everything else
(optimizer, schedule, accumulation, checkpoints, resume, mixed precision, DeepSpeed, FSDP, trackers) is the trainer's.

    records -> Examples (encoded once) -> [Features of the frozen tower] -> SFTTrainer -> model/, log.jsonl
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import DistributedType
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTConfig, SFTTrainer

from unireason_lib.dataset.schema import Record
from unireason_lib.errors import DatasetError
from unireason_lib.grounding.model import base_model
from unireason_lib.training.card import model_card
from unireason_lib.training.checkpoints import (
    ExactResume,
    keep_settings,
    save_model,
    serialization_of,
    train,
)
from unireason_lib.training.encoding import Collator
from unireason_lib.training.examples import Examples, FeatureCollator, Images, read_too_long
from unireason_lib.training.logbook import Logbook, Probe
from unireason_lib.training.loss import own_token_loss
from unireason_lib.training.muon import muon_factory
from unireason_lib.training.settings import RunSettings, spread_by

LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""Linear layers of the language model. A regular expression, because plain names would also hit the vision tower."""


@dataclass(frozen=True, kw_only=True)
class SFTSettings(RunSettings):
    """How to fine-tune; the paper's values are in ``gpu.yaml``. See :class:`RunSettings` for the rest.

    Attributes:
        form: What the reply holds; see :mod:`unireason_lib.training.forms`.
        weight_decay: Of the optimizer.
        muon: Rate of Muon, which then learns the matrices of the layers while AdamW, at ``learning_rate``, learns the
            rest (:mod:`unireason_lib.training.muon`); 0: AdamW learns all, as in the paper. Adapters and sharded
            weights (DeepSpeed) are AdamW's in any case.
        batch_size: Examples of one forward pass on one device.
        accumulation: Forward passes of one step.
        max_length: Longest example in tokens.
        keep_examples: Encode all records before the first step and keep them.
        keep_features: Encode all pictures with the frozen tower before the first step and keep what it makes.
        workers: Loader processes.
    """

    form: str = "full"
    weight_decay: float = 0.0
    muon: float = 0.0
    batch_size: int = 2
    accumulation: int = 4
    max_length: int = 40_960
    keep_examples: bool = True
    keep_features: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        if self.keep_features and not (self.freeze_vision and self.keep_examples):
            raise DatasetError(
                "keep_features",
                "a frozen vision tower and kept examples",
                f"freeze_vision={self.freeze_vision}, keep_examples={self.keep_examples}",
                "freeze the tower and keep the examples, or do not keep features",
            )


@dataclass(frozen=True)
class Rows:
    """Rows of the trainer's data set (numbers of examples) -> a batch. A class, because the loader's processes are sent
    it where the system starts them afresh (macOS, Windows, Python from 3.14 on)."""

    examples: Examples
    collator: Collator

    def __call__(self, rows: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """The batch."""
        return self.collator([self.examples[row["row"]] for row in rows])


class LikeLengths(LengthGroupedSampler):
    """Batches of like length, in an order that follows from seed and epoch alone: a run that goes on in its second
    epoch sees what it would have seen.

    Args:
        size: Examples that should be of like length.
        lengths: Tokens of every example.
        seed: Of the order.
        epoch: Tells the epoch that begins. (``set_epoch`` of the loader does not reach a sampler behind the wrappers
            that resuming and several processes put around it.)
    """

    def __init__(
        self, size: int, lengths: Sequence[int], seed: int, epoch: Callable[[], int]
    ) -> None:
        super().__init__(size, lengths=list(lengths), generator=torch.Generator())
        self.seed, self.epoch = seed, epoch

    def __iter__(self) -> Any:
        self.generator.manual_seed(self.seed + self.epoch())
        return super().__iter__()


class GroundedSFTTrainer(ExactResume, SFTTrainer):
    """TRL's trainer with batches of like length and, on one CPU, no logits that nobody looks at.

    Args:
        lengths: Tokens of every example of ``train_dataset``.
    """

    def __init__(self, *args: Any, lengths: Sequence[int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lengths = list(lengths)
        # transformers says no for this architecture; then every forward pass of a step would weigh the same, however
        # few words it holds, and 16 x 2 examples would not be 32. The losses used here do divide by the step's tokens.
        self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        size = (
            self.args.train_batch_size
            * self.args.gradient_accumulation_steps
            * self.args.world_size
        )
        return LikeLengths(
            size, self.lengths, self.args.seed, lambda: int((self.state.epoch or 0) + 1e-6)
        )

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # a launcher wraps the model even for a single process
        alone = (
            self.accelerator.distributed_type == DistributedType.NO
            and self.args.device.type == "cpu"
        )
        if not alone or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        mode = "train" if self.model.training else "eval"
        with self.accelerator.autocast():
            loss, right = own_token_loss(base_model(model), inputs, num_items_in_batch)
        self._total_train_tokens += int(inputs["attention_mask"].sum()) if mode == "train" else 0
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        self._metrics[mode]["mean_token_accuracy"].append(right.float().mean().item())
        return loss


def fine_tune(
    model: Any,
    processor: Any,
    records: Sequence[Record],
    pictures: Images,
    out: str | Path,
    settings: SFTSettings | None = None,
    *,
    probes: Sequence[Probe] = (),
    progress: bool = False,
) -> Path:
    """Fine-tune a model on grounded records; a run that was stopped goes on from its last checkpoint.

    Args:
        model, processor: From :func:`unireason_lib.grounding.load_model`. The model is changed in place.
        records: What to learn from.
        pictures: Gives the pictures of a record.
        out: Folder of the run: ``settings.json``, ``log.jsonl``, ``checkpoint-*``, ``too_long.jsonl`` when records were
            cut or left out, and at the end ``model/``.
        settings: How.
        probes: Measured now and then while training, into the log.
        progress: Whether to show bars.

    Returns:
        ``out/model``: a checkpoint in plain transformers form, or a PEFT adapter.

    Raises:
        DatasetError: No record is left to train on, or the folder holds a run with other settings.
    """
    settings, out = settings or SFTSettings(), Path(out)
    if probes and spread_by() == "fsdp":
        warnings.warn(
            "weights are spread by FSDP: no free-running tests while training", stacklevel=2
        )
        probes = ()
    arguments = _arguments(settings, out, progress)
    with arguments.main_process_first(local=False, desc="settings"):
        keep_settings(out, asdict(settings), records)
    if (out / "model").is_dir():
        return out / "model"
    added = add_thought_tokens(model, processor)
    freeze(model, settings.freeze_vision)
    examples = Examples(
        records,
        pictures,
        processor,
        form=settings.form,
        max_length=settings.max_length,
        keep=settings.keep_examples,
        listed=out / "too_long.jsonl",
        progress=progress,
    )
    if not len(examples):
        raise DatasetError(
            out,
            "records to train on",
            f"{len(records)} records, {len(read_too_long(out / 'too_long.jsonl'))} of them too long",
            "give more records, or a larger max_length",
        )
    if settings.keep_features:
        collator = FeatureCollator(processor, model)
        collator.features.add([p for one in examples.kept for p in one.pictures], progress)
    else:
        collator = Collator(processor)
    trainer = GroundedSFTTrainer(
        model=model,
        args=arguments,
        # TRL asks for a datasets.Dataset: it holds row numbers, the loader's workers look the examples up
        train_dataset=datasets.Dataset.from_dict({"row": range(len(examples))}),
        data_collator=Rows(examples, collator),
        lengths=examples.lengths,
        processing_class=processor,
        peft_config=lora(settings, model, added),
        callbacks=[Logbook(out / "log.jsonl", processor, probes)],
        optimizer_cls_and_kwargs=_optimizer(settings),
    )
    full_precision(trainer.model, settings)
    counted = count_parameters(trainer.model)
    train(trainer, out)
    card = partial(model_card, out, "sft", trainer.model, counted)
    return save_model(trainer, processor, out / "model", card, serialization_of(records))


def full_precision(model: Any, settings: RunSettings) -> None:
    """What learns is kept in float32 and multiplied in 16 bits under autocast: small updates would be lost in the
    rounding of a bfloat16 weight, and the loss scale of float16 takes no other. Of a fully trained model that is all of
    it, so that FSDP finds one type; under adapters the frozen weights stay as they are. (DeepSpeed keeps a copy itself;
    TRL makes adapters of 4-bit weights bfloat16, which is undone here.)"""
    if settings.deepspeed is not None or spread_by() == "deepspeed":
        return
    if settings.lora_rank is None:
        model.float()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def freeze(model: Any, vision: bool = True) -> tuple[int, int]:
    """Let the language model learn, and vision tower and merger too unless they are frozen.

    Returns:
        Parameters that learn, and parameters that do not.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # 4-bit weights never do
    base_model(model).model.visual.requires_grad_(not vision)
    return count_parameters(model)


def count_parameters(model: Any) -> tuple[int, int]:
    """Parameters that learn, and parameters that do not."""
    packed = {"Params4bit": 2}  # two to a byte
    sizes = [
        (p.numel() * packed.get(type(p).__name__, 1), p.requires_grad) for p in model.parameters()
    ]
    learns = sum(size for size, needed in sizes if needed)
    return learns, sum(size for size, _ in sizes) - learns


def add_thought_tokens(model: Any, processor: Any) -> list[int]:
    """Add ``<think>`` and ``</think>`` as special tokens where the tokenizer lacks them.

    The embedding grows only when the tokenizer is longer than it: checkpoints are padded, and
    ``resize_token_embeddings(len(tokenizer))`` would cut them. The rows of the new tokens, grown or padding that
    nobody trained, begin as the mean of the old ones; with tied embeddings the output layer is the same matrix.

    Returns:
        Ids of the tokens that were added.
    """
    tokenizer = processor.tokenizer
    vocabulary, known = tokenizer.get_vocab(), len(tokenizer)
    missing = [token for token in ("<think>", "</think>") if token not in vocabulary]
    if missing:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": missing}, replace_extra_special_tokens=False
        )
        embedding = model.get_input_embeddings()
        if len(tokenizer) > embedding.num_embeddings:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            model.tie_weights()
        with torch.no_grad():
            for matrix in (
                model.get_input_embeddings().weight,
                model.get_output_embeddings().weight,
            ):
                matrix[known : len(tokenizer)] = matrix[:known].mean(0)
    return tokenizer.convert_tokens_to_ids(missing)


def lora(settings: RunSettings, model: Any, added: Sequence[int] = ()) -> Any:
    """Adapters of the language model's layers; tokens that were added learn their rows of the embedding besides.

    Args:
        settings: Of the run; without a rank there are no adapters.
        model: What gets them.
        added: Ids of added tokens.
    """
    if settings.lora_rank is None:
        return None
    from peft import LoraConfig

    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    rows = {
        matrix: list(added)
        for matrix in (("embed_tokens",) if tied else ("embed_tokens", "lm_head"))
    }
    return LoraConfig(
        trainable_token_indices=rows if added else None,
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=LORA_TARGETS,
        task_type="CAUSAL_LM",
    )


def _optimizer(settings: SFTSettings) -> tuple[Any, dict[str, Any]] | None:
    """What the trainer is to build; None: what its arguments say."""
    if (
        not settings.muon
        or settings.lora_rank is not None
        or settings.deepspeed is not None
        or spread_by()
    ):
        return None
    return muon_factory, {
        "lr": settings.learning_rate,
        "muon_lr": settings.muon,
        "weight_decay": settings.weight_decay,
        "bf16": settings.in_bfloat16,
    }


def _arguments(settings: SFTSettings, out: Path, progress: bool) -> SFTConfig:
    return SFTConfig(
        **settings.arguments(out, progress),
        num_train_epochs=settings.epochs,
        max_steps=settings.steps or -1,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        weight_decay=settings.weight_decay,
        dataloader_num_workers=settings.workers,
        max_length=None,  # examples are cut by ours, never inside a picture
        dataset_kwargs={"skip_prepare_dataset": True},
    )
