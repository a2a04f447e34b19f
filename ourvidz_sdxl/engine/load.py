"""A path -> the parts of an SDXL on a device. The path is a diffusers folder or one `.safetensors` file, never a hub."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # huggingface_hub reads it once, when it is imported

import diffusers
import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from ourvidz_sdxl.engine.checkpoint import check_file, check_folder, file_schedule, fingerprint, folder_schedule, read_json
from ourvidz_sdxl.engine.configuration import CLIP_CONTEXT
from ourvidz_sdxl.engine.original_names import file_sources, folder_sources
from ourvidz_sdxl.engine.prediction import NO_SETTINGS, ScheduleSettings
from ourvidz_sdxl.engine.schedulers import log_overrides
from ourvidz_sdxl.engine.weights import StoredWeights
from ourvidz_sdxl.errors import ModelInvalid

diffusers_logging.set_verbosity_error()  # its warning about long prompts would print the prompt
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

SDXL_BASE = Path(__file__).with_name("sdxl_base")
CLIP_VOCABULARY = 49_408  # tokens; the text encoders of every SDXL share it
PAD_TOKENS = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}  # OpenCLIP pads with token 0, which is "!"
LEGACY_EOS = 2  # in a CLIP configuration: the highest token is the end (transformers, modeling_clip.py)
MODELS: dict[str, Any] = {
    "vae": AutoencoderKL,
    "unet": UNet2DConditionModel,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}


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
    schedule: ScheduleSettings = NO_SETTINGS,
) -> Components:
    """Loads the SDXL at `path`. The folder `config` describes a single file; a diffusers folder describes itself.

    The models named in `empty` get no weights: their parameters have shapes and dtypes, and no memory. Their tensors are
    checked all the same, by the headers of the files.

    Without dtypes: float32 on the CPU; on a GPU float16, and bfloat16 for the VAE. Raises ModelMissing where nothing is
    there or a folder is incomplete, ModelInvalid for a pickle, a damaged file, a model that is not SDXL, or a tensor that
    is not understood.
    """
    device = torch.device(device)
    on_cpu = device.type == "cpu"
    dtypes = dict.fromkeys(MODELS, dtype or (torch.float32 if on_cpu else torch.float16))
    dtypes["vae"] = vae_dtype or (torch.float32 if on_cpu else torch.bfloat16)
    with damage_is_the_models(path):
        if path.is_dir():
            config, files = path, check_folder(path)
            changes = folder_schedule(path, files["unet"], schedule)
        else:
            check_file(path)
            changes, files = file_schedule(path, schedule), {"all": [path]}
        parts = {part: empty_model(part, config) for part in MODELS}
        _load_weights(path, files, parts, empty=empty, device=device, dtypes=dtypes)
        index, scheduler = (read_json(config / name) for name in ("model_index.json", "scheduler/scheduler_config.json"))
        scheduler |= changes
        getattr(diffusers, scheduler["_class_name"]).from_config(scheduler)  # refuses what it cannot be made with
        tokenizer, tokenizer_2 = (
            load_tokenizer(config, name, encoder.config.vocab_size)
            for name, encoder in (("tokenizer", parts["text_encoder"]), ("tokenizer_2", parts["text_encoder_2"]))
        )
        for ours, encoder in ((tokenizer, parts["text_encoder"]), (tokenizer_2, parts["text_encoder_2"])):
            if encoder.config.eos_token_id not in (LEGACY_EOS, ours.eos_token_id):
                raise ModelInvalid(
                    f"{path}: a text encoder reads token {encoder.config.eos_token_id} as a prompt's end, not {ours.eos_token_id}"
                )
    log_overrides(scheduler, schedule)
    for model in parts.values():
        model.eval().requires_grad_(False)
    parts["vae"].register_to_config(force_upcast=False)
    return Components(
        name=path.resolve().name if path.is_dir() else path.stem,
        fingerprint=fingerprint(file for part in files.values() for file in part),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        scheduler_config=scheduler,
        force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
        **parts,
    )


def fingerprint_of(path: Path) -> str:
    """`checkpoint.fingerprint` of the SDXL at `path`; raises what `load_components` raises where there is none.

    Weights alone: what they predict and its refusals are left to `load_components`, which knows the operator's settings.
    """
    with damage_is_the_models(path):
        if path.is_dir():
            return fingerprint(file for part in check_folder(path).values() for file in part)
        check_file(path)
        return fingerprint([path])


@contextmanager
def damage_is_the_models(path: Path) -> Iterator[None]:
    """Raises ModelInvalid for what libraries raise where a file or a configuration is not as they expect."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # the device's fault and not the model's
    except (LookupError, ValueError, TypeError, AttributeError, ImportError, OSError, RuntimeError, SafetensorError) as error:
        raise ModelInvalid(f"{path} could not be loaded: {error!r}") from error


