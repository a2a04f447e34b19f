"""Single files and folders as other tools write them: read to the same weights, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs
from torch import Tensor

from ourvidz_sdxl.doctor.finding import State
from ourvidz_sdxl.doctor.machine import check_model
from ourvidz_sdxl.engine.fast.engine import FastEngine
from ourvidz_sdxl.engine.load import MODELS, Components, fingerprint_of, load_components
from ourvidz_sdxl.engine.prediction import ScheduleSettings
from ourvidz_sdxl.errors import ModelInvalid
from ourvidz_sdxl.settings import Settings
from ourvidz_sdxl.startup import load_real_engine
from tools import single_file

MODEL = Path(__file__).parents[2] / "models" / "tiny-sdxl"
SECOND = "conditioner.embedders.1.model."
FIRST = "conditioner.embedders.0.transformer.text_model."
LINEAR = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"  # 96 x 96
CONVOLUTION = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"  # 96 x 96 x 3 x 3
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def bundled() -> Components:
    return load_components(MODEL, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def tensors(bundled: Components) -> Tensors:
    """The bundled model as one file in SDXL's original layout."""
    models = {part: getattr(bundled, part) for part in MODELS}
    return {
        entry.name: entry.make().to(entry.dtype).clone().contiguous()
        for entry in single_file.entries(models, torch.float32, lambda _name, parameter: parameter)
    }


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Components]:
    def load(tensors: Tensors, metadata: dict[str, str] | None = None, **options: Any) -> Components:
        save_file(tensors, tmp_path / "model.safetensors", metadata)
        return load_components(tmp_path / "model.safetensors", device="cpu", config=MODEL, **options)

    return load


def assert_same(loaded: Components, expected: Components) -> None:
    for part in MODELS:
        ours, theirs = getattr(loaded, part).state_dict(), getattr(expected, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == [], part


def test_a_projection_under_transformers_name_is_not_transposed(
    load: Callable[..., Components], tensors: Tensors, bundled: Components
) -> None:
    """OpenCLIP's `text_projection` is [in, out], transformers' `text_projection.weight` [out, in]."""
    matrix = tensors[f"{SECOND}text_projection"]
    assert not torch.equal(matrix, matrix.T)
    others = {name: one for name, one in tensors.items() if name != f"{SECOND}text_projection"}
    assert_same(load(tensors), bundled)
    assert_same(load(others | {f"{SECOND}text_projection.weight": matrix.T.contiguous()}), bundled)


def test_both_spellings_of_the_projection_are_one_too_many(load: Callable[..., Components], tensors: Tensors) -> None:
    both = tensors | {f"{SECOND}text_projection.weight": tensors[f"{SECOND}text_projection"].T.contiguous()}
    with pytest.raises(ModelInvalid, match=r"1 tensors that SDXL does not have, such as .*text_projection\.weight"):
        load(both)


@pytest.mark.parametrize("prefix", ["conditioner.embedders.1.transformer.", "clip_g.transformer.", f"{SECOND}transformer."])
def test_the_second_encoder_under_transformers_names(
    load: Callable[..., Components], tensors: Tensors, bundled: Components, prefix: str
) -> None:
    others = {name: one for name, one in tensors.items() if not name.startswith(SECOND)}
    second = {f"{prefix}{name}": one.contiguous() for name, one in bundled.text_encoder_2.state_dict().items()}
    assert_same(load(others | second), bundled)


@pytest.mark.parametrize("prefix", ["conditioner.embedders.0.transformer.", "clip_l.transformer.text_model."])
def test_the_first_encoder_under_other_prefixes(
    load: Callable[..., Components], tensors: Tensors, bundled: Components, prefix: str
) -> None:
    assert_same(load({name.replace(FIRST, prefix): one for name, one in tensors.items()}), bundled)


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.input_blocks.1.1.norm.weight",
        "model.diffusion_model.motion_modules.0.weight",
        "first_stage_model.decoder.time_mix_conv.weight",
        f"{FIRST}encoder.layers.9.mlp.fc1.weight",
        f"{SECOND}visual.proj",
        "conditioner.embedders.2.weight",
        "control_net.weight",
        "scale_factor",
    ],
)
def test_a_tensor_that_nothing_takes_is_refused_by_its_name(load: Callable[..., Components], tensors: Tensors, name: str) -> None:
    with pytest.raises(ModelInvalid, match=f"1 tensors that SDXL does not have, such as {name}"):
        load(tensors | {name: torch.zeros(2)}, empty=MODELS)


