"""A small SDXL, saved in both forms, loads to the same bits from either; its full-size names are those that diffusers knows."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ourvidz_sdxl.engine.checkpoint import LANDMARKS, fingerprint
from ourvidz_sdxl.engine.load import MODELS, SDXL_BASE, Components, empty_model, load_components, load_tokenizer
from ourvidz_sdxl.engine.original_names import PREFIXES
from ourvidz_sdxl.errors import ModelInvalid
from tools import single_file

WIDTH = 32  # of both text encoders: diffusers alone could not tell them apart


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("the loader tried the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """SDXL's structure with a few channels, and other values in every tensor, so that no two can be mixed up."""
    text = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": 4,
        "projection_dim": WIDTH,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    small = {
        "vae": AutoencoderKL(
            block_out_channels=(8, 16, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            norm_num_groups=4,
            scaling_factor=0.13025,
            force_upcast=True,
        ),
        "unet": UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(8, 16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            transformer_layers_per_block=(1, 2, 3),
            attention_head_dim=(1, 2, 4),
            cross_attention_dim=2 * WIDTH,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=WIDTH + 6 * 8,
            norm_num_groups=4,
        ),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**text, num_hidden_layers=2, hidden_act="quick_gelu")),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**text, num_hidden_layers=3, hidden_act="gelu")),
    }
    generator = torch.Generator().manual_seed(0)
    for model in small.values():
        for parameter in model.parameters():
            parameter.data.normal_(generator=generator)
    return small


@pytest.fixture(scope="module")
def folder(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small"
    StableDiffusionXLPipeline(
        **models,
        tokenizer=load_tokenizer(SDXL_BASE, "tokenizer", 49_408),
        tokenizer_2=load_tokenizer(SDXL_BASE, "tokenizer_2", 49_408),
        scheduler=EulerDiscreteScheduler.from_pretrained(SDXL_BASE, subfolder="scheduler", local_files_only=True),
        add_watermarker=False,
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    path = folder.with_name("small.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["single_file", "--from", str(folder), "--dtype", "float32", "--out", str(path)])
        single_file.main()
    return path


def empty_models(config: Path) -> dict[str, Any]:
    return {part: empty_model(part, config) for part in MODELS}


def assert_same(loaded: Components, models: dict[str, Any]) -> None:
    """Every parameter has the same bits."""
    for part, model in models.items():
        expected, found = model.state_dict(), getattr(loaded, part).state_dict()
        assert found.keys() == expected.keys(), part
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == [], part


def test_both_forms_load_to_the_same_bits(folder: Path, file: Path, models: dict[str, Any]) -> None:
    from_folder, from_file = load_components(folder, device="cpu"), load_components(file, device="cpu", config=folder)
    assert_same(from_folder, models)
    assert_same(from_file, models)
    assert from_folder.name == from_file.name == "small"
    assert from_folder.scheduler_config == from_file.scheduler_config
    assert from_folder.force_zeros_for_empty_prompt is from_file.force_zeros_for_empty_prompt is True
    assert from_folder.tokenizer_2("hello!").input_ids == from_file.tokenizer_2("hello!").input_ids


def test_names_are_those_of_diffusers_own_conversions(folder: Path, file: Path) -> None:
    """The loader and the tool that wrote the file share a table of names; diffusers' is another one."""
    loaded, tensors = load_components(file, device="cpu", config=folder), load_file(file)
    converted = {
        "vae": single_file_utils.convert_ldm_vae_checkpoint(tensors, loaded.vae.config),
        "unet": single_file_utils.convert_ldm_unet_checkpoint(tensors, loaded.unet.config),
        "text_encoder_2": single_file_utils.convert_open_clip_checkpoint(
            loaded.text_encoder_2, tensors, prefix="conditioner.embedders.1.model."
        ),
    }
    for part, expected in converted.items():
        found = getattr(loaded, part).state_dict()
        assert found.keys() == expected.keys(), part
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == [], part


@pytest.mark.parametrize("form", ["folder", "file"])
def test_parts_are_ready_to_paint(form: str, request: pytest.FixtureRequest, folder: Path) -> None:
    path = request.getfixturevalue(form)
    loaded = load_components(path, device="cpu", dtype=torch.float16, vae_dtype=torch.bfloat16, config=folder)
    for part in MODELS:
        model = getattr(loaded, part)
        assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16 if part == "vae" else torch.float16}
        assert not model.training
        assert not any(tensor.requires_grad for tensor in model.parameters())
    assert loaded.vae.config.force_upcast is False


@pytest.mark.parametrize("form", ["folder", "file"])
def test_nothing_is_left_behind_on_the_cpu(form: str, request: pytest.FixtureRequest, folder: Path) -> None:
    loaded = load_components(request.getfixturevalue(form), device="meta", config=folder)  # a device that every machine has
    for part in MODELS:
        model = getattr(loaded, part)
        left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.device.type != "meta"]
        assert left == [], part


def test_a_file_that_predicts_v_says_so_to_the_scheduler(file: Path, folder: Path, tmp_path: Path) -> None:
    save_file(load_file(file) | {"v_pred": torch.zeros(1)}, tmp_path / "v.safetensors")
    loaded = load_components(tmp_path / "v.safetensors", device="cpu", config=folder)
    assert loaded.scheduler_config["prediction_type"] == "v_prediction"


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("vae", "first_stage_model.decoder.up.0.block.2.norm2.bias"),
        ("unet", "model.diffusion_model.output_blocks.8.0.skip_connection.bias"),
        ("text_encoder", "conditioner.embedders.0.transformer.text_model.encoder.layers.1.mlp.fc2.bias"),
        ("text_encoder_2", "conditioner.embedders.1.model.ln_final.bias"),
    ],
)
class TestDamagedFile:
    def test_a_gap_is_refused(self, file: Path, folder: Path, tmp_path: Path, part: str, name: str) -> None:
        tensors = load_file(file)
        del tensors[name]
        save_file(tensors, tmp_path / "gap.safetensors")
        with pytest.raises(ModelInvalid, match=f"the {part} lacks 1 tensors"):
            load_components(tmp_path / "gap.safetensors", device="cpu", config=folder)

    def test_another_shape_is_refused(self, file: Path, folder: Path, tmp_path: Path, part: str, name: str) -> None:
        save_file(load_file(file) | {name: torch.zeros(3)}, tmp_path / "shape.safetensors")
        with pytest.raises(ModelInvalid, match=rf"of the {part} is \[3\], SDXL's is \["):
            load_components(tmp_path / "shape.safetensors", device="cpu", config=folder)