def _load_weights(
    path: Path,
    files: Mapping[str, list[Path]],
    parts: Mapping[str, Any],
    *,
    empty: Collection[str],
    device: torch.device,
    dtypes: Mapping[str, torch.dtype],
) -> None:
    """Checks the headers of all files, and then fills the parts that are not to stay empty."""
    if path.is_dir():
        stored = {part: StoredWeights(path, files[part], part) for part in parts}
        sources = {part: folder_sources(part, model.state_dict()) for part, model in parts.items()}
    else:
        stored = dict.fromkeys(parts, StoredWeights(path, files["all"]))
        sources = {part: file_sources(part, model.config, model.state_dict()) for part, model in parts.items()}
    found = {part: stored[part].match(part, model, sources[part]) for part, model in parts.items()}
    for weights in {id(weights): weights for weights in stored.values()}.values():
        weights.refuse_leftovers()
    for part, model in parts.items():
        if part in empty:
            model.to(dtypes[part])
        else:
            stored[part].load(part, model, found[part], device, dtypes[part])


def empty_model(part: str, config: Path) -> Any:
    """The model that the diffusers folder `config` describes; its parameters have shapes but no memory.

    Raises ModelInvalid for an entry of its configuration that its class does not know, and so would not use.
    """
    kind = MODELS[part]
    with init_empty_weights(), no_init_weights():  # random values for 2,000 layers that are to be overwritten take a second
        if part not in ("vae", "unet"):
            return kind(kind.config_class.from_pretrained(config / part, local_files_only=True))
        entries = kind.load_config(config / part, local_files_only=True)
        known = inspect.signature(kind.__init__).parameters
        unknown = [name for name, value in entries.items() if name not in known and not name.startswith("_") and value]
        if unknown:
            raise ModelInvalid(f"{config}: a {part} with {', '.join(unknown)} is not supported")
        return kind.from_config(entries)


def load_tokenizer(config: Path, name: str, vocabulary: int) -> CLIPTokenizer:
    """`tokenizer` or `tokenizer_2` of the diffusers folder `config`, for a text encoder of so many tokens.

    CLIP's own is always made from the merges in this package. In most folders "!" is a special token of tokenizer_2, so
    that an exclamation mark in a prompt reads as padding; here it is a word, as in OpenCLIP, which SDXL was trained with.
    Raises ModelInvalid for a tokenizer with other tokens than its text encoder has.
    """
    if vocabulary == CLIP_VOCABULARY:
        tokenizer = _clip_tokenizer(config / name)
        tokenizer.pad_token = PAD_TOKENS[name]  # set afterwards: given to the constructor, it would become a special token
    else:
        try:
            tokenizer = CLIPTokenizer.from_pretrained(config / name, local_files_only=True)
        except Exception as error:  # tokenizers raises nothing more specific for a damaged file
            raise ModelInvalid(f"{config / name} could not be loaded: {error!r}") from error
        tokenizer.model_max_length = CLIP_CONTEXT
    if len(tokenizer) != vocabulary:
        raise ModelInvalid(f"{config}: {name} has {len(tokenizer)} tokens, and its text encoder {vocabulary}")
    return tokenizer


def _clip_tokenizer(folder: Path) -> CLIPTokenizer:
    lines = (SDXL_BASE / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    # Tokens are numbered so: the 256 bytes, those that print first; the same at a word's end; the merges; two marks.
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = [chr(code) for code in (*printing, *range(0x100, 0x200 - len(printing)))]
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(left + right for left, right in merges)]
    numbers = {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    for file, own in _vocabularies(folder).items():
        if own != numbers:
            raise ModelInvalid(f"{folder / file} has another vocabulary than CLIP's, which its text encoder is for")
    return CLIPTokenizer(numbers, merges, model_max_length=CLIP_CONTEXT)


def _vocabularies(folder: Path) -> dict[str, dict[str, int]]:
    """Tokens and their numbers, by the file of a tokenizer's folder that has them all; added tokens included."""
    found: dict[str, dict[str, int]] = {}
    added = read_json(folder / "added_tokens.json") if (folder / "added_tokens.json").is_file() else {}
    if (folder / "vocab.json").is_file():
        found["vocab.json"] = read_json(folder / "vocab.json") | added
    if (folder / "tokenizer.json").is_file():
        whole = read_json(folder / "tokenizer.json")
        marks = {token["content"]: token["id"] for token in whole.get("added_tokens", [])}
        found["tokenizer.json"] = whole["model"]["vocab"] | marks | added
    return found