def test_known_extras_are_passed_over(load: Callable[..., Components], tensors: Tensors, bundled: Components) -> None:
    names = [
        *("denoiser.sigmas", "alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_mean_coef1", "logvar", "betas"),
        *("model_ema.decay", "model_ema.num_updates", "model_ema.diffusion_modelinput_blocks00weight", "loss.logvar"),
        *("conditioner.embedders.0.transformer.text_projection.weight", "conditioner.embedders.0.logit_scale"),
        *("first_stage_model.loss.discriminator.main.0.weight", "model.diffusion_model.scaled_fp8"),
    ]
    assert_same(load(tensors | {name: torch.zeros(2) for name in names}), bundled)


QUANTISED = {
    "NF4": (f"{LINEAR}.absmax", "bitsandbytes"),
    "NF4's state": (f"{LINEAR}.quant_state.bitsandbytes__nf4", "bitsandbytes"),
    "GPTQ": (LINEAR.replace(".weight", ".qweight"), "GPTQ or AWQ"),
    "SVDQuant": (LINEAR.replace(".weight", ".wscales"), "SVDQuant"),
    "NVFP4": (LINEAR.replace(".weight", ".weight_scale_2"), "NVFP4"),
    "quanto": (f"{LINEAR}._data", "optimum-quanto"),
    "torchao": (LINEAR.replace(".weight", "._weight_qdata"), "torchao"),
    "zero points": (LINEAR.replace(".weight", ".weight_zero_point"), "an asymmetric quantisation"),
}


@pytest.mark.parametrize(("name", "kind"), QUANTISED.values(), ids=QUANTISED)
def test_a_quantisation_that_is_not_read_is_named(load: Callable[..., Components], tensors: Tensors, name: str, kind: str) -> None:
    with pytest.raises(ModelInvalid, match=f"quantised with .*{kind}"):
        load(tensors | {name: torch.zeros(2)})


