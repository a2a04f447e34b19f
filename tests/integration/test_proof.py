"""Loading ends with a proof painting: what would fail every job is found before the first one, and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.accelerations import random_lora
from ourvidz_sdxl.engine import FastOptions, load_engine
from ourvidz_sdxl.engine.fast.engine import FastEngine
from ourvidz_sdxl.engine.proof import model_errors, require_finite
from ourvidz_sdxl.engine.sdxl import SdxlEngine
from ourvidz_sdxl.errors import GpuUnusable, ModelInvalid, OutOfMemory
from ourvidz_sdxl.job import Scheduler

BUNDLED = Path(__file__).resolve().parents[2] / "models" / "tiny-sdxl"
WEIGHTS = {  # part -> a weight that an element of is made NaN, and what the error names
    "unet": ("up_blocks.0.resnets.0.conv1.weight", "the UNet"),
    "vae": ("decoder.conv_norm_out.weight", "vae"),
    "text_encoder": ("embeddings.token_embedding.weight", "text_encoder"),
    "text_encoder_2": ("encoder.layers.0.mlp.fc1.weight", "text_encoder_2"),
}
KINDS = [SdxlEngine, FastEngine]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED, tmp_path / "model"))


def plant(file: Path, ending: str, value: float = float("nan")) -> None:
    """Makes the last element of one tensor `value`: of an embedding, that of a token which no proof has in its prompt."""
    tensors = load_file(file)
    [name] = [name for name in tensors if name.endswith(ending)]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, file, metadata={"format": "pt"})


def plant_in_model(model: Path, part: str, value: float = float("nan")) -> None:
    [file] = (model / part).glob("*.safetensors")
    plant(file, WEIGHTS[part][0], value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_found_by_the_name_of_its_part(kind: Any, model: Path, part: str, value: float) -> None:
    plant_in_model(model, part, value)
    with pytest.raises(ModelInvalid, match=WEIGHTS[part][1]):
        kind.load(model)


@pytest.mark.parametrize("kind", KINDS)
def test_so_is_one_in_a_few_step_lora(kind: Any, tmp_path: Path) -> None:
    lora = random_lora(BUNDLED, tmp_path / "few.safetensors")
    assert kind.load(BUNDLED, lora)
    tensors = load_file(lora)
    tensors[min(tensors)].view(-1)[0] = float("nan")
    save_file(tensors, lora)
    with pytest.raises(ModelInvalid, match=r"few\.safetensors"):
        kind.load(BUNDLED, lora)


def test_what_did_not_pass_is_not_kept_on_disk(model: Path) -> None:
    plant_in_model(model, "unet")
    with pytest.raises(ModelInvalid):
        FastEngine.load(model, options=FastOptions(keep_weights=True))
    assert not [*model.parent.glob("*.runtime*")]


@pytest.mark.parametrize("kind", ["reference", "fast"])
@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        {"_class_name": "NoSuchScheduler"},
        {"beta_schedule": "no such schedule"},
        {"prediction_type": "no such prediction"},
        {"timestep_spacing": "no such spacing"},
        {"beta_end": None},
        {"beta_end": 2.0},  # NaN in the square root of 1 - beta
        {"num_train_timesteps": 0},
    ],
    ids=str,
)
def test_a_scheduler_that_does_not_work_is_the_models_fault(kind: Any, model: Path, change: dict[str, Any]) -> None:
    file = model / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelInvalid):
        load_engine(model, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_running_engine_can_be_proven_again_and_paints_as_before(kind: Any) -> None:
    engine = kind.load(BUNDLED)
    for _ in range(2):
        engine.prove()
    assert engine.preview(0) is None, "nothing is left of the proof"
    with torch.inference_mode():
        engine._parts.text_encoder.get_submodule("encoder.layers.0.mlp.fc1").weight[0, 0] = float("nan")
    with pytest.raises(ModelInvalid, match="text_encoder"):
        engine.prove()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fault", "named"), [(torch.OutOfMemoryError("no room"), OutOfMemory), (torch.AcceleratorError("assert"), GpuUnusable)]
)
def test_the_machines_faults_are_not_the_models(
    monkeypatch: pytest.MonkeyPatch, kind: Any, fault: Exception, named: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(kind, "_denoise", fail)
    with pytest.raises(named):
        kind.load(BUNDLED)


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: unknown"),
        OSError("I/O error"),
        MemoryError(),
    ],
)
def test_nor_are_those_of_libraries_and_disks(fault: Exception) -> None:
    with pytest.raises(type(fault)), model_errors("m"):
        raise fault
    with pytest.raises(ModelInvalid, match="m cannot be painted with: KeyError"), model_errors("m"):
        raise KeyError("no such layer")


@pytest.mark.parametrize("part", ["_encode", "_decoded"])
def test_the_vae_is_proven_both_ways(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    engine = SdxlEngine.load(BUNDLED)
    broken: Callable[..., Any] = {
        "_encode": lambda _image: torch.full((1, 4, 8, 8), float("nan")),
        "_decoded": lambda _latents: engine._decode(torch.full((4, 8, 8), float("nan"))),
    }[part]
    monkeypatch.setattr(engine, part, broken)
    with pytest.raises(ModelInvalid, match=r"the VAE's (en|de)coder"):
        engine.prove()


def test_every_scheduler_takes_its_step_with_the_unet(monkeypatch: pytest.MonkeyPatch) -> None:
    proven: list[str] = []

    def noted(part: str, *values: torch.Tensor) -> None:
        proven.append(part)
        require_finite(part, *values)

    monkeypatch.setattr("ourvidz_sdxl.engine.sdxl.require_finite", noted)
    SdxlEngine.load(BUNDLED)
    for scheduler in Scheduler:
        assert [part for part in proven if part.endswith(f" {scheduler}")] or scheduler == "euler"
    assert "the UNet" in proven
