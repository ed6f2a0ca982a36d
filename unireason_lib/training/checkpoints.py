"""The folder of a run: who may write it, where it is resumed, and the model that comes out of it.

out/settings.json    settings, base model and records; another run is refused
out/run.lock         held while the run is going
out/log.jsonl        see :mod:`unireason_lib.training.callbacks`
out/checkpoint-*     weights, optimizer, schedule and place in the data
out/model/           at the end, with its card and serialization
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from huggingface_hub import ModelCard, ModelCardData
from transformers import GenerationConfig, PrinterCallback

from unireason_lib.config import Profile
from unireason_lib.dataset.schema import Record
from unireason_lib.errors import DatasetError, TrainingError, UniReasonError
from unireason_lib.grounding import checkpoint_serialization, load_model
from unireason_lib.grounding.model import adapter_base, base_model
from unireason_lib.imaging import Serialization
from unireason_lib.inference import model_identity
from unireason_lib.io import (
    differences,
    disk_error,
    locked,
    read_json,
    whole_folder,
    write_json,
    write_whole,
)
from unireason_lib.training.callbacks import SaveOnInterrupt
from unireason_lib.training.optim import fast_bfloat16

_READ = {  # settings of the section ``grounding`` that decide a run: of one stage, and of both
    "sft": "freeze_vision muon_learning_rate sft_lora_r components_2d keep_best",
    "grpo": "grpo_lora_r reward_mode iou_weight rollout_max_rounds rollout_batch_size "
    "max_prompt_length",
    "both": "components feature_cache lora_alpha lora_dropout",
}


def run_settings(profile: Profile, stage: str) -> dict[str, dict[str, Any]]:
    """What decides the outcome of a run, from its profile: the section of its stage (``"sft"`` or
    ``"grpo"``), and of ``grounding`` and ``model`` what that reads."""
    ours = profile.grounding.model_dump(include=set(f"{_READ[stage]} {_READ['both']}".split()))
    weights = profile.model.model_dump(include={"tower", "dtype", "quantization"})
    return {stage: getattr(profile, stage).model_dump(), "grounding": ours, "model": weights}


def trainer_arguments(config: type, section: Any, out: Path, progress: bool, **fixed: Any) -> Any:
    """A trainer's ``SFTConfig`` or ``GRPOConfig`` from a section of a profile and arguments that no
    profile may change; a :class:`TrainingError` when they contradict. ``bf16: null``: autocast
    where the machine is fast in it."""
    fast = fast_bfloat16() and not section.fp16
    arguments = {
        **section.model_dump(),
        # transformers deprecates the name by which the rest of the world knows it
        "activation_checkpointing": section.gradient_checkpointing,
        "gradient_checkpointing": None,
        "bf16": fast if section.bf16 is None else section.bf16,
        "output_dir": str(out),
        "use_cpu": not torch.cuda.is_available(),
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,  # all that learn are used in every step
        "disable_tqdm": not progress,
    }
    try:
        return config(**arguments, **fixed)
    except (ValueError, TypeError) as error:
        expected = "arguments that fit together"
        raise TrainingError(config.__name__, expected, error, "correct them") from error


def run(
    stage: str,
    profile: Profile,
    out: Path,
    model: Any,
    processor: Any,
    records: Sequence[Record],
    trainer_of: Callable[[], Any],
    every: int = 1,
) -> Path:
    """Train to the end, from the last checkpoint of the run in the folder ``out`` if there is one;
    gives ``out/model``, of a finished run as it is. ``trainer_of()`` makes the trainer, an
    :class:`ExactResume`; checkpoints are saved after ``every`` steps or a multiple only.

    A :class:`DatasetError` when another process holds the folder, it belongs to another run, or the
    disk is full; a ``KeyboardInterrupt`` at Ctrl-C, when a checkpoint is saved."""
    with ExitStack() as stack:
        with raised_by_all():
            if PartialState().is_main_process:
                stack.enter_context(locked(out / "run.lock", str(out)))
                _check_settings(out / "settings.json", run_settings(profile, stage), model, records)
                shutil.rmtree(out / "model.partial", ignore_errors=True)
        if (out / "model").is_dir():
            return out / "model"
        trainer = trainer_of()
        _keep_full_precision(trainer)
        _clean_generation_config(model, processor)
        if trainer.args.disable_tqdm:
            trainer.remove_callback(PrinterCallback)
        # a checkpoint is whole when its state is there, which is written last
        states = filter(_is_whole, out.glob("checkpoint-*/trainer_state.json"))
        whole = [int(path.parent.name[11:]) for path in states]
        last = str(out / f"checkpoint-{max(whole)}") if whole else None
        with SaveOnInterrupt(every) as interrupt, full_disk_named(out):
            trainer.add_callback(interrupt)
            trainer.train(resume_from_checkpoint=last)
        if interrupt.asked:
            step = trainer.state.global_step
            raise KeyboardInterrupt(f"stopped at step {step}; the same call resumes from there")
        return _save(trainer, processor, out / "model", records)


def _is_whole(state: Path) -> bool:
    try:
        return bool(read_json(state))
    except DatasetError:  # torn by a kill
        return False


@contextmanager
def raised_by_all() -> Iterator[None]:
    """Processes meet at the end of the block. What one raised in it all raise, because the others
    would wait for it for ever."""
    error = sent = None
    try:
        yield
    except Exception as raised:  # others than our own perhaps cannot be pickled
        ours = isinstance(raised, UniReasonError)
        error, sent = raised, raised if ours else TrainingError(f"in another process: {raised!r}")
    for other in filter(None, gather_object([sent])):
        raise error or other


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """In the block, a full disk becomes an error that names the folder."""
    try:
        yield
    except Exception as error:
        if (full := disk_error(path, error)) is not error:
            raise full from error
        raise


def _check_settings(path: Path, settings: dict, model: Any, records: Sequence[Record]) -> None:
    """Write down what a run is made of; refuse to continue with another."""
    digest, name = blake2b(digest_size=16), base_model(model).name_or_path
    for record in records:
        digest.update(f"{record.id}\0{record.reply}\0".encode())
    asked = {"number": len(records), "digest": digest.hexdigest()}
    now = {"settings": settings, "base": model_identity(name), "records": asked}
    now["processes"] = PartialState().num_processes  # each adds to the batch
    now = json.loads(json.dumps(now))
    if not path.exists():
        write_json(path, now)
    before = {"processes": now["processes"], **read_json(path)}
    # a folder that was moved is known by its digest; hub ids perhaps have no commit to compare
    if now["base"].get("sha256") == before["base"].get("sha256", ""):
        before["base"] = now["base"]
    if changes := differences(before, now):
        expected = "the settings, base model and records that this run was begun with"
        do = "undo the change to resume, or train into another folder"
        raise DatasetError(path.parent, expected, "; ".join(changes), do)


def _keep_full_precision(trainer: Any) -> None:
    """Keep what learns in float32: small updates would be lost in the rounding of a bfloat16
    weight, and the loss scale of float16 takes no other type. FSDP wants one type for a fully
    trained model. DeepSpeed keeps a copy itself."""
    whole = base_model(trainer.model) is trainer.model
    for parameter in () if trainer.is_deepspeed_enabled else trainer.model.parameters():
        if whole or parameter.requires_grad:
            parameter.data = parameter.data.float()


class ExactResume:
    """Mixin for trainers: a resumed run really resumes from its checkpoint, and a run whose loss is
    not finite ends in all processes before its weights are changed."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """transformers saves Qwen2.5-VL under the names of its hub checkpoints (``visual.*``), but
        ``Trainer`` loads the file by those of the class in memory (``model.visual.*``) with
        ``strict=False``: nothing fits, and nothing is loaded. The model's own loader reads it."""
        model, folder = model if model is not None else self.model, Path(resume_from_checkpoint)
        whole = hasattr(model, "from_pretrained") and any(folder.glob("model*.safetensors"))
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or not whole:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            saved = type(model).from_pretrained(folder, dtype=model.dtype, use_safetensors=True)
            model.load_state_dict(saved.state_dict(), strict=True)

    def _get_train_sampler(self, dataset: Any = None) -> torch.utils.data.Sampler:
        self._sampler = super()._get_train_sampler(dataset)
        self._sampler.generator = torch.Generator()
        return self._sampler

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> None:
        """The order follows from seed and epoch alone: a run that is resumed in its second epoch
        sees what it would have seen. One that was stopped after its last step does none more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            self._sampler.generator.manual_seed(seed + epoch)
            super()._run_epoch(*args, epoch=epoch, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        finite = bool(torch.isfinite(loss).all())
        if not all(gather_object([finite])):  # one that raises alone leaves the others waiting
            found = "another in another process" if finite else loss.item()
            do = "lower the learning rate and call again: the run resumes from its last checkpoint"
            raise TrainingError(f"step {self.state.global_step}", "a finite loss", found, do)
        return loss

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None for checkpoints; the finished model gets ours."""