def quantised(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    scaled = weight / scale
    return scaled.round().clamp(-127, 127).to(dtype) if dtype is torch.int8 else scaled.to(dtype)


SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "one": lambda weight: weight.abs().max() / 127,
    "one in a list": lambda weight: weight.abs().max()[None] / 127,
    "each channel": lambda weight: weight.abs().flatten(1).amax(1) / 127,
    "each channel, kept axes": lambda weight: weight.abs().flatten(1).amax(1).view(-1, *[1] * (weight.ndim - 1)) / 127,
}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("ending", [".scale_weight", ".weight_scale"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_scaled_weights_are_multiplied_out(
    load: Callable[..., Components], tensors: Tensors, dtype: torch.dtype, ending: str, scale: Callable[[Tensor], Tensor]
) -> None:
    changed, expected = dict(tensors), {}
    for name in (LINEAR, CONVOLUTION):
        layer, factor = name.removesuffix(".weight"), scale(tensors[name])
        spread = factor.view(-1, *[1] * (tensors[name].ndim - 1)) if factor.ndim == 1 else factor
        changed[name] = quantised(tensors[name], spread, dtype)
        changed |= {f"{layer}{ending}": factor, f"{layer}.scale_input": torch.ones(())}
        expected[name] = changed[name].float() * spread
    unet = load(changed | {"model.diffusion_model.scaled_fp8": torch.zeros(0).to(torch.float8_e4m3fn)}).unet
    assert torch.equal(unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1.to_q.weight, expected[LINEAR])
    assert torch.equal(unet.down_blocks[0].resnets[0].conv1.weight, expected[CONVOLUTION])
    assert (expected[LINEAR] - tensors[LINEAR]).abs().max() < 0.15 * tensors[LINEAR].abs().max()


def test_scales_of_blocks(load: Callable[..., Components], tensors: Tensors) -> None:
    scale = torch.rand(2, 3) + 0.5
    weight = tensors[LINEAR].to(torch.float8_e4m3fn)
    unet = load(tensors | {LINEAR: weight, LINEAR.replace("weight", "weight_scale_inv"): scale}).unet
    rows, columns = (torch.arange(96) // (96 // count) for count in scale.shape)
    expected = weight.float() * scale[rows][:, columns]
    assert torch.equal(unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1.to_q.weight, expected)


def test_fp8_without_a_scale_is_cast(load: Callable[..., Components], tensors: Tensors) -> None:
    cast = {name: one.to(torch.float8_e4m3fn) if one.ndim > 1 else one for name, one in tensors.items() if one.is_floating_point()}
    unet = load(cast).unet
    assert torch.equal(unet.conv_out.weight, cast["model.diffusion_model.out.2.weight"].float())


def comfy(**options: object) -> Tensor:
    return torch.tensor([*json.dumps(options).encode()], dtype=torch.uint8)


def test_comfyui_says_the_format_of_each_layer(load: Callable[..., Components], tensors: Tensors) -> None:
    layer = LINEAR.removesuffix(".weight")
    scaled = {LINEAR: tensors[LINEAR].to(torch.float8_e4m3fn), f"{layer}.weight_scale": torch.tensor(2.0)}
    marked = scaled | {f"{layer}.comfy_quant": comfy(format="float8_e4m3fn", full_precision_matrix_mult=True)}
    weight = load(tensors | marked).unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1.to_q.weight
    assert torch.equal(weight, scaled[LINEAR].float() * 2)
    for other in (comfy(format="mxfp8"), comfy(format="float8_e4m3fn", convrot=True), torch.zeros(3, dtype=torch.uint8)):
        with pytest.raises(ModelInvalid, match="quantised with comfy_quant"):
            load(tensors | scaled | {f"{layer}.comfy_quant": other})
    for told in ('{"layers": {"x": {"format": "int8_convrot"}}}', "{"):
        with pytest.raises(ModelInvalid, match="quantised with comfy_quant"):
            load(tensors | scaled, {"_quantization_metadata": told})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({LINEAR: torch.zeros(96, 96, dtype=torch.int8)}, "is I8 without a scale"),
        ({LINEAR: torch.zeros(96, 96, dtype=torch.uint8)}, "is U8 without a scale"),
        ({LINEAR.replace("weight", "weight_scale"): torch.zeros(5)}, "fits neither channels nor blocks"),
        ({LINEAR.replace("weight", "weight_scale"): torch.zeros(96, dtype=torch.uint8)}, "weight_scale is U8"),
        ({"nowhere.weight_scale": torch.zeros(())}, "such as nowhere.weight_scale"),
    ],
)
def test_a_scale_that_does_not_fit_is_refused(
    load: Callable[..., Components], tensors: Tensors, change: Tensors, told: str
) -> None:
    with pytest.raises(ModelInvalid, match=told):
        load(tensors | change, empty=MODELS)


@pytest.mark.parametrize(
    "name",
    [
        "first_stage_model.decoder.conv_in.weight",
        f"{FIRST}encoder.layers.1.mlp.fc1.weight",
        f"{SECOND}positional_embedding",
        "model.diffusion_model.out.0.weight",
    ],
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_is_refused(load: Callable[..., Components], tensors: Tensors, name: str, value: float) -> None:
    damaged = tensors[name].clone()
    damaged.view(-1)[-1] = value
    with pytest.raises(ModelInvalid, match=f"{name} of the .* has values that are not finite"):
        load(tensors | {name: damaged})


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({"modelspec.architecture": "stable-diffusion-xl-v1-inpainting"}, "stable-diffusion-xl-v1-inpainting"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-edit"}, "stable-diffusion-xl-v1-edit"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-refiner"}, "stable-diffusion-xl-v1-refiner"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "stable-diffusion-xl-v1-base/lora"),
        ({"modelspec.architecture": "stable-diffusion-v1"}, "stable-diffusion-v1"),
        ({"ss_base_model_version": "sd_v2_768_v"}, "sd_v2_768_v"),
        ({"modelspec.prediction_type": "sample"}, "predicts 'sample'"),
    ],
)
def test_metadata_of_another_model_refuse_the_file(
    load: Callable[..., Components], tensors: Tensors, metadata: dict[str, str], told: str
) -> None:
    with pytest.raises(ModelInvalid, match=told):
        load(tensors, metadata, empty=MODELS)


