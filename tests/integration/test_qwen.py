"""The enhancing model in this process: a Qwen2 of a few thousand weights, built here, in place of the seven billion."""

from __future__ import annotations

import gc
import json
import pickle
import shutil
import socket
import threading
import weakref
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ourvidz_sdxl.engine import qwen
from ourvidz_sdxl.engine.qwen import REST_SECONDS, LocalEnhancer
from ourvidz_sdxl.enhance import MAX_NEW_TOKENS, EnhancementFailed
from ourvidz_sdxl.errors import SettingsInvalid

PROMPT = "a red fox in Reykjavik"
BYTES = sorted(bytes_to_unicode().values())
WORDS = ["Ġsoft", "Ġlight,", "Ġgolden", "Ġdawn,", "Ġsnow", "Ġmist,", "Ġriver", "Ġstone,", "Ġcalm", "Ġsea,"]
TOKENS = ["<|endoftext|>", *BYTES, *WORDS, "ĠsoftĠlight,"]
NEW_LINE = "Ċ"


def save_model(folder: Path, *, says: str | None = None) -> Path:
    """A Qwen2 with its tokenizer, as `save_pretrained` writes them; it says random words, or one token for ever."""
    torch.manual_seed(7)
    model: Any = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(TOKENS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=4096, tie_word_embeddings=False, bos_token_id=None, eos_token_id=0,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.lm_head.weight[: 1 + len(BYTES)] = 0  # which leaves the words
        if says is not None:
            for name, weight in model.named_parameters():
                weight.fill_("embed" in name or "norm" in name)
            model.lm_head.weight[TOKENS.index(says)] = 1
    model.save_pretrained(folder)
    Qwen2Tokenizer(vocab={token: number for number, token in enumerate(TOKENS)}, merges=[]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module")
def endless_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("endless"), says="ĠsoftĠlight,")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("the model's loading looked for a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


class Clock:
    """Goes on by `step` seconds each time that it is read."""

    def __init__(self, step: float = 0) -> None:
        self.now, self.step, self.readings = 0.0, step, 0

    def __call__(self) -> float:
        self.now += self.step
        self.readings += 1
        return self.now


def failure(made: LocalEnhancer) -> str:
    with pytest.raises(EnhancementFailed) as caught:
        made.enhance(PROMPT)
    assert caught.value.__context__ is None
    assert "Reykjavik" not in str(caught.value)
    return str(caught.value)


class TestModel:
    def test_it_loads_on_first_use_and_says_the_same_each_time(self, random_model: Path) -> None:
        made = LocalEnhancer(random_model, timeout_seconds=60)
        first = made.enhance(PROMPT)
        assert made.loaded
        assert first.startswith(f"{PROMPT}, ")
        assert made.enhance(PROMPT) == LocalEnhancer(random_model, timeout_seconds=60).enhance(PROMPT) == first

    def test_an_answer_at_its_length_limit(self, endless_model: Path) -> None:
        assert LocalEnhancer(endless_model, timeout_seconds=60).enhance(PROMPT) == f"{PROMPT}, soft light"

    @pytest.mark.parametrize("token", ["<|endoftext|>", NEW_LINE])
    def test_an_answer_that_adds_nothing(self, tmp_path: Path, token: str) -> None:
        assert failure(LocalEnhancer(save_model(tmp_path, says=token), timeout_seconds=60)) == "the model added nothing"

    def test_the_first_line_ends_the_answer(self, endless_model: Path) -> None:
        stop = qwen._Stop(Qwen2Tokenizer.from_pretrained(endless_model), 2, lambda: False)
        prompt, line, word = [1, 1], TOKENS.index(NEW_LINE), TOKENS.index("Ġsnow")
        for answer, done in (([line], False), ([line, word], False), ([word], False), ([word, line], True)):
            assert stop(torch.tensor([[*prompt, *answer]]), None).tolist() == [done]

    def test_prompts_take_turns(self, random_model: Path) -> None:
        made = LocalEnhancer(random_model, timeout_seconds=60)
        answers: list[str] = []
        threads = [threading.Thread(target=lambda: answers.append(made.enhance(PROMPT))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 4
        assert len(set(answers)) == 1


class TestTimeLimit:
    def test_it_holds_to_a_token(self, endless_model: Path) -> None:
        clock = Clock(step=1)
        assert failure(LocalEnhancer(endless_model, timeout_seconds=20, clock=clock)) == "the model was interrupted"
        assert clock.readings < 30 < MAX_NEW_TOKENS

    def test_it_holds_while_the_model_loads(self, endless_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        go_on, load = threading.Event(), AutoModelForCausalLM.from_pretrained

        def slow(*args: Any, **options: Any) -> Any:
            go_on.wait()
            return load(*args, **options)

        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", slow)
        made = LocalEnhancer(endless_model, timeout_seconds=0.05)
        assert failure(made) == "no answer within 0.05 s"
        go_on.set()
        made._timeout_seconds = 60
        assert made.enhance(PROMPT) == f"{PROMPT}, soft light"

    def test_it_holds_while_another_prompt_has_the_model(self, endless_model: Path) -> None:
        made = LocalEnhancer(endless_model, timeout_seconds=0.05)
        with made._turn:
            assert failure(made) in ("no answer within 0.05 s", "the model is busy")


class TestUnload:
    def test_the_memory_is_free_again(self, random_model: Path) -> None:
        made = LocalEnhancer(random_model, timeout_seconds=60)
        made.enhance(PROMPT)
        weights = weakref.ref(made._model.lm_head.weight)
        made.unload()
        gc.collect()
        assert not made.loaded
        assert weights() is None

    def test_it_stays_away_for_a_while(self, random_model: Path) -> None:
        clock = Clock()
        made = LocalEnhancer(random_model, timeout_seconds=60, clock=clock)
        first = made.enhance(PROMPT)
        made.unload()
        assert failure(made) == "the model rests after it had to make room"
        clock.now += REST_SECONDS
        assert made.enhance(PROMPT) == first

    def test_it_does_not_wait_for_the_prompt_in_work(self, endless_model: Path) -> None:
        clock = Clock()
        made = LocalEnhancer(endless_model, timeout_seconds=60, clock=clock)
        unloading = threading.Thread(target=made.unload)

        def read() -> float:
            if clock.readings == 10:  # amid the answer, which has the model
                unloading.start()
                while made._unloads == 0:
                    unloading.join(0.001)
            return clock()

        made._clock = read
        assert failure(made) == "the model was interrupted"
        unloading.join()
        assert not made.loaded
        assert clock.readings < 20

    def test_before_the_first_use(self, random_model: Path) -> None:
        LocalEnhancer(random_model, timeout_seconds=60).unload()


class TestFolder:
    def test_what_is_missing_is_named(self, random_model: Path, tmp_path: Path) -> None:
        def refused(folder: Path) -> str:
            with pytest.raises(SettingsInvalid) as caught:
                LocalEnhancer(folder, timeout_seconds=60)
            assert "ENHANCER_MODEL_PATH" in str(caught.value)
            return str(caught.value)

        folder = Path(shutil.copytree(random_model, tmp_path / "model"))
        assert "is not a folder" in refused(tmp_path / "nowhere")
        assert "is not a folder" in refused(folder / "config.json")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        assert "has no model.safetensors" in refused(folder)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "model-00001-of-00002.safetensors"}}))
        assert "has no model-00001-of-00002.safetensors" in refused(folder)
        (folder / "model.safetensors.index.json").write_text("<html>")
        assert "damaged model.safetensors.index.json" in refused(folder)
        (folder / "config.json").unlink()
        assert "has no config.json" in refused(folder)

    def test_a_pickle_beside_the_weights_is_never_read(self, random_model: Path, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, tuple[Path, str]]:
                return Path.write_text, (tmp_path / "ran", "code ran")

        folder = Path(shutil.copytree(random_model, tmp_path / "model"))
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
        LocalEnhancer(folder, timeout_seconds=60).enhance(PROMPT)
        assert not (tmp_path / "ran").exists()

    def test_weights_that_were_cut_off(self, random_model: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(random_model, tmp_path / "model"))
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        made = LocalEnhancer(folder, timeout_seconds=60)
        assert "cannot be loaded: SafetensorError" in failure(made)
        assert not made.loaded

    def test_a_gpu_without_room(self, random_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = LocalEnhancer(random_model, timeout_seconds=60)
        made._device = torch.device("cuda")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (1 << 30, 1 << 33))
        assert failure(made) == "the GPU has no room for the model"
