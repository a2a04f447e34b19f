"""A LoRA's file and the UNet that it makes, held against diffusers with peft."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ourvidz_sdxl.engine.checkpoint import check_lora
from ourvidz_sdxl.engine.load import SDXL_BASE, Components, empty_model, load_components
from ourvidz_sdxl.engine.lora import with_lora
from ourvidz_sdxl.engine.lora_names import layer_names, parse_key
from ourvidz_sdxl.engine.original_names import original_layer, unet_modules
from ourvidz_sdxl.errors import ModelInvalid, ModelMissing

MODEL = Path(__file__).parents[2] / "models" / "tiny-sdxl"
RANK = 4
Tensors = dict[str, Tensor]
Namer = Callable[[str, Any], tuple[str, str, str]]  # a layer's name -> what its down, up and alpha are called


@pytest.fixture(scope="module")
def parts() -> Components:
    return load_components(MODEL, device="cpu")


def kohya(name: str, _config: Any) -> tuple[str, str, str]:
    flat = f"lora_unet_{name.replace('.', '_')}"
    return f"{flat}.lora_down.weight", f"{flat}.lora_up.weight", f"{flat}.alpha"


def original(name: str, config: Any) -> tuple[str, str, str]:
    return kohya(original_layer(name, unet_modules(config)), config)


def peft(name: str, _config: Any) -> tuple[str, str, str]:
    return f"unet.{name}.lora_A.weight", f"unet.{name}.lora_B.weight", ""


def layers_of(unet: Any) -> dict[str, nn.Module]:
    return {name: layer for name, layer in unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}


def random_lora(unet: Any, namer: Namer, names: list[str], alpha_value: float = 3.0) -> Tensors:
    """For the layers named, with an alpha where the names have room for one."""
    generator = torch.Generator().manual_seed(0)
    tensors: Tensors = {}
    for name in names:
        weight = unet.get_submodule(name).weight
        down, up, alpha = namer(name, unet.config)
        tensors[down] = torch.randn(RANK, *weight.shape[1:], generator=generator) / 8
        tensors[up] = torch.randn(len(weight), RANK, *[1] * (weight.ndim - 2), generator=generator) / 8
        if alpha:
            tensors[alpha] = torch.tensor(alpha_value)
    return tensors


def written(path: Path, tensors: Mapping[str, Tensor], adapter: dict[str, Any] | None = None) -> Path:
    file = path / "hyper-8.safetensors"
    save_file(dict(tensors), file, {"format": "pt"} | ({"lora_adapter_metadata": json.dumps(adapter)} if adapter else {}))
    return file


def fused_by_diffusers(parts: Components, file: Path) -> Any:
    """The same by `load_lora_weights` and `fuse_lora` on a UNet of its own."""
    unet = load_components(MODEL, device="cpu").unet
    pipeline = StableDiffusionXLPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        text_encoder_2=parts.text_encoder_2,
        tokenizer=parts.tokenizer,
        tokenizer_2=parts.tokenizer_2,
        unet=unet,
        scheduler=None,
        add_watermarker=False,
    )
    pipeline.load_lora_weights(file)
    pipeline.fuse_lora(components=["unet"])
    pipeline.unload_lora_weights()
    return unet


@pytest.mark.parametrize(
    ("namer", "adapter"),
    [
        (kohya, None),
        (original, None),
        (peft, None),
        (peft, {"unet.lora_alpha": 3.0, "unet.r": RANK, "unet.target_modules": ["to_q", "conv1"]}),
    ],
    ids=["kohya, diffusers' blocks", "kohya, original blocks", "peft", "peft with an alpha"],
)
def test_the_weights_are_those_that_diffusers_fuses(
    parts: Components, tmp_path: Path, namer: Namer, adapter: dict[str, Any] | None
) -> None:
    names = [name for name in layers_of(parts.unet) if not (namer is kohya and "_embedding" in name)]  # diffusers misnames those
    if adapter:
        names = [name for name in names if name.endswith(("to_q", "conv1"))]
    file = written(tmp_path, random_lora(parts.unet, namer, names), adapter)
    ours, theirs = with_lora(parts.unet, file).state_dict(), fused_by_diffusers(parts, file).state_dict()
    assert ours.keys() == theirs.keys()
    for name, weight in parts.unet.state_dict().items():
        assert torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-5), name
        assert torch.equal(ours[name], weight) == (name.removesuffix(".weight") not in names)


def test_each_layer_has_the_alpha_that_its_file_gives_it(parts: Components, tmp_path: Path) -> None:
    """diffusers 0.42.1 loses those of attention where they differ."""
    names = ["mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1", "conv_in"]
    tensors: Tensors = {}
    for number, name in enumerate(names):
        tensors |= random_lora(parts.unet, kohya, [name], alpha_value=number + 1.0)
    del tensors["lora_unet_conv_in.alpha"]  # then it is the rank
    unet = with_lora(parts.unet, written(tmp_path, tensors))
    for name, alpha in zip(names, (1, 2, RANK), strict=True):
        down, up = (tensors[key] for key in kohya(name, None)[:2])
        change = torch.einsum("or...,ri...->oi...", up.flatten(1), down) * alpha / RANK
        assert torch.allclose(unet.get_submodule(name).weight, parts.unet.get_submodule(name).weight + change, atol=1e-6)


def test_layers_without_a_part_share_their_memory_and_the_base_stays_as_it_was(parts: Components, tmp_path: Path) -> None:
    before = {name: weight.clone() for name, weight in parts.unet.named_parameters()}
    name = "mid_block.resnets.0.conv1"
    after = dict(with_lora(parts.unet, written(tmp_path, random_lora(parts.unet, peft, [name]))).named_parameters())
    for other, weight in parts.unet.named_parameters():
        assert torch.equal(weight, before[other])
        assert after[other] is not weight, "one may be emptied without the other"
        assert (after[other].data_ptr() == weight.data_ptr()) == (other != f"{name}.weight")


def test_in_16_bits_the_sum_is_rounded_once(tmp_path: Path) -> None:
    unet = load_components(MODEL, device="cpu", dtype=torch.float16).unet
    name = "mid_block.attentions.0.proj_in"
    tensors = random_lora(unet, kohya, [name])
    down, up, alpha = (tensors[key].double() for key in kohya(name, None))
    exact = unet.get_submodule(name).weight.double() + alpha / RANK * (up @ down)
    weight = with_lora(unet, written(tmp_path, tensors)).get_submodule(name).weight
    assert weight.dtype is torch.float16
    assert (weight == exact.half()).float().mean() > 0.999


def test_names_of_published_files_are_known_and_no_two_layers_share_one() -> None:
    unet = empty_model("unet", SDXL_BASE)
    names = layer_names(unet)
    assert {name: names[f"lora_unet_{name}"] for name in PUBLISHED} == PUBLISHED
    assert len(names) == 3 * len(layers_of(unet))


PUBLISHED = {
    "input_blocks_0_0": "conv_in",
    "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_4_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks_4_1_transformer_blocks_1_ff_net_0_proj": "down_blocks.1.attentions.0.transformer_blocks.1.ff.net.0.proj",
    "middle_block_1_transformer_blocks_9_attn2_to_out_0": "mid_block.attentions.0.transformer_blocks.9.attn2.to_out.0",
    "middle_block_2_emb_layers_1": "mid_block.resnets.1.time_emb_proj",
    "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_8_0_in_layers_2": "up_blocks.2.resnets.2.conv1",
    "out_2": "conv_out",
    "label_emb_0_2": "add_embedding.linear_2",
    "up_blocks_1_attentions_2_proj_in": "up_blocks.1.attentions.2.proj_in",
}


def test_a_file_that_is_not_there_or_not_a_lora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="nothing at"):
        check_lora(tmp_path / "x.safetensors")
    for name, told in (("x.pt", "pickle"), ("x.txt", "not a .safetensors file"), ("x.safetensors", "damaged")):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ModelInvalid, match=told):
            check_lora(tmp_path / name)
    with pytest.raises(ModelInvalid, match=r"hyper-8\.safetensors is not a LoRA"):
        check_lora(written(tmp_path, {"model.diffusion_model.out.2.weight": torch.zeros(1)}))


CASES = Path(__file__).parents[1] / "cases" / "loras"
TO_Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def as_peft(file: Path, folder: Path) -> Path:
    """`lora_linear_layer` under the names that diffusers 0.42.1 still reads; any other file as it is."""
    tensors = load_file(file)
    if not any(".lora_linear_layer." in key for key in tensors):
        return file
    halves = {".lora_linear_layer.down.": ".lora_A.", ".lora_linear_layer.up.": ".lora_B."}
    return written(
        folder, {key.replace(old, new): one for key, one in tensors.items() for old, new in halves.items() if old in key}
    )


@pytest.mark.parametrize("case", ["peft", "kohya_alpha2", "old_diffusers_processor", "lora_linear_layer"])
def test_a_published_spelling_is_read_as_diffusers_reads_it(parts: Components, tmp_path: Path, case: str) -> None:
    file = CASES / f"{case}.safetensors"
    ours, theirs = with_lora(parts.unet, file), fused_by_diffusers(parts, as_peft(file, tmp_path))
    weight, before = ours.get_submodule(TO_Q).weight, parts.unet.get_submodule(TO_Q).weight
    assert torch.allclose(weight, theirs.get_submodule(TO_Q).weight, rtol=0, atol=1e-5)
    assert not torch.allclose(weight, before, atol=1e-4)
    for name, other in ours.state_dict().items():
        assert name == f"{TO_Q}.weight" or torch.equal(other, parts.unet.state_dict()[name])


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("dora", "dora.safetensors is a DoRA"),
        ("loha", "loha.safetensors is a LoHa"),
        ("lokr", "lokr.safetensors is a LoKr"),
        ("kohya_te", "changes the text encoders, too"),
    ],
)
def test_another_kind_of_adapter_is_refused_by_name_before_any_weight_is_read(case: str, told: str) -> None:
    with pytest.raises(ModelInvalid, match=told):
        check_lora(CASES / f"{case}.safetensors")


@pytest.mark.parametrize(
    ("case", "told"),
    [("nan_weight", "has a NaN or infinity"), ("bad_metadata", "lora_adapter_metadata is not a JSON object")],
)
def test_a_damaged_adapter_is_refused(parts: Components, case: str, told: str) -> None:
    with pytest.raises(ModelInvalid, match=told):
        with_lora(parts.unet, CASES / f"{case}.safetensors")


SPELLINGS = {
    "peft's own": "base_model.model.{}.lora_A.weight",
    "peft's own, with the adapter's name": "base_model.model.unet.{}.lora_A.default.weight",
    "diffusers' layers": "unet.{}.lora.down.weight",
    "diffusers' attention": "{}.lora_linear_layer.down.weight",
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("layer", [TO_Q, "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"])
def test_each_spelling_is_the_same_sum(parts: Components, tmp_path: Path, spelling: str, layer: str) -> None:
    plain = random_lora(parts.unet, peft, [layer])
    down = spelling.format(layer)
    up = down.replace("lora_A", "lora_B").replace(".down.", ".up.")
    expected = with_lora(parts.unet, written(tmp_path, plain)).get_submodule(layer).weight
    renamed = {down: plain[f"unet.{layer}.lora_A.weight"], up: plain[f"unet.{layer}.lora_B.weight"]}
    assert torch.equal(with_lora(parts.unet, written(tmp_path, renamed)).get_submodule(layer).weight, expected)


@pytest.mark.parametrize("prefix", ["lycoris_", "diffusion_model.", "model.diffusion_model."])
def test_names_of_lycoris_and_comfyui(parts: Components, tmp_path: Path, prefix: str) -> None:
    plain = random_lora(parts.unet, original, [TO_Q])
    dotted = original_layer(TO_Q, unet_modules(parts.unet.config))
    flat = f"lora_unet_{dotted.replace('.', '_')}"
    layer = dotted if prefix.endswith(".") else TO_Q.replace(".", "_")
    renamed = {key.replace(flat, f"{prefix}{layer}"): tensor for key, tensor in plain.items()}
    expected = with_lora(parts.unet, written(tmp_path, plain)).get_submodule(TO_Q).weight
    assert torch.equal(with_lora(parts.unet, written(tmp_path, renamed)).get_submodule(TO_Q).weight, expected)


def test_old_processors_write_to_out_without_its_number() -> None:
    block = "up_blocks.0.attentions.0.transformer_blocks.0.attn1"
    assert parse_key(f"unet.{block}.processor.to_out_lora.up.weight") == (f"{block}.to_out.0", "up")
    assert parse_key(f"{block}.processor.to_v_lora.down.weight") == (f"{block}.to_v", "down")


def test_the_alpha_that_peft_saves_beside_its_file_counts(parts: Components, tmp_path: Path) -> None:
    tensors = {f"base_model.model.{key.removeprefix('unet.')}": one for key, one in random_lora(parts.unet, peft, [TO_Q]).items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2 * RANK, "r": RANK}))
    weight = with_lora(parts.unet, tmp_path / "adapter_model.safetensors").get_submodule(TO_Q).weight
    down, up = (tensors[f"base_model.model.{TO_Q}.lora_{half}.weight"] for half in "AB")
    assert torch.allclose(weight, parts.unet.get_submodule(TO_Q).weight + 2 * up @ down, atol=1e-6)


Q = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
FAULTS: dict[str, tuple[Tensors, str]] = {
    "text encoder (kohya)": ({"lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(())}, "text encoders, too"),
    "text encoder (peft)": ({"text_encoder_2.layers.0.q_proj.lora_A.weight": torch.ones(4, 4)}, "text encoders, too"),
    "DoRA": ({"lora_unet_conv_in.dora_scale": torch.ones(())}, "is a DoRA"),
    "DoRA of PEFT": ({"unet.conv_in.lora_magnitude_vector": torch.ones(4)}, "is a DoRA"),
    "LoHa": ({"lora_unet_conv_in.hada_w1_a": torch.ones(())}, "such as lora_unet_conv_in.hada_w1_a"),
    "OFT": ({"lora_unet_conv_in.oft_blocks": torch.ones(1)}, "is an OFT"),
    "(IA)3": ({"lora_unet_conv_in.on_input": torch.ones(1)}, r"is an \(IA\)³"),
    "GLoRA": ({"lora_unet_conv_in.a1.weight": torch.ones(1)}, "is a GLoRA"),
    "full": ({"lora_unet_conv_in.diff": torch.ones(1)}, "is a difference of whole weights"),
    "norms": ({"lora_unet_out_0.w_norm": torch.ones(1)}, "is a difference of norms"),
    "Tucker": ({"lora_unet_conv_in.lora_mid.weight": torch.ones(1)}, "a LoCon with a Tucker decomposition"),
    "bias": ({"unet.conv_in.lora_B.bias": torch.ones(1)}, "a LoRA with biases"),
    "what nobody knows": ({"unet.conv_in.lora_gate": torch.ones(1)}, "1 tensors of another kind"),
    "the same twice": (
        {f"base_model.model.mid_block.resnets.0.conv1.lora_{half}.weight": torch.ones(4, 4) for half in "AB"},
        "twice",
    ),
    "int8": ({f"unet.{Q}.lora_A.weight": torch.ones(4, 256).to(torch.int8)}, "a quantisation that is not read"),
    "rank 0": ({f"unet.{Q}.lora_A.weight": torch.ones(0, 256), f"unet.{Q}.lora_B.weight": torch.ones(112, 0)}, "has"),
    "an alpha of two numbers": ({"lora_unet_mid_block_resnets_0_conv1.alpha": torch.ones(2)}, "alpha that is not one number"),
    "infinity": ({f"unet.{Q}.lora_A.weight": torch.full((4, 256), torch.inf)}, "NaN or infinity"),
    "a layer of another model": (
        {"lora_unet_double_blocks_0_img_attn_proj.lora_up.weight": torch.ones(1, 1)},
        "layers that SDXL's UNet",
    ),
    "one half": ({"unet.conv_in.lora_A.weight": torch.ones(4, 4, 3, 3)}, "without the other half, such as conv_in"),
    "SD 1.5": ({f"unet.{Q}.lora_A.weight": torch.ones(4, 768), f"unet.{Q}.lora_B.weight": torch.ones(112, 4)}, "another model"),
    "outputs": ({f"unet.{Q}.lora_A.weight": torch.ones(4, 256), f"unet.{Q}.lora_B.weight": torch.ones(96, 4)}, "another model"),
    "ranks": ({f"unet.{Q}.lora_A.weight": torch.ones(8, 256), f"unet.{Q}.lora_B.weight": torch.ones(112, 4)}, "another model"),
    "a kernel": (
        {"unet.conv_out.lora_A.weight": torch.ones(4, 96, 1, 1), "unet.conv_out.lora_B.weight": torch.ones(4, 4, 1, 1)},
        "another",
    ),
    "kernels": (
        {"unet.conv_out.lora_A.weight": torch.ones(4, 96, 3, 3), "unet.conv_out.lora_B.weight": torch.ones(4, 4, 3, 3)},
        "another",
    ),
}


@pytest.mark.parametrize(("tensors", "told"), FAULTS.values(), ids=FAULTS)
def test_what_is_no_lora_of_this_unet_is_refused_in_words(parts: Components, tmp_path: Path, tensors: Tensors, told: str) -> None:
    whole = random_lora(parts.unet, peft, ["mid_block.resnets.0.conv1"])
    with pytest.raises(ModelInvalid, match=told):
        with_lora(parts.unet, written(tmp_path, whole | tensors))


@pytest.mark.parametrize(
    "adapter",
    [{"unet.use_rslora": True}, {"unet.use_dora": True}, {"alpha_pattern": {"to_q": 2}}, {"init_lora_weights": "pissa_niter_4"}],
)
def test_an_adapter_that_scales_otherwise_is_refused(parts: Components, tmp_path: Path, adapter: dict[str, Any]) -> None:
    file = written(tmp_path, random_lora(parts.unet, peft, ["conv_in"]), adapter)
    with pytest.raises(ModelInvalid, match="not a plain LoRA"):
        with_lora(parts.unet, file)
