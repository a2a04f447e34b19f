"""A worker whose UNet turns into NaN once it is loaded and proven: a GPU's memory that fails, as nobody sees until it paints."""

import os

import torch

from ourvidz_sdxl.cli import end
from ourvidz_sdxl.engine import Engine
from ourvidz_sdxl.engine.sdxl import SdxlEngine
from ourvidz_sdxl.settings import Settings
from ourvidz_sdxl.startup import load_real_engine, run_worker
from ourvidz_sdxl.telemetry import set_up_logging


def load_and_corrupt(settings: Settings) -> Engine:
    engine = load_real_engine(settings)
    assert isinstance(engine, SdxlEngine)
    torch.nn.init.constant_(engine._parts.unet.conv_out.weight, float("nan"))
    return engine


if __name__ == "__main__":
    settings = Settings.from_env(os.environ)
    set_up_logging(settings.log_format, settings.log_level)
    end(run_worker(settings, lambda: load_and_corrupt(settings)))
