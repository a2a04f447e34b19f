"""Names of the tensors in a LoRA's file: known spellings, and other kinds of adapter by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ourvidz_sdxl.engine.original_names import original_layer, unet_modules
from ourvidz_sdxl.errors import ModelInvalid

PREFIXES = (  # before diffusers' name of a layer; the longest first
    "base_model.model.unet.",
    "base_model.model.",  # PEFT's save_pretrained
    "unet.base_model.model.",
    "unet.",  # diffusers' save_lora_weights
)
ORIGINAL_PREFIXES = ("model.diffusion_model.", "diffusion_model.")  # ComfyUI's, before the original name
FLAT, FLAT_LYCORIS = "lora_unet_", "lycoris_"  # kohya's and LyCORIS', before a name with _ for its dots
TEXT_ENCODERS = re.compile(r"(lora_te|(base_model\.model\.)?(text_encoder|te[12]?)[._]|lycoris_text|clip_[lg]\.)")
ENDINGS = (  # (ending, which part of the sum it is)
    (r"\.lora_down\.weight", "down"),  # kohya
    (r"\.lora_up\.weight", "up"),
    (r"\.lora_A(\.[^.]+)?\.weight", "down"),  # PEFT, with the adapter's name if its state was saved whole
    (r"\.lora_B(\.[^.]+)?\.weight", "up"),
    (r"\.lora\.down\.weight", "down"),  # diffusers' LoRACompatibleLinear
    (r"\.lora\.up\.weight", "up"),
    (r"\.lora_linear_layer\.down\.weight", "down"),  # diffusers' first training scripts
    (r"\.lora_linear_layer\.up\.weight", "up"),
    (r"_lora\.down\.weight", "down"),  # diffusers' LoRAAttnProcessor: processor.to_q_lora
    (r"_lora\.up\.weight", "up"),
    (r"\.alpha", "alpha"),
)
OTHER_KINDS = {  # what a name has in it -> the adapter that it belongs to (LyCORIS, docs/Algo-Details.md; PEFT)
    r"\.dora_scale$|lora_magnitude_vector": "a DoRA",
    r"\.hada_": "a LoHa",
    r"\.lokr_": "a LoKr",
    r"\.(oft|boft)_": "an OFT",
    r"\.on_input$|\.ia3_": "an (IA)³",
    r"\.[ab][12]\.weight$": "a GLoRA",
    r"\.lora_mid\.": "a LoCon with a Tucker decomposition",
    r"\.(diff|diff_b|set_weight)$": "a difference of whole weights",
    r"\.[wb]_norm$": "a difference of norms",
    r"\.lora_B(\.[^.]+)?\.bias$": "a LoRA with biases",
    r"\.vera_": "a VeRA",
}


def refuse_other_kinds(path: Path, names: Iterable[str]) -> None:
    """Raises ModelInvalid for an adapter that is not a LoRA of the UNet alone, by the name of its kind."""
    keys = sorted(names)
    for part, kind in OTHER_KINDS.items():
        if others := [key for key in keys if re.search(part, key)]:
            raise ModelInvalid(
                f"{path.name} is {kind}, which is not supported: it has {len(others)} tensors of another kind "
                f"than a LoRA's down, up and alpha, such as {others[0]}"
            )
    if others := [key for key in keys if TEXT_ENCODERS.match(key)]:
        raise ModelInvalid(
            f"{path.name} changes the text encoders, too ({len(others)} tensors, such as {others[0]}); "
            "only the UNet's part can be used"
        )
    if not any(parse_key(key) for key in keys):
        raise ModelInvalid(f"{path.name} is not a LoRA")


def parse_key(key: str) -> tuple[str, str] | None:
    """A tensor's name -> its layer's (as in `layer_names`) and `down`, `up` or `alpha`; None for any other."""
    for ending, part in ENDINGS:
        if found := re.search(f"{ending}$", key):
            layer = key[: found.start()]
            if ending.startswith("_lora"):  # …attn1.processor.to_out_lora is …attn1.to_out.0
                layer = layer.replace(".processor.", ".")
                layer = f"{layer}.0" if layer.endswith(".to_out") else layer
            if layer.startswith(FLAT_LYCORIS):
                return FLAT + layer.removeprefix(FLAT_LYCORIS), part
            for prefix in ORIGINAL_PREFIXES:
                if layer.startswith(prefix):
                    return FLAT + layer.removeprefix(prefix).replace(".", "_"), part
            return layer.removeprefix(next((prefix for prefix in PREFIXES if layer.startswith(prefix)), "")), part
    return None


def layer_names(unet: Any) -> dict[str, str]:
    """Every name that a LoRA may have for a layer -> diffusers' own, which is also PEFT's."""
    from torch import nn

    modules = unet_modules(unet.config)
    names = {}
    for name, layer in unet.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            for known in (name, original_layer(name, modules)):
                names[f"{FLAT}{known.replace('.', '_')}"] = name
            names[name] = name
    return names