def _save(trainer: Any, processor: Any, folder: Path, records: Sequence[Record]) -> Path:
    """Save model (or adapter), processor, serialization and card whole: under another name first.
    The trainer can gather weights that are sharded; all processes go on when one has written."""
    temporary = folder.with_name(folder.name + ".partial")
    with raised_by_all(), full_disk_named(folder):
        trainer.save_model(str(temporary))
        if trainer.is_world_process_zero():
            (temporary / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
            processor.save_pretrained(temporary)
            if (serialization := serialization_of(records)) is not None:
                serialization.save(temporary)
            write_whole(temporary / "README.md", _card(folder.parent, trainer.model))
            temporary.rename(folder)
    return folder


def _clean_generation_config(model: Any, processor: Any) -> None:
    """What a checkpoint says about sampling is not copied from one to the next: only which tokens
    end a turn and which pads."""
    vocabulary, pad = processor.tokenizer.get_vocab(), processor.tokenizer.pad_token_id
    ends = [vocabulary[t] for t in ("<|im_end|>", "<|endoftext|>") if t in vocabulary]
    base_model(model).generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=pad)


def serialization_of(records: Sequence[Record]) -> Serialization | None:
    """How scans became the images of some records, the default of whatever asks the model: the
    commonest layout of their volumes, and the size of their 2D images where all have one."""
    how = [r.serialization for r in records if r.dimension == "3d" and r.serialization.get("size")]
    layouts = Counter(json.dumps([one["size"], one["window"]]) for one in how)
    sizes = {record.image_size for record in records if record.dimension == "2d"}
    image_size = sizes.pop() if len(sizes) == 1 else None
    if not layouts:
        return Serialization(image_size=image_size) if image_size else None
    return Serialization(*json.loads(layouts.most_common(1)[0][0]), image_size)


