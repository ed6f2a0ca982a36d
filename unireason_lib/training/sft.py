"""Supervised fine-tuning: TRL's ``SFTTrainer`` on grounded conversations.

What is ours is little: which parameters learn (the language model; vision tower and merger are
frozen, as in the paper), and batches of similar length. All else is the trainer's, configured by
the section ``sft`` of a profile.

    records -> Examples -> [features of the frozen tower] -> SFTTrainer -> model/, log.jsonl
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from unireason_lib.config import Grounding, Profile
from unireason_lib.dataset.schema import Record
from unireason_lib.errors import TrainingError
from unireason_lib.grounding.model import base_model
from unireason_lib.training.callbacks import RunLog, sharding
from unireason_lib.training.checkpoints import ExactResume, run, trainer_arguments
from unireason_lib.training.data import Examples, Images
from unireason_lib.training.encoding import Collator, with_features
from unireason_lib.training.optim import MuonWithAdamW, token_scores

# peft asks for an attribute that transformers has renamed
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

# linear layers of the language model; plain names would also fit the vision tower
LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


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
    """Fine-tune a model (which is changed) on grounded records, by the sections ``sft`` and
    ``grounding`` of a profile; a stopped run resumes from its last checkpoint. ``images`` gives the
    images of a record.

    Gives ``out/model``, a checkpoint in plain transformers form, or a PEFT adapter
    (:mod:`unireason_lib.training.checkpoints`). A :class:`TrainingError` for settings that do not
    fit together and a loss that is not finite, a :class:`DatasetError` as
    :class:`~.data.Examples` and :func:`~.checkpoints.run` say."""
    out, ours = Path(out), profile.grounding
    fixed = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    fixed |= {"train_sampling_strategy": "group_by_length", "length_column_name": "tokens"}
    if ours.feature_cache and ours.freeze_vision:  # features are a ModelOutput, which nothing pins
        fixed["dataloader_pin_memory"] = False
    arguments = trainer_arguments(SFTConfig, profile.sft, out, progress, **fixed)
    muon = None  # beside AdamW where a full model learns in one piece
    in_pieces = ours.sft_lora_r is not None or arguments.deepspeed or sharding()
    if ours.muon_learning_rate and not in_pieces:
        for name in (n for n in profile.sft.model_extra if n.startswith("optim")):
            expected, do = "not to be set beside Muon", "set grounding.muon_learning_rate to 0"
            raise TrainingError(f"sft.{name}", expected, arguments.optim, do)
        rates = {"lr": arguments.learning_rate, "muon_lr": ours.muon_learning_rate}
        rates |= {"weight_decay": arguments.weight_decay, "bf16": arguments.bf16}
        rates |= {"betas": (arguments.adam_beta1, arguments.adam_beta2)}
        rates["eps"] = arguments.adam_epsilon
        muon = (lambda: MuonWithAdamW), rates  # a factory: it is given the model

    def trainer() -> GroundedSFTTrainer:
        added = add_think_tokens(model, processor)
        freeze(model, ours.freeze_vision)
        how = {"components": ours.components, "components_2d": ours.components_2d}
        how |= {"max_length": profile.sft.max_length, "keep": ours.feature_cache}
        how |= {"progress": progress}
        examples, collator = Examples(records, images, processor, **how), Collator(processor)
        if ours.feature_cache and ours.freeze_vision:
            examples.kept = with_features(examples.kept, processor, model, progress)
        # TRL asks for a datasets.Dataset: it holds row numbers, workers look the examples up
        rows = {"row": range(len(examples)), "tokens": examples.lengths}
        made = GroundedSFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict(rows),
            data_collator=partial(_collate, examples, collator),
            processing_class=processor,
            peft_config=lora_config(ours.sft_lora_r, model, ours, added),
            callbacks=[RunLog(), *callbacks],
            optimizer_cls_and_kwargs=muon,
        )
        # transformers says no for this architecture; then every forward pass of a step would weigh
        # the same, however few words it holds. TRL's losses divide by the tokens of the step.
        made.model_accepts_loss_kwargs = True
        return made

    return run("sft", profile, out, model, processor, records, trainer)


def _collate(examples: Examples, collator: Collator, rows: Sequence[Mapping[str, int]]) -> Any:
    return collator([examples[row["row"]] for row in rows])


class GroundedSFTTrainer(ExactResume, SFTTrainer):
    """TRL's trainer whose order does not depend on the number of processes."""

    def _get_train_sampler(self, dataset: Any = None) -> torch.utils.data.Sampler:
        sampler = super()._get_train_sampler(dataset)
        sampler.batch_size *= self.args.world_size  # as of one process with larger batches
        return sampler

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        with token_scores():
            return super().compute_loss(*args, **kwargs)


def freeze(model: Any, vision: bool = True) -> tuple[int, int]:
    """Let the language model learn, and vision tower and merger too unless they are frozen; gives
    how many parameters learn, and how many do not. A :class:`TrainingError` for an adapter."""
    if base_model(model) is not model:
        do = "set model.adapter to null, and give the adapter's folder as --model, which merges it"
        raise TrainingError("model.adapter", "a whole model to train", "an adapter on it", do)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # 4-bit weights never do
    model.model.visual.requires_grad_(not vision)
    learning = model.num_parameters(only_trainable=True)
    return learning, model.num_parameters() - learning


def add_think_tokens(model: Any, processor: Any) -> list[int]:
    """Add ``<think>`` and ``</think>`` as special tokens where the tokenizer lacks them; gives the
    ids of those that were added. The embedding only ever grows, because checkpoints are padded. The
    rows of the new tokens, which nobody trained, begin as that of the line break: a model without
    these tokens ends its reasoning with one."""
    tokenizer, rows = processor.tokenizer, model.get_input_embeddings().num_embeddings
    vocabulary, known = tokenizer.get_vocab(), len(tokenizer)
    missing = [token for token in ("<think>", "</think>") if token not in vocabulary]
    new = {"additional_special_tokens": missing}
    tokenizer.add_special_tokens(new, replace_extra_special_tokens=False)
    if missing:
        model.resize_token_embeddings(max(rows, len(tokenizer)), mean_resizing=False)
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                layer.weight[known : len(tokenizer)] = layer.weight[tokenizer("\n").input_ids[-1]]
    return tokenizer.convert_tokens_to_ids(missing)


def lora_config(r: int | None, model: Any, grounding: Grounding, added: Sequence[int] = ()) -> Any:
    """PEFT's configuration of adapters of rank ``r`` in the language model's layers; None without a
    rank. The rows of the embedding of ``added`` tokens learn besides."""
    if r is None:
        return None
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
