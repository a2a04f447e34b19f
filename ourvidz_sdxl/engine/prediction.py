"""Prediction type and noise schedule of a checkpoint: from its tensors, its metadata, its scheduler.

Order of precedence: the operator's settings, marker tensors (ComfyUI, comfy/supported_models.py), the
metadata of the safetensors header (`modelspec.*`: Stability-AI/ModelSpec; `ss_*`: kohya-ss/sd-scripts,
library/train_util.py), the folder's scheduler_config.json. A contradiction is logged; what stands
higher wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import structlog

from ourvidz_sdxl.errors import ModelInvalid

log = structlog.get_logger()

PredictionType = Literal["epsilon", "v_prediction"]
TimestepSpacing = Literal["leading", "trailing", "linspace"]

SPELLINGS: Mapping[str, PredictionType] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "noise": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
    "v_pred": "v_prediction",
    "v-pred": "v_prediction",
    "velocity": "v_prediction",
}
FLAGS = {"true": True, "1": True, "false": False, "0": False, "none": None, "": None}
V_MARKER, ZERO_SNR_MARKER = "v_pred", "ztsnr"  # tensors whose presence alone counts


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """The operator's PREDICTION_TYPE and TIMESTEP_SPACING; None leaves it to the checkpoint."""

    prediction_type: PredictionType | None = None
    timestep_spacing: TimestepSpacing | None = None


NO_SETTINGS = ScheduleSettings()


def schedule_changes(
    path: Path,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str],
    config: Mapping[str, Any],
    settings: ScheduleSettings = NO_SETTINGS,
) -> dict[str, Any]:
    """Changes to the scheduler configuration `config` (empty for a single file), by its own keys.

    Zero terminal SNR comes with trailing timesteps (Lin et al. 2023, sections 3.1 and 3.3): without
    them the last timestep, which it is about, would not be sampled. Raises ModelInvalid for another
    prediction type than noise and velocity, and for zero terminal SNR with noise prediction, which
    has no signal to recover at the last timestep (section 3.2).
    """
    claims: dict[str, PredictionType] = {}
    if settings.prediction_type:
        claims["PREDICTION_TYPE"] = settings.prediction_type
    if V_MARKER in tensors:
        claims[f"tensor {V_MARKER}"] = "v_prediction"
    for source, value in (
        ("modelspec.prediction_type", metadata.get("modelspec.prediction_type")),
        ("scheduler_config.json", config.get("prediction_type")),
    ):
        if value is not None and str(value).lower() in SPELLINGS:
            claims[source] = SPELLINGS[str(value).lower()]
        elif value is not None and not claims:
            raise ModelInvalid(f"{path.name} predicts {value!r} ({source}), which is neither epsilon nor v_prediction")
        if source.startswith("modelspec") and (v := _flag(path, metadata, "ss_v_parameterization")) is not None:
            claims["ss_v_parameterization"] = "v_prediction" if v else "epsilon"
    by, prediction_type = next(iter(claims.items()), ("default", SPELLINGS["epsilon"]))
    if others := {source: claim for source, claim in claims.items() if claim != prediction_type}:
        log.warning("prediction_type_contradiction", prediction_type=prediction_type, by=by, others=others)

    changes: dict[str, Any] = {}
    if prediction_type != config.get("prediction_type", "epsilon"):
        changes["prediction_type"] = prediction_type
    marked = ZERO_SNR_MARKER in tensors or _flag(path, metadata, "ss_zero_terminal_snr")
    configured = bool(config.get("rescale_betas_zero_snr"))
    if marked or configured:
        if prediction_type == "v_prediction":
            if marked:
                changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        elif settings.prediction_type is None:
            raise ModelInvalid(
                f"{path.name} has zero terminal SNR and predicts epsilon, which excludes it; PREDICTION_TYPE says which is right"
            )
        else:
            log.warning("zero_terminal_snr_ignored", prediction_type=prediction_type)
            if configured:
                changes["rescale_betas_zero_snr"] = False
    if settings.timestep_spacing:
        changes["timestep_spacing"] = settings.timestep_spacing
    return changes


def _flag(path: Path, metadata: Mapping[str, str], name: str) -> bool | None:
    """A Python bool that kohya wrote as text; None where it says nothing. Raises ModelInvalid."""
    value = metadata.get(name, "")
    if value.lower() not in FLAGS:
        raise ModelInvalid(f"{path.name}: {name} in its metadata is {value!r}, neither True nor False")
    return FLAGS[value.lower()]
