"""The base model that enhances prompts, in this process: transformers, loaded on first use and given back under pressure."""

from __future__ import annotations

import gc
import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging as transformers_logging

from ourvidz_sdxl.enhance import MAX_NEW_TOKENS, STOP, EnhancementFailed, clean, few_shot, within
from ourvidz_sdxl.errors import SettingsInvalid

# Room on the GPU beside the weights. Qwen2.5-7B's cache takes 56 KiB a token (28 layers, keys and values of 4 x 128 in 16 bit, by
# its config.json), so 40 MiB for examples and answer; the rest is for activations and the allocator.
WORKING_MEMORY_BYTES = 1 << 30
REST_SECONDS = 60  # after an unload: time for the job that needed the memory to take it

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


class LocalEnhancer:
    """One model and one prompt at a time; the others wait for their turn as long as their own time limit allows.

    The first call begins to load the weights. That may take longer than the limit: the call fails then, and a later one finds them.
    """

    def __init__(self, folder: Path, *, timeout_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`folder` is one that `save_pretrained` wrote, or a download of the model's repository. Nothing is loaded yet.

        Raises SettingsInvalid when there is no model with safetensors in it.
        """
        self._folder = folder
        self._weight_bytes = _size_of_weights(folder)
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._turn = threading.Lock()
        self._unloads = 0
        self._rest_until = -math.inf
        self._model: Any = None
        self._tokenizer: Any = None

    @property
    def loaded(self) -> bool:
        return self._model is not None

    def enhance(self, prompt: str) -> str:
        idea = few_shot(prompt)
        deadline = self._clock() + self._timeout_seconds
        completion, cut_off = within(self._timeout_seconds, lambda: self._complete(idea, deadline))
        return clean(completion, prompt, cut_off=cut_off)

    def unload(self) -> None:
        """Ends the prompt in work at its next token and frees the model's memory; nothing is loaded again for REST_SECONDS.

        Where the model is just being loaded, this waits for it.
        """
        self._unloads += 1
        with self._turn:
            self._drop()
            self._rest_until = self._clock() + REST_SECONDS

    def _complete(self, text: str, deadline: float) -> tuple[str, bool]:
        """The completion, and whether it was cut off at its length limit."""
        if not self._turn.acquire(timeout=max(0.0, deadline - self._clock())):
            raise EnhancementFailed("the model is busy")
        try:
            return self._generate(text, deadline)
        except EnhancementFailed:
            raise
        except Exception as error:  # noqa: BLE001  whatever a model or a driver comes up with, the job can do without
            failure = type(error).__name__
        finally:
            self._turn.release()
        # Outside the `except` block, since a traceback keeps tensors alive.
        raise EnhancementFailed(f"the model failed: {failure}")

    def _generate(self, text: str, deadline: float) -> tuple[str, bool]:
        unloads = self._unloads
        if self._model is None:
            self._load()
        tokens = self._tokenizer(text, return_tensors="pt").to(self._device)
        stop = _Stop(self._tokenizer, tokens.input_ids.shape[1], lambda: self._clock() >= deadline or self._unloads > unloads)
        end = self._model.generation_config.eos_token_id
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=tokens.input_ids,
                attention_mask=tokens.attention_mask,
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=MAX_NEW_TOKENS,
                    eos_token_id=end,
                    pad_token_id=end[0] if isinstance(end, list) else end,
                ),
                stopping_criteria=StoppingCriteriaList([stop]),
            )
        if stop.interrupted:
            raise EnhancementFailed("the model was interrupted")
        completion = stop.said(output)
        return completion, output.shape[1] - tokens.input_ids.shape[1] >= MAX_NEW_TOKENS and STOP not in completion.lstrip()

    def _load(self) -> None:
        if self._clock() < self._rest_until:
            raise EnhancementFailed("the model rests after it had to make room")
        if self._device.type == "cuda" and torch.cuda.mem_get_info(self._device)[0] < self._weight_bytes + WORKING_MEMORY_BYTES:
            raise EnhancementFailed("the GPU has no room for the model")
        offline = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self._folder, **offline)
            self._model = AutoModelForCausalLM.from_pretrained(
                self._folder, use_safetensors=True, dtype="auto", device_map={"": self._device}, **offline
            ).eval()
        except Exception as error:  # noqa: BLE001  transformers and safetensors have many; none of them has seen a prompt
            failure = f"{type(error).__name__}: {error}".partition("\n")[0]
        else:
            return
        self._drop()
        raise EnhancementFailed(f"the model in {self._folder} cannot be loaded: {failure}")

    def _drop(self) -> None:
        self._model = self._tokenizer = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


class _Stop(StoppingCriteria):  # type: ignore[misc]
    """Ends at the line's end, or when `interrupt` says so: asked after every token, so that a time limit holds to a token."""

    def __init__(self, tokenizer: Any, prompt_tokens: int, interrupt: Callable[[], bool]) -> None:
        self._tokenizer = tokenizer
        self._prompt_tokens = prompt_tokens
        self._interrupt = interrupt
        self.interrupted = False

    def said(self, ids: torch.Tensor) -> str:
        """`ids` [1, tokens], the prompt's own included."""
        return str(self._tokenizer.decode(ids[0, self._prompt_tokens :], skip_special_tokens=True))

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        self.interrupted = self._interrupt()
        done = self.interrupted or STOP in self.said(input_ids).lstrip()
        return torch.full((input_ids.shape[0],), done, dtype=torch.bool, device=input_ids.device)


def _size_of_weights(folder: Path) -> int:
    """Bytes of safetensors in the folder. Raises SettingsInvalid, which names what is missing."""

    def wrong(why: str) -> SettingsInvalid:
        return SettingsInvalid(f"ENHANCER_MODEL_PATH: {folder} {why}")

    if not folder.is_dir():
        raise wrong("is not a folder")
    if not (folder / "config.json").is_file():
        raise wrong("has no config.json")
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError):
            raise wrong(f"has a damaged {index.name}") from None
    if absent := sorted(name for name in names if not (folder / name).is_file()):
        raise wrong(f"has no {absent[0]}; other formats than safetensors are not read")
    return sum((folder / name).stat().st_size for name in names)
