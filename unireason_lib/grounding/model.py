"""Loading a checkpoint of the Qwen2.5-VL architecture, tiny or full size, with or without an adapter.

One loader serves the tiny model of the tutorials, the public 3B and 7B models and fine-tuned ones. It reads safetensors
only and never runs code from a checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unireason_lib.boxes import BOX_END, BOX_START
from unireason_lib.errors import ModelError, explain

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

ARCHITECTURE = "qwen2_5_vl"
DTYPES = ("auto", "float32", "bfloat16", "float16")
NEEDED_TOKENS = (BOX_START, BOX_END, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|im_end|>")


def load_model(
    path: str | Path,
    *,
    adapter: str | Path | None = None,
    dtype: str = "auto",
    device: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    quantization: str | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a model and its processor, ready for generation.

    Args:
        path: A local folder in transformers' form, or a hub id such as ``Qwen/Qwen2.5-VL-7B-Instruct``.
        adapter: A folder or hub id of a PEFT adapter to put on top.
        dtype: ``"auto"`` (the checkpoint's own), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...; the default is the first GPU, else the CPU.
        device_map: Passed to transformers to spread a model over devices; excludes ``device``.
        attn_implementation: ``"sdpa"``, ``"flash_attention_2"``, ``"eager"``; ``"auto"`` takes flash attention where it
            is installed and can be used, else SDPA; the default is transformers' choice.
        quantization: ``"4bit"`` keeps the matrices of the language model in 4 bits (NF4 with double quantisation,
            arXiv 2305.14314) and computes in ``dtype``; vision tower, embedding and output layer stay as they are.
            Needs bitsandbytes (``pip install -e '.[gpu]'``).

    Returns:
        ``(model, processor)``, the model in evaluation mode.

    Raises:
        ModelError: The folder or its files are missing or broken, the architecture is another one, the tokenizer
            lacks a token that the interface needs, or ``device`` and ``device_map`` are both given.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    path = str(path)
    _check_arguments(path, dtype, device, device_map)
    _check_architecture(path)
    if device is None and device_map is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    four_bits = _four_bits(quantization, dtype)
    if four_bits is not None and device is not None:
        device_map, device = {"": device}, None  # quantised where it is loaded to, and never moved
    if attn_implementation == "auto":
        attn_implementation = attention_of(dtype, device_map or device)
    try:
        # an adapter that was saved with its processor may have tokens that the base lacks
        own = adapter is not None and (Path(adapter) / "processor_config.json").is_file()
        processor = AutoProcessor.from_pretrained(str(adapter) if own else path, trust_remote_code=False)
        model = AutoModelForImageTextToText.from_pretrained(
            path,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            device_map=device_map,
            attn_implementation=attn_implementation,
            trust_remote_code=False,
            use_safetensors=True,
            **({} if four_bits is None else {"quantization_config": four_bits}),
        )
        if own and len(processor.tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
        if adapter is not None:
            model = _with_adapter(model, str(adapter))
        if device is not None:
            model = model.to(device)
    except ModelError:
        raise
    except Exception as error:  # transformers, safetensors and the hub raise a dozen unrelated types here
        raise ModelError(_broken(path, error)) from error
    _check_tokens(path, processor)
    return model.eval(), processor


NOT_QUANTISED = ("model.visual", "lm_head")
"""Modules that 4-bit loading leaves alone: what the tower sees decides a box, the output layer writes its digits."""


def attention_of(dtype: str, device: Any) -> str:
    """``"flash_attention_2"`` where it is installed, on CUDA and in 16 bits; else ``"sdpa"``."""
    from transformers.utils import is_flash_attn_2_available

    half, cuda = dtype in ("bfloat16", "float16"), "cuda" in str(device) or device == "auto"
    return "flash_attention_2" if half and cuda and is_flash_attn_2_available() else "sdpa"


def _four_bits(quantization: str | None, dtype: str) -> Any:
    """What transformers is told of quantised loading, or None."""
    if quantization is None:
        return None
    if quantization != "4bit":
        raise ModelError(
            explain("quantization", expected="none or 4bit", found=repr(quantization), do="choose one")
        )
    import torch
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise ModelError(
            explain(
                "quantization=4bit",
                expected="bitsandbytes",
                found="none installed",
                do="pip install -e '.[gpu]', or train adapters of 16-bit weights (quantization=none)",
            )
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else getattr(torch, dtype),
        llm_int8_skip_modules=list(NOT_QUANTISED),
    )


def load_profile_model(
    settings: Any, project: Path, path: str | None = None, *, device: str | None = None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model that a profile names.

    Args:
        settings: The section ``model`` of a profile. The path ``"tiny"`` stands for a small checkpoint with random
            weights and the section's sizes; it is kept in ``runs/models`` of the project and built on first use.
            Folders are looked up in the project.
        project: Root of the project.
        path: Another path than the section's, with its other settings.
        device: Another device than the section's.

    Returns:
        ``(model, processor)``; see :func:`load_model`.
    """
    name = path or settings.path
    found: str | Path = project / name if (project / name).is_dir() else name
    if name == "tiny":
        from unireason_lib.grounding.tiny import build_tiny

        names = ("hidden", "layers", "vision_hidden", "vision_layers", "patch_size")
        sizes = {name: settings[name] for name in names}
        found = project / "runs" / "models" / ("tiny-" + "-".join(str(size) for size in sizes.values()))
        if not found.exists():
            found.parent.mkdir(parents=True, exist_ok=True)
            build_tiny(found, **sizes)
    return load_model(
        found,
        adapter=settings.adapter,
        dtype=settings.dtype,
        device=device or (None if settings.device == "auto" else settings.device),
        attn_implementation=settings.attention,
        quantization=settings.quantization,
    )


