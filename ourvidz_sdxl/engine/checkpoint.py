"""Validation of a checkpoint's files by names, headers and configuration, before the slow load.

Pickles (.ckpt, .pt, .bin and the like) can run code when they are read: they are refused by name and never opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ourvidz_sdxl.engine.configuration import check_configs, check_latent_channels, check_pipeline
from ourvidz_sdxl.engine.prediction import NO_SETTINGS, ScheduleSettings, schedule_changes
from ourvidz_sdxl.engine.quantised import UNSCALED_DTYPES, refuse_unknown
from ourvidz_sdxl.errors import ModelInvalid, ModelMissing

PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
WEIGHT_NAMES = {  # part -> the stem of its weight file in a diffusers folder
    "vae": "diffusion_pytorch_model",
    "unet": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
LANDMARKS = {  # what a single-file SDXL has -> a tensor that shows it
    "UNet": "model.diffusion_model.input_blocks.0.0.weight",
    "size conditioning": "model.diffusion_model.label_emb.0.0.weight",
    "VAE": "first_stage_model.decoder.conv_in.weight",
    "first text encoder": "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
    "second text encoder": "conditioner.embedders.1.model.text_projection",
}
LOOKALIKES = {  # how a tensor name starts -> what such a file is
    "cond_stage_model.": "Stable Diffusion 1 or 2",
    "conditioner.embedders.0.model.": "the SDXL refiner",
    "lora_": "a LoRA",
    "edm_": "an SDXL with the EDM noise schedule",
    "control_model.": "a ControlNet",
    "model.diffusion_model.double_blocks.": "Flux",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
}
ARCHITECTURE, BASE_MODEL = "modelspec.architecture", "ss_base_model_version"  # ModelSpec's and kohya's
OTHER_ARCHITECTURES = {  # parts of such a name that say another model than SDXL base
    *("inpaint", "inpainting", "edit", "instructpix2pix", "pix2pix", "refiner", "edm", "flow"),
    *("lora", "textual", "controlnet", "motion"),
}


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Shape of a tensor in a safetensors file, and its dtype by the format's own name (F16, F8_E4M3, …)."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Header:
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str] = field(default_factory=dict)


def check_headers(model: Path, lora: Path | None = None, schedule: ScheduleSettings = NO_SETTINGS) -> None:
    """Makes every check that headers and configurations are enough for: no weights, no torch, some milliseconds.

    Raises ModelMissing or ModelInvalid.
    """
    if model.is_dir():
        folder_schedule(model, check_folder(model)["unet"], schedule)
    else:
        check_file(model)
        file_schedule(model, schedule)
    if lora:
        check_lora(lora)


def check_file(path: Path) -> None:
    """Checks one file, apart from its schedule (see `file_schedule`).

    Raises ModelMissing, or ModelInvalid for a pickle, a damaged file, or another kind of model.
    """
    _check_name(path, "is neither a .safetensors file nor a diffusers folder")
    header = read_header(path)
    for start, kind in LOOKALIKES.items():
        if any(key.startswith(start) for key in header.tensors):
            raise ModelInvalid(f"{path.name} is {kind}, not SDXL")
    check_architecture(path, header.metadata)
    refuse_unknown(path, header.tensors, header.metadata)
    if absent := [name for name, key in LANDMARKS.items() if not _has(header, key)]:
        raise ModelInvalid(f"{path.name} is not a whole SDXL: it has no {', no '.join(absent)}")
    unet = header.tensors[LANDMARKS["UNet"]].shape
    check_latent_channels(path, unet[1] if len(unet) == 4 else 0)


def file_schedule(path: Path, settings: ScheduleSettings = NO_SETTINGS) -> dict[str, Any]:
    """`prediction.schedule_changes` of one file, by its header; raises ModelInvalid."""
    header = read_header(path)
    return schedule_changes(path, header.tensors, header.metadata, {}, settings)


def check_folder(path: Path) -> dict[str, list[Path]]:
    """Checks a diffusers folder; returns the weight files of each part.

    Raises ModelMissing, naming what is not there, or ModelInvalid for pickles, damage, or another kind of model.
    """
    index_file = path / "model_index.json"
    if not index_file.is_file():
        raise ModelMissing(f"{path} has no model_index.json, so it is not a diffusers folder")
    index = read_json(index_file)
    check_pipeline(path, index)
    entries = {part: index.get(part) for part in WEIGHT_NAMES}  # [library, class], or nulls
    if absent := [part for part, entry in entries.items() if not (isinstance(entry, list) and entry and entry[0])]:
        raise ModelInvalid(f"{path} is not a whole SDXL: it has no {', no '.join(absent)}")
    configs = {"scheduler": "scheduler/scheduler_config.json", **{part: f"{part}/config.json" for part in WEIGHT_NAMES}}
    for name in configs.values():
        if not (path / name).is_file():
            raise ModelMissing(f"{path} has no {name}")
    check_configs(path, {part: read_json(path / name) for part, name in configs.items()})
    files = {part: _weight_files(path / part, stem) for part, stem in WEIGHT_NAMES.items()}
    for file in (file for part in files.values() for file in part):
        header = read_header(file)
        check_architecture(file, header.metadata)
        refuse_unknown(file, header.tensors, header.metadata)
    return files


def folder_schedule(path: Path, unet_files: Iterable[Path], settings: ScheduleSettings = NO_SETTINGS) -> dict[str, Any]:
    """`prediction.schedule_changes` of a diffusers folder, by the headers of its UNet's files; raises ModelInvalid."""
    headers = [read_header(file) for file in unet_files]
    tensors = {name: tensor for header in headers for name, tensor in header.tensors.items()}
    metadata = {name: text for header in headers for name, text in header.metadata.items()}
    config = read_json(path / "scheduler/scheduler_config.json")
    return schedule_changes(path, tensors, metadata, config, settings)


