"""The folder of a run: who may write it, where it is resumed, and the model that comes out of it.

out/settings.json    settings, base model and records; another run is refused
out/run.lock         held while the run is going
out/log.jsonl        see :mod:`unireason_lib.training.callbacks`
out/checkpoint-*     weights, optimizer, schedule and place in the data
out/model/           at the end, with its card and serialization
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import GenerationConfig, PrinterCallback

from unireason_lib.config import Profile
from unireason_lib.dataset.schema import Record
from unireason_lib.errors import DatasetError, TrainingError, UniReasonError
from unireason_lib.grounding.model import (
    adapter_base,
    base_model,
    checkpoint_serialization,
    load_model,
)
from unireason_lib.imaging import Serialization
from unireason_lib.inference import model_identity
from unireason_lib.io import disk_error, locked, read_json, write_json, write_whole
from unireason_lib.training.callbacks import LOG, SaveOnInterrupt, in_any_process, read_log
from unireason_lib.training.optim import autocast_dtype

# --- a run -----------------------------------------------------------------------------------

_GROUNDING = {  # settings that one stage reads
    "sft": "components muon_learning_rate sft_lora_r".split(),
    "grpo": "components grpo_lora_r reward_mode iou_weight area_weight rollout_max_rounds "
    "rollout_batch_size max_prompt_length".split(),
}


def run_settings(profile: Profile, stage: str) -> dict[str, dict[str, Any]]:
    """What decides the outcome of a run, from its profile: the section of its stage (``"sft"`` or
    ``"grpo"``), and of ``grounding`` and ``model`` what that stage reads."""
    names = [*_GROUNDING[stage], "freeze_vision", "feature_cache", "lora_alpha", "lora_dropout"]
    ours = profile.grounding.model_dump(include=set(names))
    weights = profile.model.model_dump(include={"dtype", "quantization"})
    return {stage: getattr(profile, stage).model_dump(), "grounding": ours, "model": weights}


def _refused(do: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), do)


_BOTH = {
    "output_dir": "name the folder of the run (--out)",
    "activation_checkpointing": "set gradient_checkpointing",
    "use_cpu": "set CUDA_VISIBLE_DEVICES",
    **_refused(
        "leave it out: free-running tests (grounding.free_running_steps) take the place",
        "do_eval eval_strategy eval_steps eval_delay eval_on_start load_best_model_at_end",
    ),
    **_refused(
        "leave it out: it is chosen here",
        "remove_unused_columns ddp_find_unused_parameters disable_tqdm resume_from_checkpoint "
        "shuffle_dataset train_sampling_strategy",
    ),
}
_REFUSED = {  # arguments of TRL that would change nothing, or break a run: what to do about them
    "sft": _BOTH
    | _refused(
        "leave it out: records are encoded before TRL sees them",
        "packing packing_strategy eval_packing padding_free dataset_kwargs dataset_text_field "
        "dataset_num_proc truncation_mode completion_only_loss assistant_only_loss",
    ),
    "grpo": _BOTH
    | {
        "reward_weights": "set grounding.iou_weight and grounding.area_weight",
        "max_tool_calling_iterations": "set grounding.rollout_max_rounds",
        "disable_dropout": "leave it out: dropout is always off",
        **_refused(
            "leave it out: log-probabilities are of plain sampling",
            "top_p top_k min_p repetition_penalty generation_kwargs vllm_structured_outputs_regex",
        ),
        **_refused(
            "leave it out: the grounded interface or a vLLM server (grpo.use_vllm) makes replies",
            "vllm_mode vllm_gpu_memory_utilization vllm_tensor_parallel_size vllm_max_model_length "
            "vllm_enable_sleep_mode use_transformers_paged use_transformers_continuous_batching "
            "transformers_continuous_batching_config cache_implementation chat_template_kwargs "
            "num_generations_eval",
        ),
    },
}


def trainer_arguments(
    config: type, section: Mapping[str, Any], out: Path, progress: bool, **fixed: Any
) -> Any:
    """The configuration of a trainer.

    Args:
        config: ``SFTConfig`` or ``GRPOConfig``.
        section: Its keyword arguments in a profile.
        out: Folder of the run.
        progress: Whether to show bars.
        fixed: Keyword arguments that no profile may change.

    Raises:
        TrainingError: Arguments that would have no effect, or that do not fit together.
    """
    stage, arguments = config.__name__.removesuffix("Config").lower(), dict(section)
    for name in arguments:
        if do := _REFUSED[stage].get(name):
            raise TrainingError(f"{stage}.{name}", "no such setting", arguments[name], do)
    arguments = {
        **arguments,
        # transformers deprecates the name by which the rest of the world knows it
        "activation_checkpointing": arguments.pop("gradient_checkpointing"),
        "gradient_checkpointing": None,
        "bf16": autocast_dtype(SimpleNamespace(**section)) is torch.bfloat16,
        "output_dir": str(out),
        "use_cpu": not torch.cuda.is_available(),
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,  # all that learn are used in every step
        "disable_tqdm": not progress,
        **fixed,
    }
    try:
        return config(**arguments)
    except (ValueError, TypeError) as error:
        raise TrainingError(stage, "arguments that fit together", error, "correct them") from error


@contextmanager
def open_run(
    out: str | Path, settings: Mapping[str, Any], model: Any, records: Sequence[Record]
) -> Iterator[None]:
    """Hold the folder of a run; of several processes the first looks, and all go on or none does.

    Args:
        out: The folder; made when missing.
        settings: Of the run, as JSON has them; see :func:`run_settings`.
        model: What it starts from. Weights of another base model are another run.
        records: What it learns from.

    Raises:
        DatasetError: Another process holds the folder, or it belongs to a run with other settings,
            records or another base model.
    """
    out = Path(out)
    with ExitStack() as stack:
        with raised_by_all():
            if PartialState().is_main_process:
                stack.enter_context(locked(out / "run.lock", str(out)))
                _check_settings(out, settings, model, records)
        yield


@contextmanager
def raised_by_all() -> Iterator[None]:
    """Processes meet at the end of the block. What one raised in it all raise, because the others
    would wait for it for ever."""
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    # others than our own perhaps cannot be pickled
    ours = error is None or isinstance(error, UniReasonError)
    sent = error if ours else TrainingError(f"in another process: {error!r}")
    first = next((one for one in gather_object([sent]) if one is not None), None)
    if first is not None:
        raise first if error is None else error


def _check_settings(
    out: Path, settings: Mapping[str, Any], model: Any, records: Sequence[Record]
) -> None:
    """Write down what a run is made of; refuse to go on with another."""
    digest, name = blake2b(digest_size=16), base_model(model).name_or_path
    for record in records:
        digest.update(f"{record.id}\0{record.reply}\0".encode())
    now = {"settings": settings, "base": model_identity(name) if name else None}
    now = json.loads(json.dumps({**now, "records": len(records), "hash": digest.hexdigest()}))
    path = out / "settings.json"
    if not path.exists():
        write_json(path, now)
        return
    before = read_json(path)
    changed = _changed(_flat(before["settings"]), _flat(now["settings"]))
    bases = [one.get("base") or {} for one in (before, now)]
    if all(bases) and len({base.get("sha256", base.get("commit")) for base in bases}) > 1:
        changed.append(f"another base model ({bases[0]['name']} was, {bases[1]['name']} is)")
    changed += ["other records"] if before["hash"] != now["hash"] else []
    if changed:
        expected = "the settings, base model and records that this run was begun with"
        do = "undo the change to go on, or train into another folder"
        raise DatasetError(out, expected, "; ".join(changed), do)


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Settings that differ. An argument of TRL that is not there has its default; a setting of ours
    that is not there came with a later version, and leaves the run as it was."""
    import trl

    lines = []
    for name in dict.fromkeys([*old, *new]):
        section, _, argument = name.partition(".")
        default = new.get(name, old.get(name))
        if section in ("sft", "grpo"):
            default = getattr(getattr(trl, f"{section.upper()}Config"), argument, None)
        before, now = old.get(name, default), new.get(name, default)
        lines += [f"{name} was {before}, is {now}"] if before != now else []
    return lines