def test_a_small_model_is_not_taken_for_sdxl_base(file: Path) -> None:
    with pytest.raises(ModelInvalid, match="the vae lacks"):
        load_components(file, device="cpu")


class TestFolder:
    @pytest.fixture
    def copy(self, folder: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "copy"))

    def test_shards(self, copy: Path, models: dict[str, Any]) -> None:
        shutil.rmtree(copy / "unet")
        models["unet"].save_pretrained(copy / "unet", max_shard_size="100KB")
        assert len(list((copy / "unet").glob("*.safetensors"))) > 1
        assert_same(load_components(copy, device="cpu"), models)

    def test_weights_by_the_name_of_the_fp16_variant(self, copy: Path, models: dict[str, Any]) -> None:
        for weights in copy.glob("*/*.safetensors"):
            weights.rename(weights.with_suffix(".fp16.safetensors"))
        assert_same(load_components(copy, device="cpu"), models)

    def test_names_as_transformers_4_wrote_them(self, copy: Path, models: dict[str, Any]) -> None:
        weights = copy / "text_encoder/model.safetensors"
        tensors = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(weights).items()}
        save_file(tensors | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, weights, {"format": "pt"})
        assert_same(load_components(copy, device="cpu"), models)

    @pytest.mark.parametrize("part", list(MODELS))
    def test_a_gap_is_refused_and_not_filled_with_noise(self, copy: Path, part: str) -> None:
        (weights,) = (copy / part).glob("*.safetensors")
        tensors = load_file(weights)
        del tensors[next(name for name in tensors if name.endswith("bias"))]
        save_file(tensors, weights, {"format": "pt"})
        with pytest.raises(ModelInvalid, match=rf"the {part} lacks 1 tensors"):
            load_components(copy, device="cpu")

    @pytest.mark.parametrize("part", list(MODELS))
    def test_a_tensor_of_another_shape_is_refused(self, copy: Path, part: str) -> None:
        (weights,) = (copy / part).glob("*.safetensors")
        tensors = load_file(weights)
        name = next(name for name in tensors if name.endswith("bias"))
        save_file(tensors | {name: torch.zeros(3)}, weights, {"format": "pt"})
        with pytest.raises(ModelInvalid, match="could not be loaded"):
            load_components(copy, device="cpu")


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, ...]]:
    """The full-size file's tensors, without values."""
    tensors = single_file.entries(empty_models(SDXL_BASE), torch.float16, lambda _, tensor: tensor)
    return {entry.name: entry.shape for entry in tensors}