def _card(out: Path, model: Any) -> str:
    """The card of a finished run, Markdown with the header of the hub: from its ``settings.json``,
    and what the model says."""
    base, about = base_model(model), read_json(out / "settings.json")
    learn = f"{base.num_parameters(only_trainable=True):,} of {base.num_parameters():,}"
    about |= {"name": out.name, "learn": learn}
    about["versions"] = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
    header = ModelCardData(pipeline_tag="image-text-to-text", tags=["medical", "unireason-lab"])
    template = str(Path(__file__).with_name("card.jinja"))
    return str(ModelCard.from_template(header, template, **about))


def merge_adapter(
    base: str | Path, adapter: str | Path, out: str | Path, dtype: str = "auto"
) -> Path:
    """Save a model with its PEFT adapter (folders or hub ids) as one checkpoint in a new folder;
    ``dtype`` is that of the merged weights, without quantization, as they would be rounded again. A
    :class:`TrainingError` when the folder exists, or there is no adapter in the other."""
    out, adapter = Path(out), str(adapter)
    if out.exists():
        raise TrainingError(out, "no such folder", "a folder", "choose another name")
    if Path(adapter).is_dir() and adapter_base(adapter) is None:
        do = "give the adapter's folder"
        raise TrainingError(adapter, "a PEFT adapter", "no adapter_config.json", do)
    model, processor = load_model(base, adapter=adapter, dtype=dtype, device="cpu")
    with full_disk_named(out), whole_folder(out) as temporary:
        _clean_generation_config(model, processor)
        model.merge_and_unload(safe_merge=True).save_pretrained(temporary)
        processor.save_pretrained(temporary)
        if (serialization := checkpoint_serialization(base, adapter)) is not None:
            serialization.save(temporary)
        if (card := Path(adapter) / "README.md").is_file():
            shutil.copy(card, temporary)
    return out


def whole_checkpoint(path: str | Path, dtype: str = "auto") -> str:
    """Where a model is that can be trained further: the path itself, or for the folder of an
    adapter the checkpoint that it makes with its model, ``NAME-merged`` beside it. It is made when
    it is not there or was made of other weights, and once when several processes ask."""
    path, base = str(path), adapter_base(path)
    if base is None:
        return path
    merged = Path(path).with_name(f"{Path(path).name}-merged")
    source = {"base": model_identity(base), "adapter": model_identity(path), "dtype": dtype}
    with locked(merged.with_name(f"{merged.name}.lock"), str(merged), wait=True):
        note = merged / "source.json"
        if not note.is_file() or read_json(note) != source:
            for old in (merged, *merged.parent.glob(f"{merged.name}.*.partial")):
                shutil.rmtree(old, ignore_errors=True)
            merge_adapter(base, path, merged, dtype)
            write_json(note, source)  # last: without it, the next call makes all again
    return str(merged)