def _flat(settings: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        below = isinstance(value, Mapping)
        flat |= _flat(value, f"{under}{name}.") if below else {f"{under}{name}": value}
    return flat


class ExactResume:
    """Mixin for trainers: a resumed run really goes on from its checkpoint, and a run whose loss is
    not finite ends in all processes before its weights are changed.

    transformers saves Qwen2.5-VL under the names of its hub checkpoints (``visual.*``,
    ``model.layers.*``), but ``Trainer`` loads the file by the names of the class in memory
    (``model.visual.*``, ``model.language_model.layers.*``) with ``strict=False``: nothing fits,
    nothing is loaded, and the run goes on from whatever it was begun with. Here the model's own
    loader reads the file.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model, folder = model if model is not None else self.model, Path(resume_from_checkpoint)
        whole = hasattr(model, "from_pretrained") and any(folder.glob("model*.safetensors"))
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or not whole:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(model).from_pretrained(folder, dtype=model.dtype, use_safetensors=True)
        model.load_state_dict(saved.state_dict(), strict=True)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass."""
        loss = super().training_step(*args, **kwargs)
        finite = bool(torch.isfinite(loss).all())
        if in_any_process(not finite, loss.device):
            found = "another in another process" if finite else loss.item()
            do = "lower the learning rate and call again: the run goes on from its last checkpoint"
            raise TrainingError(f"step {self.state.global_step}", "a finite loss", found, do)
        return loss

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None for checkpoints; the finished model gets :func:`model_card`."""


def train(trainer: Any, out: Path) -> None:
    """Train to the end, from the last checkpoint of the run if there is one.

    Raises:
        KeyboardInterrupt: Ctrl-C; a checkpoint of the step that was under way is saved.
        DatasetError: The disk is full.
    """
    if trainer.args.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
    _clean_generation_config(trainer.model, trainer.processing_class)
    with SaveOnInterrupt() as interrupt, full_disk_named(out):
        trainer.add_callback(interrupt)
        trainer.train(resume_from_checkpoint=last_checkpoint(out))
    if interrupt.asked:
        step = trainer.state.global_step
        raise KeyboardInterrupt(f"stopped at step {step}; the same call goes on from there")


def last_checkpoint(out: str | Path) -> str | None:
    """The newest whole checkpoint of a run, or None; its state is what is written last."""
    whole = [path.parent for path in Path(out).glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """In the block, a full disk becomes an error that names the folder, whichever library met it:
    PyTorch and safetensors say so in words of their own."""
    try:
        yield
    except UniReasonError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        match = re.search(r"os error (\d+)|file write failed", str(error))
        if number is None and match:
            number = int(match[1] or errno.ENOSPC)
        if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise disk_error(path, OSError(number, "no space left on device")) from error


# --- the model that comes out ----------------------------------------------------------------


def save_model(trainer: Any, processor: Any, folder: Path, records: Sequence[Record] = ()) -> Path:
    """Save model (or adapter), processor, serialization and card whole: under another name first,
    then renamed.

    The trainer saves, because it can gather weights that are sharded over processes (DeepSpeed,
    FSDP); of several processes one writes, and all go on when the folder is there.

    Args:
        trainer: What was trained.
        processor: Saved beside it.
        folder: ``model`` in the folder of the run.
        records: That it learnt from; how their scans became images is saved beside it.
    """
    temporary = folder.with_name(folder.name + ".partial")
    main = trainer.is_world_process_zero()
    with raised_by_all():
        if main:
            shutil.rmtree(temporary, ignore_errors=True)
    with raised_by_all(), full_disk_named(folder):
        trainer.save_model(str(temporary))
    with raised_by_all(), full_disk_named(folder):
        if main:
            (temporary / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
            processor.save_pretrained(temporary)
            if (serialization := serialization_of(records)) is not None:
                serialization.save(temporary)
            if (folder.parent / "settings.json").exists():  # in place of PEFT's card
                write_whole(temporary / "README.md", model_card(folder.parent, trainer.model))
            temporary.rename(folder)
    return folder


def _clean_generation_config(model: Any, processor: Any) -> None:
    """What a checkpoint says about sampling is not copied from one to the next: only which tokens
    end a turn and which pads."""
    vocabulary, pad = processor.tokenizer.get_vocab(), processor.tokenizer.pad_token_id
    ends = [vocabulary[t] for t in ("<|im_end|>", "<|endoftext|>") if t in vocabulary]
    base_model(model).generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=pad)


def merge_adapter(
    base: str | Path, adapter: str | Path, out: str | Path, dtype: str = "auto"
) -> Path:
    """Save a model with its PEFT adapter as one checkpoint: under another name first, then renamed.

    Args:
        base: Folder or hub id of the model; loaded without quantization, because merged 4-bit
            weights would be rounded again.
        adapter: Folder or hub id; its card is taken along, with the words for a whole checkpoint.
        out: Folder of the checkpoint; must not exist.
        dtype: Of the merged weights.

    Raises:
        TrainingError: The folder exists, or there is no adapter in the one that is given.
    """
    out, adapter = Path(out), str(adapter)
    if out.exists():
        raise TrainingError(out, "no such folder", "a folder", "choose another name")
    if Path(adapter).is_dir() and adapter_base(adapter) is None:
        do = "give the adapter's folder"
        raise TrainingError(adapter, "a PEFT adapter", "no adapter_config.json", do)
    model, processor = load_model(base, adapter=adapter, dtype=dtype, device="cpu")
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    with full_disk_named(out):
        _clean_generation_config(model, processor)
        model.merge_and_unload(safe_merge=True).save_pretrained(temporary)
        processor.save_pretrained(temporary)
        if (serialization := checkpoint_serialization(base, adapter)) is not None:
            serialization.save(temporary)
        if (card := Path(adapter) / "README.md").is_file():
            write_whole(temporary / "README.md", _merged_card(card.read_text(encoding="utf-8")))
    return temporary.rename(out)


def whole_checkpoint(path: str | Path, dtype: str = "auto") -> str:
    """Where a model is that can be trained further: the path itself, or for the folder of an
    adapter the checkpoint that it makes with its model. That lies beside it: as ``merged`` for the
    adapter ``model`` of a run, as ``NAME-merged`` for another. It is made when it is not there or
    was made of other weights, and once when several processes ask.

    Args:
        path: Folder or hub id of a checkpoint, or folder of a PEFT adapter.
        dtype: Of the merged weights.
    """
    base = adapter_base(path)
    if base is None:
        return str(path)
    name = Path(path).name
    merged = Path(path).parent / ("merged" if name == "model" else f"{name}-merged")
    identities = {"base": model_identity(base), "adapter": model_identity(str(path))}
    source = {**identities, "dtype": dtype}
    with locked(merged.with_name(f"{merged.name}.lock"), str(merged), wait=True):
        note = merged / "source.json"
        if not note.is_file() or read_json(note) != source:
            fresh = merged.with_name(f"{merged.name}.new")
            shutil.rmtree(fresh, ignore_errors=True)
            merge_adapter(base, path, fresh, dtype)
            write_json(fresh / note.name, source)
            shutil.rmtree(merged, ignore_errors=True)
            fresh.rename(merged)
    return str(merged)


def serialization_of(records: Sequence[Record]) -> Serialization | None:
    """How scans became the images of some records: the commonest layout of their volumes, and the
    size of their 2D images where all have one. It is the default of whatever asks the model."""
    layouts, image_sizes = Counter(), Counter()
    for record in records:
        if record.dimension == "2d":
            image_sizes[record.image_size] += 1
        elif record.serialization.get("size"):
            size, window = record.serialization["size"], record.serialization["window"]
            layouts[tuple(size), window if isinstance(window, str) else tuple(window)] += 1
    image_size = next(iter(image_sizes)) if len(image_sizes) == 1 else None
    if not layouts:
        return Serialization(image_size=image_size) if image_size else None
    (size, window), _ = layouts.most_common(1)[0]
    return Serialization(size, window, image_size)


# --- its card --------------------------------------------------------------------------------

_CARD = """---
library_name: {library}
pipeline_tag: image-text-to-text
tags: [medical, grounded-reasoning, unireason-lab, {stage}]
---

# {name}

{what} of `{base}`, made with UniReason-Lab by the method of UniReason-Med (arXiv 2606.11740).
**For research, not for clinical use.**

```python
from unireason_lib.grounding import GroundedGenerator, GroundedRequest, load_model

model, processor = load_model({load})
options = {{"A": "left", "B": "right"}}
request = GroundedRequest("Where is the lesion?", images, options, dimension="2d")
print(GroundedGenerator(model, processor).generate([request])[0].text)
```

transformers' `from_pretrained` loads it too, but its `generate` never shows the model the regions
that it boxes; the grounded interface stops after each `<|box_end|>` and injects their tokens.

It learnt from {records:,} records (digest `{hash}`): {learn:,} parameters, {frozen:,} were frozen.

| setting or measure | value |
| --- | --- |
{rows}

A few dozen questions say little; `evaluate` measures with intervals and a question-only baseline.
"""


def model_card(out: Path, model: Any) -> str:
    """The card of a finished run, from the run's own files: Markdown with the header of the hub.

    Args:
        out: Folder of the run (``settings.json``, ``log.jsonl``).
        model: What was trained: it knows where it was loaded from (of a folder only the name is
            shown), whether it is a PEFT adapter, and which of its parameters learnt.
    """
    kept = read_json(out / "settings.json")
    stage = "sft" if "sft" in kept["settings"] else "grpo"
    base, adapter = base_model(model).name_or_path, base_model(model) is not model
    base = Path(base).name if Path(base).is_dir() else base
    learn, frozen = count_parameters(model)
    packages = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
    rows = {**_flat(kept["settings"]), **_measured(out / LOG), **packages}
    return _CARD.format(
        library="peft" if adapter else "transformers",
        stage=stage,
        name=out.name,
        what={"sft": "Supervised fine-tuning", "grpo": "Outcome RL (GRPO)"}[stage],
        base=base,
        load=f'"{base}", adapter="THIS_FOLDER"' if adapter else '"THIS_FOLDER"',
        records=kept["records"],
        hash=kept["hash"],
        learn=learn,
        frozen=frozen,
        rows="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
    )


def _merged_card(card: str) -> str:
    """The card of an adapter, for the checkpoint that it was merged into."""
    load = r'load_model\("[^"]*", adapter="THIS_FOLDER"\)'
    card = re.sub(load, 'load_model("THIS_FOLDER")', card)
    return card.replace("library_name: peft", "library_name: transformers")


def _measured(log: Path) -> dict[str, str]:
    """What the log says of the end: last numbers, and free-running replies on held-out patients."""
    rows = {}
    for key in ("loss", "reward", "rewards/answer/mean", "rewards/format/mean", "kl"):
        for line in read_log(log, key)[-1:]:
            rows[f"last {key} (step {line['step']})"] = f"{line[key]:.4g}"
    for line in read_log(log, "free_running")[-1:]:
        for dimension, part in line["free_running"].items():
            accuracy = f"{100 * part['accuracy']:.0f} % of {part['n']} questions"
            rows[f"accuracy in {dimension.upper()}, held-out patients"] = accuracy
    return rows


def count_parameters(model: Any) -> tuple[int, int]:
    """Parameters that learn, and parameters that do not."""
    counts = [0, 0]
    for parameter in model.parameters():
        packed = 2 if type(parameter).__name__ == "Params4bit" else 1  # two to a byte
        counts[not parameter.requires_grad] += parameter.numel() * packed
    return counts[0], counts[1]
