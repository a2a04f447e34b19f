"""What is refused before any weight is read, and how a prompt becomes tokens."""

from __future__ import annotations

import json
import pickle
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex  # type: ignore[import-untyped]
from safetensors.numpy import save_file

from ourvidz_sdxl.engine import checkpoint
from ourvidz_sdxl.engine.checkpoint import LANDMARKS, PICKLES, WEIGHT_NAMES, check_file, check_lora, file_schedule, fingerprint
from ourvidz_sdxl.engine.configuration import is_number
from ourvidz_sdxl.engine.load import SDXL_BASE, fingerprint_of, load_components, load_tokenizer
from ourvidz_sdxl.engine.prediction import ScheduleSettings
from ourvidz_sdxl.errors import ModelInvalid, ModelMissing


def write_file(path: Path, *names: str, without: str = "", channels: int = 4) -> Path:
    """A file with SDXL's landmarks (but one), tensors of the other names, and next to nothing in them."""
    tensors = {name: np.zeros((2, channels, 1, 1), np.float16) for name in LANDMARKS.values() if name != without}
    save_file(tensors | {name: np.zeros(1, np.float16) for name in names}, path)
    return path


def write_folder(path: Path) -> Path:
    """A folder with every file that SDXL has and next to nothing in its weights."""
    shutil.copytree(SDXL_BASE, path)
    for part, stem in WEIGHT_NAMES.items():
        save_file({"weight": np.zeros(4, np.float16)}, path / part / f"{stem}.safetensors")
    return path


def refused(path: Path, kind: type[Exception] = ModelInvalid) -> str:
    with pytest.raises(kind) as caught:
        load_components(path, device="cpu")
    return str(caught.value)