def adapter_base(folder: str | Path) -> str | None:
    """The model that an adapter in a folder was trained on, as the adapter names it; None for a whole checkpoint.

    Raises:
        ModelError: The adapter's configuration cannot be read or names no model.
    """
    path = Path(folder) / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except ValueError as error:
        raise ModelError(
            explain(path, expected="JSON", found=str(error), do="save the adapter again")
        ) from error
    if not isinstance(found, str) or not found:
        do = "give the model yourself, with this folder as its adapter"
        raise ModelError(explain(path, expected="base_model_name_or_path", found="none", do=do))
    return found


def base_model(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper (adapters act inside its layers), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _check_arguments(path: str, dtype: str, device: str | None, device_map: Any) -> None:
    if dtype not in DTYPES:
        raise ModelError(
            explain("dtype", expected=" or ".join(DTYPES), found=repr(dtype), do="choose one of them")
        )
    if device is not None and device_map is not None:
        raise ModelError(
            explain("load_model", expected="device or device_map", found="both", do="leave one of them out")
        )
    folder = Path(path)
    if folder.is_dir():
        if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
            raise ModelError(
                explain(
                    path,
                    expected="a complete checkpoint",
                    found="a PEFT adapter",
                    do="load the model that it was trained on, with this folder as the adapter",
                )
            )
        if not (folder / "config.json").exists():
            names = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
            raise ModelError(
                explain(
                    path, expected="a config.json in the folder", found=names, do="give a checkpoint's folder"
                )
            )
    elif folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ModelError(
            explain(
                path,
                expected="an existing checkpoint folder or a hub id like owner/name",
                found="a file" if folder.exists() else "no such folder",
                do="check the path",
            )
        )


def _check_architecture(path: str) -> None:
    from transformers import AutoConfig

    try:
        model_type = AutoConfig.from_pretrained(path, trust_remote_code=False).model_type
    except Exception as error:  # see load_model
        raise ModelError(_broken(path, error)) from error
    if model_type != ARCHITECTURE:
        raise ModelError(
            explain(
                path,
                expected=f"the architecture {ARCHITECTURE}",
                found=model_type,
                do="use a Qwen2.5-VL checkpoint: other models place image tokens and positions by other rules",
            )
        )


def _check_tokens(path: str, processor: Any) -> None:
    vocabulary = processor.tokenizer.get_vocab()
    missing = [token for token in NEEDED_TOKENS if token not in vocabulary]
    if missing:
        raise ModelError(
            explain(
                path,
                expected="one token each for " + " ".join(NEEDED_TOKENS),
                found="no " + " ".join(missing),
                do="use the tokenizer of a Qwen2.5-VL checkpoint",
            )
        )


def _with_adapter(model: Any, adapter: str) -> Any:
    from peft import PeftModel

    folder = Path(adapter)
    if folder.is_dir():
        if not (folder / "adapter_model.safetensors").exists():
            raise ModelError(
                explain(
                    adapter,
                    expected="adapter_config.json and adapter_model.safetensors",
                    found=", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing",
                    do="save the adapter with save_pretrained, in safetensors",
                )
            )
        json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return PeftModel.from_pretrained(model, adapter, use_safetensors=True)


def _broken(path: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return explain(
        path,
        expected="a complete, readable checkpoint (config, safetensors, processor)",
        found=f"{type(error).__name__}: {reason[:300]}",
        do="check the folder, or for a hub id the network, the spelling and your access",
    )