def check_lora(path: Path) -> None:
    """Raises ModelMissing, or ModelInvalid for a pickle, a damaged file, or another adapter than a LoRA."""
    from ourvidz_sdxl.engine.lora_names import refuse_other_kinds

    _check_name(path, "is not a .safetensors file")
    tensors = read_header(path).tensors
    refuse_other_kinds(path, tensors)
    for name, stored in tensors.items():
        if stored.dtype not in UNSCALED_DTYPES:
            raise ModelInvalid(f"{path.name}: {name} is {stored.dtype}, a quantisation that is not read")


def check_architecture(path: Path, metadata: Mapping[str, str]) -> None:
    """Raises ModelInvalid where the metadata names another model than SDXL base, or a model derived from it.

    Stability-AI/ModelSpec writes `stable-diffusion-xl-v1-base`, ComfyUI `…-edit` and `…-refiner` too, kohya
    a suffix such as `/lora`, and `sdxl_base_v1-0` under its own key.
    """
    for key in (ARCHITECTURE, BASE_MODEL):
        name = metadata.get(key, "").lower()
        if name and ("xl" not in name or OTHER_ARCHITECTURES & {*re.split(r"[^a-z0-9]+", name)}):
            raise ModelInvalid(f"{path.name} is {metadata[key]} ({key} in its metadata), not SDXL base")


def read_header(file: Path) -> Header:
    """Names, dtypes and shapes of the tensors in a safetensors file, and its metadata. Raises ModelInvalid.

    Opening compares the offsets in the header with the size of the file, so a download that was cut off is found here.
    """
    try:
        with safe_open(file, framework="np"), file.open("rb") as stream:
            text = stream.read(int.from_bytes(stream.read(8), "little"))
        entries = json.loads(text, object_pairs_hook=_without_duplicates)
        metadata = entries.pop("__metadata__", None) or {}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are not text")
        tensors = {name: Stored(dtype=entry["dtype"], shape=tuple(entry["shape"])) for name, entry in entries.items()}
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelInvalid(f"{file} is damaged, cut off or not safetensors: {error}") from error
    return Header(tensors=tensors, metadata=metadata)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelInvalid where it is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelInvalid(f"{file} could not be loaded: {error}") from error
    if not isinstance(content, dict):
        raise ModelInvalid(f"{file} could not be loaded: it is not a JSON object")
    return content


def fingerprint(files: Iterable[Path]) -> str:
    """Tells checkpoints apart: SHA-256 (hex) of each header and of the first 512 bytes of every tensor.

    A hash of all 7 GB would add seconds to each start; any training or merging changes the beginning of some tensor.
    """
    digest = sha256()
    for file in files:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = stream.read(size)
            digest.update(header)
            for name, entry in json.loads(header).items():
                if name != "__metadata__":
                    begin, end = entry["data_offsets"]  # counted from the end of the header
                    stream.seek(8 + size + begin)
                    digest.update(stream.read(min(512, end - begin)))
    return digest.hexdigest()


def _check_name(path: Path, otherwise: str) -> None:
    if not path.exists():
        raise ModelMissing(f"there is nothing at {path}")
    if path.suffix in PICKLES:
        raise ModelInvalid(f"{path.name} is a pickle, which can run code when it is read: use the .safetensors file")
    if path.suffix != ".safetensors" or not path.is_file():
        kind = ": it is a GGUF, whose quantisations are not read" if path.suffix == ".gguf" else ""
        raise ModelInvalid(f"{path.name} {otherwise}{kind}")


def _has(header: Header, landmark: str) -> bool:
    """True if the file has the part that `landmark` stands for, under any of its names.

    `original_names.file_sources` knows all names of a part, and the load checks each tensor.
    """
    if landmark == LANDMARKS["first text encoder"]:
        return any(key.endswith("embeddings.token_embedding.weight") for key in header.tensors)
    if landmark == LANDMARKS["second text encoder"]:
        second = ("conditioner.embedders.1.", "clip_g.", "text_encoders.clip_g.")
        ends = ("text_projection", "text_projection.weight")
        return any(key.startswith(second) and key.endswith(ends) for key in header.tensors)
    if landmark == LANDMARKS["VAE"]:
        return any(f"{prefix}decoder.conv_in.weight" in header.tensors for prefix in ("first_stage_model.", "vae."))
    return landmark in header.tensors


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError where a key stands in it twice, of which a reader would take either."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} stands in it twice")
    return found


SHARD_NAME = re.compile(r"[\w.-]{1,200}\.safetensors")


def _weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors of one part: one file, one `.fp16` file, or the shards that an index lists."""
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / name).is_file():
            return [folder / name]
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
        if not names or not all(SHARD_NAME.fullmatch(name) for name in names):
            raise ModelInvalid(f"{index} could not be loaded: its weight_map names no files")
        for name in names:
            if not (folder / name).is_file():
                raise ModelMissing(f"{folder} has no {name}")
        return [folder / name for name in names]
    for file in sorted(folder.iterdir()):
        if file.suffix in PICKLES:
            raise ModelInvalid(f"{folder} has only {file.name}, a pickle, which can run code when it is read")
    raise ModelMissing(f"{folder} has no {stem}.safetensors")