class TestFullSize:
    """SDXL base 1.0 as it is published, `sd_xl_base_1.0.safetensors`: 2,515 tensors."""

    def test_tensors_are_as_many_as_published(self, shapes: dict[str, tuple[int, ...]]) -> None:
        parts = Counter(next(part for part, start in PREFIXES.items() if name.startswith(start)) for name in shapes)
        assert parts == {"unet": 1680, "vae": 248, "text_encoder": 197, "text_encoder_2": 390}
        assert sum(parts.values()) == 2515

    def test_parameters_are_as_many_as_published(self) -> None:
        models = empty_models(SDXL_BASE)
        counts = {part: sum(tensor.numel() for tensor in model.parameters()) for part, model in models.items()}
        assert counts == {
            "unet": 2_567_463_684,
            "vae": 83_653_863,
            "text_encoder": 123_060_480,
            "text_encoder_2": 694_659_840,
        }

    def test_diffusers_and_the_loader_see_sdxl_base(self, shapes: dict[str, tuple[int, ...]]) -> None:
        assert infer_diffusers_model_type({name: torch.empty(s, device="meta") for name, s in shapes.items()}) == "xl_base"
        assert shapes.keys() >= set(LANDMARKS.values())

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("model.diffusion_model.input_blocks.3.0.op.weight", (320, 320, 3, 3)),
            ("model.diffusion_model.input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight", (1280, 2048)),
            ("model.diffusion_model.output_blocks.2.2.conv.weight", (1280, 1280, 3, 3)),
            ("model.diffusion_model.output_blocks.8.0.skip_connection.weight", (320, 640, 1, 1)),
            ("model.diffusion_model.label_emb.0.0.weight", (1280, 2816)),
            ("first_stage_model.decoder.mid.attn_1.q.weight", (512, 512, 1, 1)),
            ("first_stage_model.decoder.up.0.block.0.nin_shortcut.weight", (128, 256, 1, 1)),
            ("conditioner.embedders.0.transformer.text_model.embeddings.position_ids", (1, 77)),
            ("conditioner.embedders.1.model.positional_embedding", (77, 1280)),
            ("conditioner.embedders.1.model.text_projection", (1280, 1280)),
            ("conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight", (3840, 1280)),
            ("conditioner.embedders.1.model.logit_scale", ()),
        ],
    )
    def test_names_and_shapes_in_every_corner(self, shapes: dict[str, tuple[int, ...]], name: str, shape: tuple[int, ...]) -> None:
        assert shapes[name] == shape


def test_random_weights_follow_from_the_seed(folder: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for path, seed in zip(files, (0, 0, 1), strict=True):
        value = single_file.random_value(seed, torch.float16)
        single_file.write(path, single_file.entries(empty_models(folder), torch.float16, value))
    first, same, other = (fingerprint([path]) for path in files)
    assert first == same != other
    loaded = load_components(files[0], device="cpu", config=folder)
    assert all(tensor.isfinite().all() for part in MODELS for tensor in getattr(loaded, part).parameters())
    assert json.loads((folder / "unet/config.json").read_text())["in_channels"] == loaded.unet.config.in_channels
