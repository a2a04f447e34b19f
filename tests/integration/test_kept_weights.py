"""Weights that are kept beside the checkpoint: read back to the bit, never taken for others, and never in anybody's way."""

from __future__ import annotations

import os
import shutil
import threading
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from ourvidz_sdxl.engine import FastOptions
from ourvidz_sdxl.engine.fast import keep
from ourvidz_sdxl.engine.fast.engine import FastEngine
from ourvidz_sdxl.engine.head_start import read_ahead
from ourvidz_sdxl.errors import ModelInvalid
from tests.integration.test_fast_engine import BUNDLED, EDGE, plan

KEEP = FastOptions(keep_weights=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The bundled model, alone in a folder."""
    return Path(shutil.copytree(BUNDLED, tmp_path / "models" / "tiny [1]"))


@pytest.fixture
def kept(model: Path) -> Path:
    """What the first start leaves beside it."""
    load(model)
    (file,) = files(model)
    return file


def files(model: Path) -> list[Path]:
    return [path for path in model.parent.iterdir() if path != model]


def load(model: Path, options: FastOptions = KEEP) -> FastEngine:
    """Waits for what is written aside."""
    before = set(threading.enumerate())
    engine = FastEngine.load(model, options=options)
    for thread in set(threading.enumerate()) - before:
        if thread.name == "keep":
            thread.join()
    return engine


def painted(engine: FastEngine) -> list[Image.Image]:
    return engine.paint(replace(plan(EDGE), prompt="a blue square"), None, lambda _done, _total: None)


def test_a_later_start_paints_the_same_to_the_bit_and_reads_no_other_weights(
    model: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = painted(load(model, FastOptions()))
    read: list[Path] = []
    monkeypatch.setattr("ourvidz_sdxl.engine.fast.engine.read_into", spied(keep.read_into, read))
    assert painted(load(model)) == expected
    assert read == [kept]
    assert files(model) == [kept]


def spied(call: Callable[..., bool], files_read: list[Path]) -> Callable[..., bool]:
    def read_into(empty: keep.Slots, file: Path, device: torch.device) -> bool:
        files_read.append(file)
        assert all(tensor.is_meta for tensor in empty.values()), "nothing was read before"
        return call(empty, file, device)

    return read_into


def test_the_file_is_safetensors_and_nothing_in_it_shares_a_cache_line(kept: Path) -> None:
    with safe_open(kept, framework="pt") as file:
        names = [*file.keys()]
        assert any(name.startswith("unets.0.") for name in names)
        assert any(name.startswith("text_encoder_2.") for name in names)
        assert all(file.get_tensor(name).nbytes % keep.GRAIN == 0 for name in names)


def test_every_setting_that_decides_weights_has_a_file_of_its_own(model: Path, kept: Path) -> None:
    in_fp8 = painted(load(model, replace(KEEP, fp8=True)))
    assert len(files(model)) == 2
    assert painted(load(model, replace(KEEP, fp8=True))) == in_fp8
    assert painted(load(model)) != in_fp8


def test_another_checkpoint_of_the_same_name_is_not_mistaken_for_the_first(model: Path, kept: Path) -> None:
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    first = 8 + int.from_bytes(content[:8], "little")
    content[first : first + 4] = bytes(4)
    weights.write_bytes(content)
    load(model)
    assert len(files(model)) == 2


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data[:100], lambda data: b"", lambda data: data[:8] + b"{}" + data[10:]],
    ids=["cut off", "cut off in its header", "empty", "another header"],
)
def test_a_damaged_file_is_replaced(model: Path, kept: Path, damage: Callable[[bytes], bytes]) -> None:
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    expected = painted(load(model, FastOptions()))
    assert painted(load(model)) == expected
    assert kept.read_bytes() == whole


def test_a_disk_that_would_be_full_is_left_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage(100, 99, 1))
    load(model)
    assert files(model) == []


def test_a_disk_that_fills_up_meanwhile_keeps_no_part(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    load(model)
    assert files(model) == []


def test_only_the_newest_files_of_a_checkpoint_stay_and_no_other_is_touched(model: Path) -> None:
    others = [model.with_name("tiny [1].txt"), model.with_name("tiny 1.0123456789abcdef.runtime")]
    old = [model.with_name(f"{model.name}.{number}.runtime{part}") for number, part in ((1, ""), (2, ""), (3, ".77"))]
    for age, path in enumerate([*old, *others]):
        path.touch()
        os.utime(path, (age, age))
    load(model)
    assert {*others, old[2]} <= {*files(model)}
    assert len(files(model)) == 4


def test_reading_ahead_takes_whatever_there_is(model: Path, kept: Path, tmp_path: Path) -> None:
    read_ahead(model)
    kept.unlink()
    read_ahead(model)
    read_ahead(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("module", ["lora.py", "load.py", "weights.py", "fast/unet.py", "fast/fp8.py"])
def test_other_code_means_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Sums of LoRAs and scales of 8-bit weights decide the bytes as the layout does."""
    before = keep.kept_file(BUNDLED, "fingerprint")
    monkeypatch.setattr(keep, "ENGINE", Path(shutil.copytree(keep.ENGINE, tmp_path / "engine")))
    assert keep.kept_file(BUNDLED, "fingerprint") == before
    with (keep.ENGINE / module).open("a") as code:
        code.write("# changed")
    assert keep.kept_file(BUNDLED, "fingerprint") != before


def test_a_damaged_lora_is_named_before_its_fingerprint_is_taken(tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    lora.write_bytes(b"nothing that is safetensors")
    with pytest.raises(ModelInvalid, match="damaged"):
        FastEngine.load(BUNDLED, lora)