def test_metadata_of_sdxl_are_read(load: Callable[..., Components], tensors: Tensors) -> None:
    metadata = {
        "modelspec.architecture": "stable-diffusion-xl-v1-base",
        "ss_base_model_version": "sdxl_base_v1-0",
        "modelspec.prediction_type": "v",
        "ss_zero_terminal_snr": "True",
    }
    config = load(tensors, metadata, empty=MODELS).scheduler_config
    assert config["prediction_type"] == "v_prediction"
    assert config["rescale_betas_zero_snr"] is True
    assert config["timestep_spacing"] == "trailing"


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return Path(shutil.copytree(MODEL, tmp_path / "model"))

    @pytest.mark.parametrize("part", list(MODELS))
    def test_a_tensor_that_nothing_takes_is_refused(self, folder: Path, part: str) -> None:
        (weights,) = (folder / part).glob("*.safetensors")
        save_file(load_file(weights) | {"motion_modules.0.weight": torch.zeros(2)}, weights, {"format": "pt"})
        with pytest.raises(ModelInvalid, match=r"such as motion_modules\.0\.weight"):
            load_components(folder, device="cpu", empty=MODELS)

    def test_attention_under_its_older_names(self, folder: Path, bundled: Components) -> None:
        weights = folder / "vae/diffusion_pytorch_model.safetensors"
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        tensors = load_file(weights)
        for new, name in old.items():
            tensors = {key.replace(f".{new}.", f".{name}."): one for key, one in tensors.items()}
        save_file(tensors, weights, {"format": "pt"})
        assert_same(load_components(folder, device="cpu"), bundled)

    def test_a_projection_beside_the_first_encoder_is_passed_over(self, folder: Path, bundled: Components) -> None:
        weights = folder / "text_encoder/model.safetensors"
        save_file(load_file(weights) | {"text_projection.weight": torch.zeros(96, 96)}, weights, {"format": "pt"})
        assert_same(load_components(folder, device="cpu"), bundled)

    def test_scaled_fp8(self, folder: Path) -> None:
        weights = folder / "unet/diffusion_pytorch_model.safetensors"
        tensors = load_file(weights) | {"conv_out.weight_scale": torch.tensor(0.5)}
        tensors["conv_out.weight"] = tensors["conv_out.weight"].to(torch.float8_e4m3fn)
        save_file(tensors, weights, {"format": "pt"})
        loaded = load_components(folder, device="cpu")
        assert torch.equal(loaded.unet.conv_out.weight, tensors["conv_out.weight"].float() / 2)

    def test_metadata_of_the_unet_count(self, folder: Path) -> None:
        weights = folder / "unet/diffusion_pytorch_model.safetensors"
        save_file(load_file(weights), weights, {"format": "pt", "modelspec.prediction_type": "v"})
        assert load_components(folder, device="cpu", empty=MODELS).scheduler_config["prediction_type"] == "v_prediction"

    def test_an_entry_of_the_configuration_that_diffusers_does_not_know(self, folder: Path) -> None:
        config = folder / "unet/config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"motion_max_seq_length": 32}))
        with pytest.raises(ModelInvalid, match="a unet with motion_max_seq_length is not supported"):
            load_components(folder, device="cpu", empty=MODELS)

    @pytest.mark.parametrize(
        ("file", "change"),
        [
            ("unet/config.json", {"block_out_channels": "many"}),
            ("unet/config.json", {"norm_num_groups": 7}),
            ("text_encoder/config.json", {"hidden_act": "nobody"}),
            ("scheduler/scheduler_config.json", {"_class_name": "DPMSolverSDEScheduler"}),  # it needs torchsde
            ("scheduler/scheduler_config.json", {"num_train_timesteps": "many"}),
            ("model_index.json", {"unet": 5}),
        ],
    )
    def test_configuration_that_libraries_stumble_over(self, folder: Path, file: str, change: dict[str, Any]) -> None:
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
        with pytest.raises(ModelInvalid):
            FastEngine.load(folder)

    def test_a_tokenizer_that_is_damaged(self, folder: Path) -> None:
        (folder / "tokenizer/vocab.json").write_text("{")
        with pytest.raises(ModelInvalid, match="tokenizer could not be loaded"):
            load_components(folder, device="cpu", empty=MODELS)

    @pytest.mark.parametrize(
        ("file", "change", "told"),
        [
            ("tokenizer/vocab.json", {"new": 975}, "tokenizer has 976 tokens, and its text encoder 975"),
            ("text_encoder/config.json", {"eos_token_id": 7}, "reads token 7 as a prompt's end"),
        ],
    )
    def test_a_tokenizer_of_another_vocabulary(self, folder: Path, file: str, change: dict[str, Any], told: str) -> None:
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
        with pytest.raises(ModelInvalid, match=told):
            load_components(folder, device="cpu", empty=MODELS)


