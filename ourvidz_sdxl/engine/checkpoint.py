"""Is there a whole SDXL at a path? Only names, headers and configuration are read: the answer precedes the slow load.

Pickles (.ckpt, .pt, .bin and the like) can run code when they are read: they are refused by name and never opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

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
}


def check_file(path: Path) -> dict[str, Any]:
    """Checks one file; returns what its marker tensors change in the scheduler's configuration.

    Raises ModelMissing, or ModelInvalid for a pickle, a damaged file, or another kind of model.
    """
    _check_name(path, "is neither a .safetensors file nor a diffusers folder")
    header = read_header(path)
    for start, kind in LOOKALIKES.items():
        if any(key.startswith(start) for key in header):
            raise ModelInvalid(f"{path.name} is {kind}, not SDXL")
    if absent := [name for name, key in LANDMARKS.items() if key not in header]:
        raise ModelInvalid(f"{path.name} is not a whole SDXL: it has no {', no '.join(absent)}")
    _check_latent_channels(path, header[LANDMARKS["UNet"]][1])
    if "v_pred" not in header:
        return {}
    # Empty tensors by these two names are how a file says that it predicts v (ComfyUI, supported_models.py).
    return {"prediction_type": "v_prediction", "rescale_betas_zero_snr": "ztsnr" in header}


def check_folder(path: Path) -> dict[str, list[Path]]:
    """Checks a diffusers folder; returns the weight files of each part.

    Raises ModelMissing, naming what is not there, or ModelInvalid for pickles, damage, or another kind of model.
    """
    index_file = path / "model_index.json"
    if not index_file.is_file():
        raise ModelMissing(f"{path} has no model_index.json, so it is not a diffusers folder")
    index = json.loads(index_file.read_text(encoding="utf-8"))
    if not str(index.get("_class_name")).startswith("StableDiffusionXL"):
        raise ModelInvalid(f"{path} holds a {index.get('_class_name')}, not SDXL")
    if absent := [part for part in WEIGHT_NAMES if not index.get(part, [None])[0]]:
        raise ModelInvalid(f"{path} is not a whole SDXL: it has no {', no '.join(absent)}")
    for name in ("scheduler/scheduler_config.json", *(f"{part}/config.json" for part in WEIGHT_NAMES)):
        if not (path / name).is_file():
            raise ModelMissing(f"{path} has no {name}")
    unet = json.loads((path / "unet/config.json").read_text(encoding="utf-8"))
    _check_latent_channels(path, unet.get("in_channels", 4))
    files = {part: _weight_files(path / part, stem) for part, stem in WEIGHT_NAMES.items()}
    for file in (file for part in files.values() for file in part):
        read_header(file)
    return files


def check_lora(path: Path) -> None:
    """Raises ModelMissing, or ModelInvalid for a pickle, a damaged file, or one without a LoRA's tensors."""
    _check_name(path, "is not a .safetensors file")
    if not any("lora_" in key for key in read_header(path)):
        raise ModelInvalid(f"{path.name} is not a LoRA")


def read_header(file: Path) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file, none of which is read. Raises ModelInvalid.

    Opening compares the offsets in the header with the size of the file, so a download that was cut off is found here.
    """
    try:
        with safe_open(file, framework="np") as opened:
            return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelInvalid(f"{file} is damaged, cut off or not safetensors: {error}") from error


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
    if path.suffix != ".safetensors":
        raise ModelInvalid(f"{path.name} {otherwise}")


def _check_latent_channels(path: Path, channels: int) -> None:
    if channels != 4:
        raise ModelInvalid(f"{path.name}: its UNet takes {channels} channels and not 4; is it an inpainting model?")


def _weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors of one part: one file, one `.fp16` file, or the shards that an index lists."""
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / name).is_file():
            return [folder / name]
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        for name in names:
            if not (folder / name).is_file():
                raise ModelMissing(f"{folder} has no {name}")
        return [folder / name for name in names]
    for file in sorted(folder.iterdir()):
        if file.suffix in PICKLES:
            raise ModelInvalid(f"{folder} has only {file.name}, a pickle, which can run code when it is read")
    raise ModelMissing(f"{folder} has no {stem}.safetensors")
