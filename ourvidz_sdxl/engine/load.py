"""A path -> the parts of an SDXL on a device. The path is a diffusers folder or one `.safetensors` file, never a hub."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # huggingface_hub reads it once, when it is imported

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ourvidz_sdxl.engine.checkpoint import check_file, check_folder, fingerprint
from ourvidz_sdxl.errors import ModelInvalid

SDXL_BASE = Path(__file__).with_name("sdxl_base")
CLIP_VOCABULARY = 49_408  # tokens; the text encoders of every SDXL share it
CLIP_CONTEXT = 77  # tokens, the start and the end included
PAD_TOKENS = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}  # OpenCLIP pads with token 0, which is "!"
MODELS: dict[str, Any] = {
    "vae": AutoencoderKL,
    "unet": UNet2DConditionModel,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Components:
    """An SDXL in parts, on one device, in eval mode and without gradients.

    `vae` has its own dtype, because it overflows in float16; whoever calls it casts to `vae.dtype`. Its `force_upcast`
    is off: otherwise diffusers would move it to float32 on every call. `fingerprint`: see `checkpoint.fingerprint`.
    """

    name: str
    fingerprint: str
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    scheduler_config: Mapping[str, Any]
    force_zeros_for_empty_prompt: bool


def load_components(
    path: Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    vae_dtype: torch.dtype | None = None,
    config: Path = SDXL_BASE,
    empty: Collection[str] = (),
) -> Components:
    """Loads the SDXL at `path`. The folder `config` describes a single file; a diffusers folder describes itself.

    The models named in `empty` get no weights: their parameters have shapes and dtypes, and no memory.

    Without dtypes: float32 on the CPU; on a GPU float16, and bfloat16 for the VAE. Raises ModelMissing where nothing is
    there or a folder is incomplete, ModelInvalid for a pickle, a damaged file or a model that is not SDXL.
    """
    device = torch.device(device)
    on_cpu = device.type == "cpu"
    dtypes = dict.fromkeys(MODELS, dtype or (torch.float32 if on_cpu else torch.float16))
    dtypes["vae"] = vae_dtype or (torch.float32 if on_cpu else torch.bfloat16)
    try:
        if path.is_dir():
            config, schedule, files = path, {}, check_folder(path)
            parts = {part: _from_folder(path, part, files[part], device, dtypes[part]) for part in MODELS if part not in empty}
        else:
            schedule, files = check_file(path), {"all": [path]}
            tensors = load_file(path)  # memory-mapped: each tensor is read when it is copied to the device
            parts = {part: _from_file(path, tensors, part, config, device, dtypes[part]) for part in MODELS if part not in empty}
        parts |= {part: empty_model(part, config).to(dtypes[part]) for part in empty}
        index, scheduler = (
            json.loads((config / name).read_text(encoding="utf-8"))
            for name in ("model_index.json", "scheduler/scheduler_config.json")
        )
        tokenizer, tokenizer_2 = (
            load_tokenizer(config, name, parts[name.replace("tokenizer", "text_encoder")].config.vocab_size)
            for name in ("tokenizer", "tokenizer_2")
        )
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # the device's fault and not the model's
    except (KeyError, ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise ModelInvalid(f"{path} could not be loaded: {error!r}") from error
    for model in parts.values():
        model.eval().requires_grad_(False)
    parts["vae"].register_to_config(force_upcast=False)
    return Components(
        name=path.resolve().name if path.is_dir() else path.stem,
        fingerprint=fingerprint(file for part in files.values() for file in part),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        scheduler_config=scheduler | schedule,
        force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
        **parts,
    )


def fingerprint_of(path: Path) -> str:
    """`checkpoint.fingerprint` of the SDXL at `path`; raises what `load_components` raises where there is none."""
    if path.is_dir():
        return fingerprint(file for part in check_folder(path).values() for file in part)
    check_file(path)
    return fingerprint([path])


def empty_model(part: str, config: Path) -> Any:
    """The model that the diffusers folder `config` describes; its parameters have shapes but no memory."""
    kind = MODELS[part]
    with init_empty_weights():
        if part in ("vae", "unet"):
            return kind.from_config(kind.load_config(config / part, local_files_only=True))
        return kind(kind.config_class.from_pretrained(config / part, local_files_only=True))


def load_tokenizer(config: Path, name: str, vocabulary: int) -> CLIPTokenizer:
    """`tokenizer` or `tokenizer_2` of the diffusers folder `config`, for a text encoder of so many tokens.

    CLIP's own is always made from the merges in this package. In most folders "!" is a special token of tokenizer_2, so
    that an exclamation mark in a prompt reads as padding; here it is a word, as in OpenCLIP, which SDXL was trained with.
    """
    if vocabulary != CLIP_VOCABULARY:
        return CLIPTokenizer.from_pretrained(config / name, local_files_only=True)
    lines = (SDXL_BASE / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    # Tokens are numbered so: the 256 bytes, those that print first; the same at a word's end; the merges; two marks.
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = [chr(code) for code in (*printing, *range(0x100, 0x200 - len(printing)))]
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(left + right for left, right in merges)]
    numbers = {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(numbers, merges, model_max_length=CLIP_CONTEXT)
    tokenizer.pad_token = PAD_TOKENS[name]  # set afterwards: given to the constructor, it would become a special token
    return tokenizer


def _from_folder(path: Path, part: str, files: list[Path], device: torch.device, dtype: torch.dtype) -> Any:
    """One model of a diffusers folder."""
    model, report = MODELS[part].from_pretrained(
        path,
        subfolder=part,
        torch_dtype=dtype,
        variant="fp16" if ".fp16." in files[0].name else None,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    _refuse_gaps(path, part, report["missing_keys"])  # the libraries fill them with noise
    return model.to(device)


def _from_file(path: Path, tensors: Tensors, part: str, config: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """One model of a single file, tensor by tensor onto the device."""
    model = empty_model(part, config)
    slots = model.state_dict()
    found = _diffusers_names(tensors, part, model)
    _refuse_gaps(path, part, slots.keys() - found.keys())
    for name, slot in slots.items():
        if found[name].shape != slot.shape:
            raise ModelInvalid(f"{path}: {name} of the {part} is {[*found[name].shape]}, SDXL's is {[*slot.shape]}")
    model.load_state_dict({name: found[name].to(device, dtype) for name in slots}, assign=True)
    return model.to(device)  # for the buffers that no file holds, such as position ids


def _diffusers_names(tensors: Tensors, part: str, model: Any) -> Tensors:
    """The tensors of one part under diffusers' names, by the conversions that its `from_single_file` uses (0.42.1).

    They are called one by one, because `from_single_file` itself tells the text encoders apart by their width alone,
    which may be equal in a small model, and says nothing useful about tensors that are not there.
    """
    named: Tensors
    if part == "vae":
        named = single_file_utils.convert_ldm_vae_checkpoint(tensors, model.config)
    elif part == "unet":
        named = single_file_utils.convert_ldm_unet_checkpoint(tensors, model.config)
    elif part == "text_encoder":  # transformers 5.6 took the outer module, text_model, away
        named = single_file_utils.convert_ldm_clip_checkpoint(tensors)
        named = {name.removeprefix("text_model."): tensor for name, tensor in named.items()}
    else:
        prefix = "conditioner.embedders.1.model."
        named = single_file_utils.convert_open_clip_checkpoint(model, tensors, prefix=prefix)
    return named


def _refuse_gaps(path: Path, part: str, absent: Collection[str]) -> None:
    if absent:
        raise ModelInvalid(f"{path}: the {part} lacks {len(absent)} tensors, such as {min(absent)}")
