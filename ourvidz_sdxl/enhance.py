"""A short prompt -> a longer one, by a base model that continues a few examples: the pure part, and a model behind HTTP.

The model in this process is `ourvidz_sdxl.engine.qwen.LocalEnhancer`. A worker need not know which of the two it has.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, Protocol, TypeVar

import requests
from pydantic import SecretStr
from requests.auth import AuthBase

# Neutral pictures: a base model repeats what its examples are about.
EXAMPLES: Final = (
    (
        "a lighthouse in a storm",
        "a white lighthouse on a rocky cliff in a violent storm, huge waves breaking below, dark clouds, a beam of warm light "
        "through the rain, dramatic contrast, wide shot, photorealistic, fine detail",
    ),
    (
        "portrait of an old fisherman",
        "close-up portrait of an old fisherman with a grey beard and a knitted cap, weathered skin, calm blue eyes, soft light "
        "from a window, a harbour out of focus behind him, 85mm lens, shallow depth of field, film grain",
    ),
    (
        "city at night, anime",
        "a city at night in anime style, wet streets that mirror neon signs, a lone woman with a red umbrella, tall buildings, "
        "light fog, vivid purple and teal, clean lines, cinematic composition",
    ),
)
INTRODUCTION: Final = "Each idea for a picture is followed by its description: one line of phrases that names all of the idea."
STOP: Final = "\n"

LONGEST_IDEA = 600  # characters; a prompt of this length describes enough by itself
MAX_LENGTH = 1000  # characters; the database takes 4,000
MAX_NEW_TOKENS = 160  # the examples take about 50; SDXL reads 75 at a time
MAX_ANSWER_BYTES = 1 << 18  # such a completion takes about 2 KiB
KEPT_WORDS = 0.5  # the share of the idea's words that a description of it repeats

_Result = TypeVar("_Result")


class EnhancementFailed(Exception):
    """The job goes on with its own prompt and a warning. The text is for the log: no prompt, no address, no key."""


class Enhancer(Protocol):
    """May be called from several threads at a time."""

    def enhance(self, prompt: str) -> str:
        """The longer prompt, at most MAX_LENGTH characters. Raises EnhancementFailed, at the time limit at the latest."""

    def unload(self) -> None:
        """Frees the model's memory where it is this process's; the next call loads the model again."""


def few_shot(prompt: str) -> str:
    """What the base model has to continue. Raises EnhancementFailed for a prompt that has no words, or enough of them."""
    idea = _one_line(prompt)
    if not idea:
        raise EnhancementFailed("the prompt is empty")
    if len(idea) > LONGEST_IDEA:
        raise EnhancementFailed("the prompt is long enough as it is")
    shown = "\n\n".join(f"Idea: {example}\nDescription: {description}" for example, description in EXAMPLES)
    return f"{INTRODUCTION}\n\n{shown}\n\nIdea: {idea}\nDescription:"


def clean(completion: str, original: str, *, cut_off: bool = False) -> str:
    """The description in a completion: its first line, without quotes, control characters and repeated phrases.

    `cut_off` says that the model was stopped amid a phrase, which is left out. The original goes in front when less than half of
    its words survive, or when it weights them: a model that drifts away may add to the picture and never replace it.
    Raises EnhancementFailed when nothing usable is left.
    """
    line = completion.strip().partition("\n")[0]
    if cut_off:
        line = line.rpartition(",")[0]
    phrases: dict[str, str] = {}
    for phrase in (_one_line(part).strip("\"'“”‘’`*#<>. ") for part in line.split(",")):
        if re.search(r"\w", phrase):
            phrases.setdefault(phrase.casefold(), phrase)
    own = _one_line(original)
    phrases.pop(own.casefold(), None)
    words, described = _words(own), _words(" ".join(phrases))
    weighted = re.search(r"[()\[\]{}<>]", own)
    lost = not words or len(words & described) < KEPT_WORDS * len(words)
    description = _fill([own] if lost or weighted else [], phrases.values())
    if description in ("", own):
        raise EnhancementFailed("the model added nothing")
    return description


def _fill(front: list[str], phrases: Any) -> str:
    text = ", ".join(front)
    for phrase in phrases:
        longer = f"{text}, {phrase}" if text else phrase
        if len(longer) > MAX_LENGTH:
            break
        text = longer
    return text


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() and c != "\ufffd" else " " for c in text).split())


def _words(text: str) -> set[str]:
    """Those that carry the meaning, near enough: of three letters or more."""
    return set(re.findall(r"[^\W\d_]{3,}", text.casefold()))


def within(seconds: float, work: Callable[[], _Result]) -> _Result:
    """The result of `work`, which runs on a thread of its own. Raises what it raises, or EnhancementFailed after `seconds`.

    Nothing else keeps a time limit while a name is resolved or weights are read. The thread goes on; its result is dropped.
    """
    result: Future[_Result] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except Exception as error:  # noqa: BLE001  it belongs to the caller
            result.set_exception(error)

    threading.Thread(target=run, name="enhance", daemon=True).start()
    try:
        return result.result(timeout=seconds)
    except TimeoutError:
        pass
    raise EnhancementFailed(f"no answer within {seconds:g} s")


class HttpEnhancer:
    """A base model behind an OpenAI-compatible `completions` endpoint, as vLLM, llama.cpp and others serve it."""

    def __init__(self, base_url: str, model: str, *, timeout_seconds: float, api_key: SecretStr | None = None) -> None:
        """`base_url` ends in the version: "http://127.0.0.1:8000/v1"."""
        self._url = f"{base_url.rstrip('/')}/completions"
        self._model = model
        self._timeout_seconds = timeout_seconds
        self._auth = _Bearer(api_key)

    def enhance(self, prompt: str) -> str:
        idea = few_shot(prompt)
        completion, cut_off = within(self._timeout_seconds, lambda: self._complete(idea))
        return clean(completion, prompt, cut_off=cut_off)

    def unload(self) -> None:
        """The memory is somebody else's."""

    def _complete(self, text: str) -> tuple[str, bool]:
        """The completion, and whether it was cut off at its length limit."""
        request = {
            "model": self._model,
            "prompt": text,
            "max_tokens": MAX_NEW_TOKENS,
            "temperature": 0,
            "stop": [STOP],
        }
        try:
            content = self._post(request)
        except requests.RequestException as error:
            failure = type(error).__name__  # its text has the address, and it holds the headers: nothing else of it leaves here
        else:
            return _completion(content)
        raise EnhancementFailed(f"the endpoint did not answer: {failure}")

    def _post(self, request: dict[str, Any]) -> bytes:
        deadline = time.monotonic() + self._timeout_seconds
        with requests.post(
            self._url, json=request, auth=self._auth, timeout=self._timeout_seconds, allow_redirects=False, stream=True
        ) as response:
            if response.status_code != requests.codes.ok:
                raise EnhancementFailed(f"the endpoint answered {response.status_code}")
            content = b""
            for part in response.iter_content(1 << 14):
                content += part
                if len(content) > MAX_ANSWER_BYTES or time.monotonic() > deadline:
                    raise EnhancementFailed("the endpoint's answer has no end")
        return content


def _completion(content: bytes) -> tuple[str, bool]:
    try:
        choice = json.loads(content)["choices"][0]
        text, cut_off = choice["text"], choice.get("finish_reason") == "length"
    except (ValueError, LookupError, TypeError, AttributeError):
        text, cut_off = None, False
    if not isinstance(text, str):
        raise EnhancementFailed("the endpoint's answer is not a completion")
    return text, cut_off


class _Bearer(AuthBase):
    """The key in its header; without a key nothing, not even what requests would find in a .netrc."""

    def __init__(self, key: SecretStr | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        return request