def settings(**changes: Any) -> Settings:
    return Settings(supabase_url="http://127.0.0.1:1", supabase_service_role_key="sb_secret_x", **changes)  # type: ignore[arg-type]


def test_the_operators_settings_reach_the_scheduler() -> None:
    asked = settings(model_path=MODEL, engine="reference", prediction_type="v_prediction", timestep_spacing="trailing")
    config = load_real_engine(asked)._parts.scheduler_config  # type: ignore[attr-defined]
    assert (config["prediction_type"], config["timestep_spacing"]) == ("v_prediction", "trailing")


def test_a_file_whose_prediction_the_operator_settles_loads_and_has_its_fingerprint(tmp_path: Path, tensors: Tensors) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors | {"ztsnr": torch.zeros(1)}, path, {"format": "pt"})
    asked = settings(model_path=path, prediction_type="v_prediction", timestep_spacing="linspace")
    schedule = ScheduleSettings(prediction_type=asked.prediction_type, timestep_spacing=asked.timestep_spacing)
    with capture_logs() as logs:
        parts = load_components(path, device="cpu", empty=MODELS, config=MODEL, schedule=schedule)
    assert parts.scheduler_config["prediction_type"] == "v_prediction"
    assert [entry["event"] for entry in logs] == ["schedule_overridden"]
    assert fingerprint_of(path) == parts.fingerprint  # what FastEngine names its kept weights by
    with pytest.raises(ModelInvalid, match="PREDICTION_TYPE says which is right"):
        load_components(path, device="cpu", empty=MODELS, config=MODEL)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rescale_betas_zero_snr": True, "prediction_type": "epsilon"}, "zero terminal SNR and predicts epsilon"),
        ({"_class_name": "SASolverScheduler"}, "its scheduler is SASolverScheduler"),
    ],
)
def test_doctor_refuses_a_folders_schedule_as_the_worker_does(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    folder = Path(shutil.copytree(MODEL, tmp_path / "model"))
    file = folder / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    finding = check_model(settings(model_path=folder))
    assert (finding.state, told in finding.words) == (State.FAIL, True)
    with pytest.raises(ModelInvalid, match=told):
        FastEngine.load(folder)


def test_doctor_sees_a_tensor_that_the_worker_would_refuse(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MODEL, tmp_path / "model"))
    assert check_model(settings(model_path=folder)).state is State.OK
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    save_file(load_file(weights) | {"decoder.mix": torch.zeros(1)}, weights, {"format": "pt"})
    finding = check_model(settings(model_path=folder))
    assert finding.state is State.FAIL
    assert "decoder.mix" in finding.words


def test_doctor_sees_a_lora_that_the_worker_would_refuse() -> None:
    lora = Path(__file__).parents[1] / "cases" / "loras" / "nan_weight.safetensors"
    finding = check_model(settings(model_path=MODEL, fast_lora_path=lora))
    assert "NaN" in finding.words
    assert "FAST_LORA_PATH" in finding.mend
