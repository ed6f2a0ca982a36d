"""Loading a checkpoint of Qwen2.5-VL or Qwen3-VL, tiny or full size, with or without an adapter:
safetensors only, never code from a checkpoint, and how scans became images in its training
(``serialization.json``).
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import cached_file, is_bitsandbytes_available, is_flash_attn_2_available

from unireason_lib.backbones import backbone_of
from unireason_lib.boxes import BOX_END, BOX_START
from unireason_lib.errors import ModelError, raising
from unireason_lib.grounding.cache import SDPA_ON_CPU
from unireason_lib.grounding.tiny import build_tiny
from unireason_lib.imaging.serialize import Serialization
from unireason_lib.io import read_json

DTYPES = ("auto", "float32", "bfloat16", "float16")
_VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|im_end|>")
NEEDED_TOKENS = (BOX_START, BOX_END, *_VISION)


def load_model(
    path: str | Path,
    *,
    adapter: str | Path | None = None,
    dtype: str = "auto",
    device: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    quantization: str | None = None,
) -> tuple[transformers.PreTrainedModel, transformers.ProcessorMixin]:
    """Load a model and its processor in evaluation mode; a :class:`ModelError` says what is missing
    or broken in the checkpoint, or contradictory in the arguments.

    Args:
        path: A folder as transformers saves it, or a hub id (``Qwen/Qwen2.5-VL-7B-Instruct``).
        adapter: A folder or hub id of a PEFT adapter to put on top.
        dtype: One of :data:`DTYPES`; ``"auto"`` is the checkpoint's own.
        device: ``"cpu"``, ``"cuda:1"``, ...; ``"auto"`` and None: the first GPU, else the CPU.
        device_map: Of transformers, to spread a model over devices; excludes ``device``.
        attn_implementation: Of transformers; ``"auto"`` is flash attention where it can be used.
        quantization: ``"4bit"`` (bitsandbytes): the language model's matrices in NF4 with double
            quantisation (arXiv 2305.14314), computed with in ``dtype``."""
    path = str(path)
    if dtype not in DTYPES:
        raise ModelError("dtype", " or ".join(DTYPES), repr(dtype), "choose one of them")
    if device is not None and device_map is not None:
        raise ModelError("load_model", "device or device_map", "both", "leave one of them out")
    _check_folder(path)
    if device in (None, "auto") and device_map is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    settings: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if quantization is not None:
        settings["quantization_config"] = _four_bits(quantization, settings["dtype"])
        if device is not None:  # quantised where it is loaded to, and never moved
            device_map, device = {"": device}, None
    if attn_implementation == "auto":  # flash attention needs its package, CUDA and 16 bits
        cuda = device_map == "auto" or "cuda" in str(device_map or device)
        fast = cuda and dtype in ("bfloat16", "float16") and is_flash_attn_2_available()
        attn_implementation = "flash_attention_2" if fast else None
    if attn_implementation is None:
        attn_implementation = SDPA_ON_CPU if str(device) == "cpu" else "sdpa"
    expected = "a complete, readable checkpoint (config, safetensors, processor)"
    do = "check the folder, or for a hub id the network, the spelling and your access"
    with raising(ModelError, path, expected, do):
        backbone_of(
            transformers.AutoConfig.from_pretrained(path, trust_remote_code=False).model_type, path
        )
        # an adapter that was saved with its processor may have tokens that the base lacks
        complete = adapter is not None and (Path(adapter) / "processor_config.json").is_file()
        place = str(adapter) if complete else path
        processor = transformers.AutoProcessor.from_pretrained(place, trust_remote_code=False)
        settings |= {"device_map": device_map, "attn_implementation": attn_implementation}
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            path, trust_remote_code=False, use_safetensors=True, **settings
        )
        if complete and len(processor.tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
        if adapter is not None:
            from peft import PeftModel

            weights = Path(adapter) / "adapter_model.safetensors"
            if Path(adapter).is_dir() and not weights.is_file():
                do = "save it again with safetensors"
                raise ModelError(adapter, "adapter_model.safetensors", "none", do)
            model = PeftModel.from_pretrained(model, str(adapter), use_safetensors=True)
        if device is not None:
            model = model.to(device)
    if missing := set(NEEDED_TOKENS) - processor.tokenizer.get_vocab().keys():
        expected, found = f"one token each for {' '.join(NEEDED_TOKENS)}", f"no {sorted(missing)}"
        raise ModelError(path, expected, found, "use the published tokenizer of its family")
    return model.eval(), processor


def checkpoint_serialization(
    path: str | Path, adapter: str | Path | None = None
) -> Serialization | None:
    """How scans became images when a checkpoint (folder or hub id) was trained, by the
    ``serialization.json`` of its adapter, else its own; None without (stock models)."""
    optional = {"_raise_exceptions_for_missing_entries": False}
    for place in filter(None, (adapter, path)):
        folder = Path(place)
        if not folder.is_dir():
            with suppress(OSError, ValueError):  # no such model, no network: loading it says so
                file = cached_file(str(place), "serialization.json", **optional)
                folder = Path(file).parent if file else folder
        if (serialization := Serialization.load(folder)) is not None:
            return serialization
    return None


def load_profile_model(
    settings: Any,
    project: Path,
    path: str | None = None,
    *,
    device: str | None = None,
    tower: bool = False,
) -> tuple[transformers.PreTrainedModel, transformers.ProcessorMixin]:
    """The model of a profile's section ``model``, with ``path`` and ``device`` in place of its own.
    Folders are looked up in ``project``; ``"tiny"`` means random weights of the section's sizes,
    built on first use in ``runs/models``. ``tower``: with the vision tower and the merger of the
    model that the section names for it."""
    name = path or settings.path
    place: str | Path = project / name if (project / name).is_dir() else name
    if name == "tiny":
        names = ("hidden", "layers", "vision_hidden", "vision_layers", "patch_size")
        sizes = {name: getattr(settings, name) for name in names}
        place = project / "runs" / "models" / f"tiny-{'-'.join(map(str, sizes.values()))}"
        if not place.exists():
            build_tiny(place, **sizes)
    model, processor = load_model(
        place,
        adapter=settings.adapter,
        dtype=settings.dtype,
        device=device or settings.device,
        attn_implementation=settings.attention,
        quantization=settings.quantization,
    )
    if tower and settings.tower:
        own = settings.model_copy(update={"adapter": None})
        other, _ = load_profile_model(own, project, settings.tower, device="cpu")
        do = "set model.tower to a model of the same shape, or to null"
        with raising(ModelError, settings.tower, f"a vision tower like that of {name}", do):
            base_model(model).model.visual.load_state_dict(other.model.visual.state_dict())
    return model, processor


def adapter_base(folder: str | Path) -> str | None:
    """The model that the adapter in a folder was trained on; None for a whole checkpoint. A
    :class:`ModelError` when the adapter's configuration cannot be read or names no model."""
    path = Path(folder) / "adapter_config.json"
    if not path.is_file():
        return None
    name = read_json(path, ModelError).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        do = "give the model yourself, with this folder as its adapter"
        raise ModelError(path, "base_model_name_or_path", "none", do)
    return name


def base_model(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _four_bits(quantization: str, dtype: Any) -> Any:
    if quantization != "4bit" or not is_bitsandbytes_available():
        do = "pip install -e '.[gpu]', or train adapters of 16-bit weights (quantization=none)"
        raise ModelError("quantization", "4bit, with bitsandbytes installed", quantization, do)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else dtype,
        # what the tower sees decides a box, the output layer writes it
        llm_int8_skip_modules=["model.visual", "lm_head"],
    )


def _check_folder(path: str) -> None:
    """Refuse a folder that is no checkpoint in better words than those of the hub."""
    folder = Path(path)
    local = folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1
    if not local or (folder / "config.json").is_file():
        return
    found = "none in it" if folder.is_dir() else "no such folder"
    do = "give a checkpoint's folder, or a hub id like owner/name"
    if (folder / "adapter_config.json").is_file():
        found, do = "a PEFT adapter", "load the model that it was trained on, with it as adapter"
    raise ModelError(path, "a folder with a config.json", found, do)