class Trap:
    """A pickle of it writes a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[Path, str]]:
        return Path.write_text, (self.target, "code ran")


ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
BROKEN_HEADERS: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"<html>", "damaged"),
    "no object": (b"[]", "damaged"),
    "no UTF-8": (b'{"\xff":' + ENTRY.encode() + b"}", "damaged"),
    "offsets beyond the end": (ENTRY.replace("4]", "4000]").join(('{"a":', "}")).encode(), "damaged"),
    "offsets backwards": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', "damaged"),
    "a shape of another size": (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', "damaged"),
    "an unknown dtype": (b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', "damaged"),
    "a name twice": (f'{{"a":{ENTRY},"a":{ENTRY}}}'.encode(), "a stands in it twice"),
    "metadata of numbers": (f'{{"__metadata__":{{"x":1}},"a":{ENTRY}}}'.encode(), "damaged"),
    "metadata that are a list": (f'{{"__metadata__":[],"a":{ENTRY}}}'.encode(), "damaged"),
    "metadata twice": (f'{{"__metadata__":{{"x":"1","x":"2"}},"a":{ENTRY}}}'.encode(), "x stands in it twice"),
}


class TestOneFile:
    def test_a_wrong_path(self, tmp_path: Path) -> None:
        assert "nowhere" in refused(tmp_path / "nowhere.safetensors", ModelMissing)

    @pytest.mark.parametrize("suffix", [*sorted(PICKLES), ".safetensors"])
    def test_a_pickle_by_any_name_never_runs(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"model{suffix}"
        path.write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
        refused(path)
        assert not (tmp_path / "ran").exists()

    def test_a_format_that_is_not_known(self, tmp_path: Path) -> None:
        (tmp_path / "model.gguf").touch()
        assert "neither a .safetensors file nor" in refused(tmp_path / "model.gguf")

    @pytest.mark.parametrize("kept", [0, 4, 100, -1])
    def test_a_download_that_was_cut_off(self, tmp_path: Path, kept: int) -> None:
        path = write_file(tmp_path / "model.safetensors")
        path.write_bytes(path.read_bytes()[:kept])
        assert "cut off" in refused(path)

    @pytest.mark.parametrize(("header", "told"), BROKEN_HEADERS.values(), ids=BROKEN_HEADERS)
    def test_a_broken_header(self, tmp_path: Path, header: bytes, told: str) -> None:
        path = tmp_path / "model.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        assert told in refused(path)
        with pytest.raises(ModelInvalid, match="damaged"):
            check_lora(path)

    def test_a_folder_by_the_name_of_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "lora.safetensors").mkdir()
        with pytest.raises(ModelInvalid, match=r"is not a \.safetensors file"):
            check_lora(tmp_path / "lora.safetensors")

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "Stable Diffusion 1 or 2"),
            ("conditioner.embedders.0.model.ln_final.bias", "refiner"),
            ("lora_unet_mid_block_attentions_0_proj_in.alpha", "LoRA"),
            ("edm_mean", "EDM"),
            ("edm_vpred.sigma_max", "EDM"),
            ("control_model.input_hint_block.0.weight", "a ControlNet"),
            ("model.diffusion_model.double_blocks.0.img_attn.proj.weight", "Flux"),
        ],
    )
    def test_another_kind_of_model_is_named(self, tmp_path: Path, name: str, kind: str) -> None:
        assert kind in refused(write_file(tmp_path / "model.safetensors", name))

    @pytest.mark.parametrize(("what", "tensor"), LANDMARKS.items())
    def test_what_is_missing_is_named(self, tmp_path: Path, what: str, tensor: str) -> None:
        assert refused(write_file(tmp_path / "model.safetensors", without=tensor)).endswith(f"no {what}")

    def test_an_instruct_pix2pix_model(self, tmp_path: Path) -> None:
        assert "instruct-pix2pix" in refused(write_file(tmp_path / "model.safetensors", channels=8))

    def test_an_inpainting_model(self, tmp_path: Path) -> None:
        assert "9 channels" in refused(write_file(tmp_path / "model.safetensors", channels=9))

    def test_landmarks_with_nothing_between_them(self, tmp_path: Path) -> None:
        assert "the vae lacks 247 tensors" in refused(write_file(tmp_path / "model.safetensors"))

    def test_a_file_says_what_its_unet_predicts(self, tmp_path: Path) -> None:
        noise = write_file(tmp_path / "noise.safetensors")
        velocity = write_file(tmp_path / "velocity.safetensors", "v_pred", "ztsnr")
        assert file_schedule(noise) == {}
        assert file_schedule(velocity) == {
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        }

    def test_a_fingerprint_is_of_the_weights_whatever_they_predict(self, tmp_path: Path) -> None:
        undecided = write_file(tmp_path / "model.safetensors", "ztsnr")
        check_file(undecided)
        assert fingerprint_of(undecided) == fingerprint([undecided])
        with pytest.raises(ModelInvalid, match="PREDICTION_TYPE says which is right"):
            file_schedule(undecided)
        assert file_schedule(undecided, ScheduleSettings(prediction_type="v_prediction"))["rescale_betas_zero_snr"] is True


class TestFolder:
    def test_without_an_index(self, tmp_path: Path) -> None:
        assert "model_index.json" in refused(tmp_path, ModelMissing)

    @pytest.mark.parametrize(
        "name",
        [
            "scheduler/scheduler_config.json",
            "unet/config.json",
            "text_encoder_2/config.json",
            "vae/diffusion_pytorch_model.safetensors",
            "text_encoder/model.safetensors",
        ],
    )
    def test_a_missing_file_is_named(self, tmp_path: Path, name: str) -> None:
        folder = write_folder(tmp_path / "model")
        (folder / name).unlink()
        assert Path(name).name in refused(folder, ModelMissing)

    def test_a_missing_shard_is_named(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "model")
        weights = folder / "unet/diffusion_pytorch_model.safetensors"
        weights.unlink()
        index = {"weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
        weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(index))
        assert "00001-of-00002" in refused(folder, ModelMissing)

    def test_only_pickles(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "model")
        weights = folder / "unet/diffusion_pytorch_model.safetensors"
        weights.unlink()
        weights.with_suffix(".bin").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
        assert "diffusion_pytorch_model.bin, a pickle" in refused(folder)
        assert not (tmp_path / "ran").exists()

    def test_weights_that_were_cut_off(self, tmp_path: Path) -> None:
        weights = write_folder(tmp_path / "model") / "vae/diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        assert "cut off" in refused(tmp_path / "model")

    @pytest.mark.parametrize(
        ("file", "change", "reason"),
        [
            ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "a StableDiffusionPipeline, not SDXL"),
            ("model_index.json", {"text_encoder": [None, None]}, "no text_encoder"),
            ("unet/config.json", {"in_channels": 9}, "9 channels"),
        ],
    )
    def test_another_kind_of_model(self, tmp_path: Path, file: str, change: dict[str, Any], reason: str) -> None:
        folder = write_folder(tmp_path / "model")
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
        assert reason in refused(folder)

    def test_an_index_that_is_not_json(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "model")
        (folder / "model_index.json").write_text("<html>")
        assert "could not be loaded" in refused(folder)

    @pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
    @pytest.mark.parametrize("content", ["[]", "null", "\u00ff", "[" * 100_000])
    def test_configuration_that_is_no_object(self, tmp_path: Path, file: str, content: str) -> None:
        folder = write_folder(tmp_path / "model")
        (folder / file).write_bytes(content.encode("latin-1"))
        assert "could not be loaded" in refused(folder)

    def test_an_index_of_shards_that_names_no_files(self, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "model")
        weights = folder / "unet/diffusion_pytorch_model.safetensors"
        weights.unlink()
        weights.with_name(f"{weights.name}.index.json").write_text('{"weight_map": {"conv_in.weight": 3}}')
        assert "names no files" in refused(folder)

    @pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
    @pytest.mark.parametrize("file", ["vocab.json", "tokenizer.json"])
    def test_another_vocabulary_than_clips(self, tmp_path: Path, name: str, file: str) -> None:
        clip = load_tokenizer(SDXL_BASE, name, 49_408)
        clip.save_pretrained(tmp_path / name)
        (tmp_path / name / "vocab.json").write_text(json.dumps(clip.get_vocab()))
        assert load_tokenizer(tmp_path, name, 49_408)("a cat").input_ids == clip("a cat").input_ids
        content = json.loads((tmp_path / name / file).read_text())
        vocabulary = content["model"]["vocab"] if file == "tokenizer.json" else content
        vocabulary["cat</w>"], vocabulary["dog</w>"] = vocabulary["dog</w>"], vocabulary["cat</w>"]
        (tmp_path / name / file).write_text(json.dumps(content))
        with pytest.raises(ModelInvalid, match=f"{file} has another vocabulary than CLIP's"):
            load_tokenizer(tmp_path, name, 49_408)


def test_one_changed_tensor_changes_the_fingerprint(tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}.safetensors" for name in "abc")
    for path, value in ((first, 0), (second, 0), (third, 1)):
        save_file({"large": np.zeros(5000, np.float32), "small": np.full(1, value, np.float32)}, path)
    assert fingerprint([first]) == fingerprint([second]) != fingerprint([third])


TEXTS = [
    "a photo of a cat",
    "Photorealistic PORTRAIT, 85mm f/1.4 -- it's the dog's ball, they'll've known",
    "wow! so cool!! (masterpiece:1.2), [bad|ugly] <lora:x:0.8> 100% #1 & $5",
    "Ünïcödé, naïve café in Zürich; žluťoučký kůň",
    "🐱 on a 🛹 👩‍👩‍👧 ❤️",
    "東京の夜 Москва मुंबई بيروت",
    "   spaces\tand\n\nlines   ",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "",
]


def clip_tokens(text: str) -> list[int]:
    """CLIP's byte-pair encoding as it is described: in each word, the earliest-learnt pair of neighbours is joined first."""
    visible = [code for code in range(256) if chr(code).isprintable() and chr(code) not in " \xa0\xad"]
    hidden = [code for code in range(256) if code not in visible]
    letter = {code: chr(code) for code in visible} | {code: chr(256 + i) for i, code in enumerate(hidden)}
    lines = (SDXL_BASE / "merges.txt").read_text(encoding="utf-8").split("\n")[1:-1]
    rank = {tuple(line.split(" ")): number for number, line in enumerate(lines)}
    alphabet = [letter[code] for code in (*visible, *hidden)]
    number = {symbol: i for i, symbol in enumerate(alphabet)} | {f"{s}</w>": 256 + i for i, s in enumerate(alphabet)}
    number |= {line.replace(" ", ""): 512 + i for i, line in enumerate(lines)}
    tokens = [512 + len(lines)]
    for word in regex.findall(r"'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", text.lower()):
        pieces = [letter[code] for code in word.encode()]
        pieces[-1] += "</w>"
        while pairs := [(rank[pair], at) for at, pair in enumerate(pairwise(pieces)) if pair in rank]:
            _, at = min(pairs)
            pieces[at : at + 2] = ["".join(pieces[at : at + 2])]
        tokens += [number[piece] for piece in pieces]
    return [*tokens, 513 + len(lines)]


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
class TestTokenizer:
    def test_published_tokens(self, name: str) -> None:
        tokenizer = load_tokenizer(SDXL_BASE, name, 49_408)
        assert len(tokenizer) == 49_408
        assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]

    def test_it_agrees_with_the_description_of_the_algorithm(self, name: str) -> None:
        tokenizer = load_tokenizer(SDXL_BASE, name, 49_408)
        assert [tokenizer(text).input_ids for text in TEXTS] == [clip_tokens(text) for text in TEXTS]

    def test_padding_is_not_an_exclamation_mark(self, name: str) -> None:
        tokens = load_tokenizer(SDXL_BASE, name, 49_408)("hello world!", padding="max_length").input_ids
        padding = 0 if name == "tokenizer_2" else 49407
        assert tokens == [49406, 3306, 1002, 256, 49407, *[padding] * 72]


@pytest.mark.parametrize("names", [[], ["../m.safetensors"], ["x" * 300 + ".safetensors"], [7]])
def test_an_index_of_shards_names_files_of_its_folder(tmp_path: Path, names: list[object]) -> None:
    index = {"weight_map": {str(number): name for number, name in enumerate(names)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelInvalid, match="names no files"):
        checkpoint._weight_files(tmp_path, "model")


@pytest.mark.parametrize(("value", "told"), [(1, True), (0.5, True), (True, False), (10**400, False), (float("nan"), False)])
def test_a_number_is_one_that_a_float_can_be(value: object, told: bool) -> None:
    assert is_number(value) is told
