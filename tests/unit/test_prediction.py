"""Prediction type and noise schedule: which of a checkpoint's own statements counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ourvidz_sdxl.engine.prediction import PredictionType, ScheduleSettings, schedule_changes
from ourvidz_sdxl.errors import ModelInvalid

FILE = Path("model.safetensors")
V = {"prediction_type": "v_prediction"}
V_ZERO_SNR = V | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def changes(*tensors: str, config: dict[str, Any] | None = None, **metadata: str) -> dict[str, Any]:
    written = {key.replace("modelspec_", "modelspec."): value for key, value in metadata.items()}
    return schedule_changes(FILE, dict.fromkeys(tensors), written, config or {})


@pytest.mark.parametrize("value", ["v", "v_prediction", "V_Prediction", "v-prediction", "v_pred"])
def test_v_prediction_by_modelspec(value: str) -> None:
    assert changes(modelspec_prediction_type=value) == V


@pytest.mark.parametrize("value", ["epsilon", "eps", "noise"])
def test_epsilon_by_modelspec(value: str) -> None:
    assert changes(modelspec_prediction_type=value) == {}


def test_v_prediction_by_kohya() -> None:
    assert changes(ss_v_parameterization="True") == V
    assert changes(ss_v_parameterization="False") == changes(ss_v_parameterization="None") == {}


def test_zero_terminal_snr_comes_with_trailing_timesteps() -> None:
    assert changes("v_pred", "ztsnr") == V_ZERO_SNR
    assert changes(ss_v_parameterization="True", ss_zero_terminal_snr="True") == V_ZERO_SNR
    assert changes("v_pred", ss_zero_terminal_snr="True") == V_ZERO_SNR


def test_zero_terminal_snr_of_a_folder_that_predicts_v() -> None:
    config = {"prediction_type": "v_prediction", "timestep_spacing": "leading"}
    assert changes("ztsnr", config=config) == {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize(("tensors", "metadata"), [(["ztsnr"], {}), ([], {"ss_zero_terminal_snr": "True"})])
def test_zero_terminal_snr_with_epsilon_is_refused(tensors: list[str], metadata: dict[str, str]) -> None:
    with pytest.raises(ModelInvalid, match="zero terminal SNR and predicts epsilon"):
        schedule_changes(FILE, dict.fromkeys(tensors), metadata, {})


@pytest.mark.parametrize("said", [{"prediction_type": "epsilon"}, {}], ids=["said", "by default"])
def test_a_folders_zero_terminal_snr_with_epsilon_is_refused_too(said: dict[str, str]) -> None:
    config = said | {"rescale_betas_zero_snr": True}
    with pytest.raises(ModelInvalid, match="zero terminal SNR and predicts epsilon"):
        schedule_changes(FILE, {}, {}, config)
    assert schedule_changes(FILE, {}, {}, config, ScheduleSettings(prediction_type="epsilon")) == {"rescale_betas_zero_snr": False}
    assert schedule_changes(FILE, {}, {}, config, ScheduleSettings(prediction_type="v_prediction")) == V
    assert changes(config={"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}) == {}


def test_tensors_win_over_metadata_and_the_contradiction_is_logged() -> None:
    with capture_logs() as logs:
        assert changes("v_pred", modelspec_prediction_type="epsilon", ss_v_parameterization="False") == V
    assert [entry["event"] for entry in logs] == ["prediction_type_contradiction"]
    assert logs[0]["others"] == {"modelspec.prediction_type": "epsilon", "ss_v_parameterization": "epsilon"}


@pytest.mark.parametrize("value", ["sample", "x0", "flow", "rectified_flow", "edm", "flow_prediction"])
def test_another_prediction_is_refused_by_name(value: str) -> None:
    with pytest.raises(ModelInvalid, match=f"predicts '{value}'"):
        changes(modelspec_prediction_type=value)
    with pytest.raises(ModelInvalid, match=f"predicts '{value}'"):
        changes(config={"prediction_type": value})


def test_a_flag_that_is_no_bool_is_refused() -> None:
    with pytest.raises(ModelInvalid, match="ss_v_parameterization in its metadata is 'perhaps'"):
        changes(ss_v_parameterization="perhaps")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("said", ["sample", "v", "epsilon"])
def test_the_operator_stands_above_all(prediction_type: PredictionType, said: str) -> None:
    settings = ScheduleSettings(prediction_type=prediction_type, timestep_spacing="linspace")
    found = schedule_changes(FILE, {"v_pred": None, "ztsnr": None}, {"modelspec.prediction_type": said}, {}, settings)
    assert found.get("prediction_type", "epsilon") == prediction_type
    assert found["timestep_spacing"] == "linspace"
    assert found.get("rescale_betas_zero_snr", False) is (prediction_type == "v_prediction")


@pytest.mark.parametrize("tensors", [(), ("ztsnr",)], ids=["config", "config and tensor"])
def test_epsilon_by_the_operator_takes_zero_terminal_snr_out_of_a_folder(tensors: tuple[str, ...]) -> None:
    config = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    found = schedule_changes(FILE, dict.fromkeys(tensors), {}, config, ScheduleSettings(prediction_type="epsilon"))
    assert found == {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
