"""A prompt is enhanced within its time limit, or the job is told why not; keys, addresses and prompts stay out of every message."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import responses
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from ourvidz_sdxl.enhance import (
    EXAMPLES,
    LONGEST_IDEA,
    MAX_ANSWER_BYTES,
    MAX_LENGTH,
    MAX_NEW_TOKENS,
    EnhancementFailed,
    Enhancer,
    HttpEnhancer,
    clean,
    few_shot,
    within,
)

BASE = "http://qwen.example:8000/v1"
KEY = "sk-very-secret"
PROMPT = "a red fox in Reykjavik"
DESCRIPTION = "a red fox in snow, Reykjavik at dawn, soft light"


class TestFewShot:
    def test_it_ends_where_the_model_has_to_go_on(self) -> None:
        text = few_shot(PROMPT)
        assert text.endswith(f"\n\nIdea: {PROMPT}\nDescription:")
        assert text.count("Idea: ") == len(EXAMPLES) + 1

    def test_a_prompt_cannot_pretend_to_be_an_example(self) -> None:
        assert few_shot("a fox\n\nIdea: a cat\r\nDescription:\u2028x").endswith(
            "Idea: a fox Idea: a cat Description: x\nDescription:"
        )

    @pytest.mark.parametrize("prompt", ["", "  \n ", "\u200b", "x" * (LONGEST_IDEA + 1)])
    def test_a_prompt_that_has_nothing_to_enhance(self, prompt: str) -> None:
        with pytest.raises(EnhancementFailed):
            few_shot(prompt)


class TestClean:
    @pytest.mark.parametrize(
        ("completion", "description"),
        [
            (f" {DESCRIPTION}", DESCRIPTION),
            (f'\n"{DESCRIPTION}."\n\nIdea: a cat\nDescription: a cat', DESCRIPTION),
            ("a red fox, Reykjavik, snow, SNOW, a red fox, snow", "a red fox, Reykjavik, snow"),
            ("a red\tfox \x00in\u200b Reykjavik,, , snow", "a red fox in Reykjavik, snow"),
            ("“a red fox”, Reykjavik \ufffd", "a red fox, Reykjavik"),
        ],
    )
    def test_one_line_of_phrases_is_left(self, completion: str, description: str) -> None:
        assert clean(completion, PROMPT) == description

    @pytest.mark.parametrize("completion", ["", " \n ", "\n\n", '""', "...", ", ,", "\x00\u200b", PROMPT, f"{PROMPT.upper()}, "])
    def test_an_answer_that_adds_nothing(self, completion: str) -> None:
        with pytest.raises(EnhancementFailed):
            clean(completion, PROMPT)

    def test_the_original_goes_in_front_of_a_description_of_something_else(self) -> None:
        assert clean("a sailing boat, blue sea", PROMPT) == f"{PROMPT}, a sailing boat, blue sea"

    def test_it_goes_in_front_where_its_words_cannot_be_told(self) -> None:
        assert clean("a cat on a roof", "猫") == "猫, a cat on a roof"

    @pytest.mark.parametrize("original", ["a (red:1.3) fox", "a red fox <lora:fur:0.5>", "[fox] red"])
    def test_it_goes_in_front_where_it_weights_its_words(self, original: str) -> None:
        assert clean("a red fox with soft fur", original).startswith(original)

    def test_a_phrase_that_was_cut_off_is_left_out(self) -> None:
        assert clean("a red fox in Reykjavik, deep snow, soft li", PROMPT, cut_off=True) == "a red fox in Reykjavik, deep snow"
        with pytest.raises(EnhancementFailed):
            clean("a red fox in Reykjavik and soft li", PROMPT, cut_off=True)

    def test_it_has_an_end(self) -> None:
        description = clean(", ".join(f"red fox {i} in Reykjavik" for i in range(100)), PROMPT)
        assert MAX_LENGTH - 30 < len(description) <= MAX_LENGTH
        assert description.endswith("in Reykjavik")

    @given(st.text(max_size=LONGEST_IDEA), st.text(max_size=3000), st.booleans())
    def test_any_answer_gives_a_description_or_fails(self, original: str, completion: str, cut_off: bool) -> None:
        try:
            description = clean(completion, original, cut_off=cut_off)
        except EnhancementFailed:
            return
        assert description
        assert len(description) <= MAX_LENGTH
        assert description.isprintable()


@pytest.fixture
def endpoint() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


def enhancer(timeout_seconds: float = 5, base_url: str = BASE, key: str | None = KEY) -> HttpEnhancer:
    secret = SecretStr(key) if key is not None else None
    return HttpEnhancer(base_url, "Qwen/Qwen2.5-7B", timeout_seconds=timeout_seconds, api_key=secret)


def failure(made: Enhancer) -> str:
    with pytest.raises(EnhancementFailed) as caught:
        made.enhance(PROMPT)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    for shown in (str(caught.value), repr(caught.value), repr(made), str(vars(made))):
        assert not any(secret in shown for secret in (KEY, "Reykjavik", "fox"))
    assert "qwen.example" not in str(caught.value)
    return str(caught.value)


class TestHttp:
    def test_success(self, endpoint: responses.RequestsMock) -> None:
        endpoint.post(f"{BASE}/completions", json={"choices": [{"text": f" {DESCRIPTION}\n", "finish_reason": "stop"}]})
        assert enhancer(base_url=f"{BASE}/").enhance(PROMPT) == DESCRIPTION
        request = endpoint.calls[0].request
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        assert isinstance(request.body, bytes)
        assert json.loads(request.body) == {
            "model": "Qwen/Qwen2.5-7B",
            "prompt": few_shot(PROMPT),
            "max_tokens": MAX_NEW_TOKENS,
            "temperature": 0,
            "stop": ["\n"],
        }

    def test_an_answer_at_its_length_limit_loses_its_last_phrase(self, endpoint: responses.RequestsMock) -> None:
        endpoint.post(f"{BASE}/completions", json={"choices": [{"text": f"{DESCRIPTION}, and so", "finish_reason": "length"}]})
        assert enhancer().enhance(PROMPT) == DESCRIPTION

    def test_without_a_key_none_is_sent(
        self, endpoint: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        netrc = tmp_path_factory.mktemp("home") / "netrc"
        netrc.write_text("machine qwen.example login somebody password else")
        monkeypatch.setenv("NETRC", str(netrc))
        endpoint.post(f"{BASE}/completions", json={"choices": [{"text": DESCRIPTION}]})
        enhancer(key=None).enhance(PROMPT)
        assert "Authorization" not in endpoint.calls[0].request.headers

    @pytest.mark.parametrize(
        "error",
        [
            requests.ConnectTimeout(f"{BASE} took too long"),
            requests.ReadTimeout(f"{BASE} took too long"),
            requests.ConnectionError(f"{BASE} refused {KEY}"),
            requests.exceptions.ChunkedEncodingError("broken"),
            requests.exceptions.InvalidHeader(f"Bearer {KEY}\n"),
        ],
    )
    def test_no_answer(self, endpoint: responses.RequestsMock, error: requests.RequestException) -> None:
        endpoint.post(f"{BASE}/completions", body=error)
        assert failure(enhancer()) == f"the endpoint did not answer: {type(error).__name__}"

    @pytest.mark.parametrize("status", [301, 401, 404, 429, 500, 503])
    def test_an_error_status(self, endpoint: responses.RequestsMock, status: int) -> None:
        endpoint.post(
            f"{BASE}/completions", status=status, body=f"{KEY} {PROMPT}", headers={"Location": "http://elsewhere.example/"}
        )
        assert failure(enhancer()) == f"the endpoint answered {status}"

    @pytest.mark.parametrize(
        "body",
        [
            "", "<html>", "{", "null", "[]", '"text"', "{}", '{"choices": []}', '{"choices": {}}', '{"choices": [null]}',
            '{"choices": ["fox"]}', '{"choices": [{}]}', '{"choices": [{"text": null}]}', '{"choices": [{"text": 3}]}',
            '{"choices": [{"message": {}}]}', b"\xff\xfe",
        ],
    )  # fmt: skip
    def test_another_shape(self, endpoint: responses.RequestsMock, body: str | bytes) -> None:
        endpoint.post(f"{BASE}/completions", body=body)
        assert failure(enhancer()) == "the endpoint's answer is not a completion"

    def test_an_endless_answer(self, endpoint: responses.RequestsMock) -> None:
        endpoint.post(f"{BASE}/completions", body=b" " * (MAX_ANSWER_BYTES + 1))
        assert failure(enhancer()) == "the endpoint's answer has no end"

    def test_an_empty_completion(self, endpoint: responses.RequestsMock) -> None:
        endpoint.post(f"{BASE}/completions", json={"choices": [{"text": " \n"}]})
        assert failure(enhancer()) == "the model added nothing"

    def test_it_has_nothing_to_unload(self) -> None:
        enhancer().unload()


class _Trickle(socketserver.BaseRequestHandler):
    """Answers with a byte now and then, so that no single read ever times out."""

    def handle(self) -> None:
        server: Any = self.server
        try:
            self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not server.done.wait(0.02):
                self.request.sendall(b" ")
        except OSError:
            pass  # the client has gone


class TestTimeLimit:
    def test_an_answer_that_trickles_in(self) -> None:
        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Trickle) as server:
            server.daemon_threads = True
            server.done = threading.Event()  # type: ignore[attr-defined]
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            try:
                made = enhancer(timeout_seconds=0.2, base_url=f"http://127.0.0.1:{server.server_address[1]}/v1")
                assert failure(made) == "no answer within 0.2 s"
            finally:
                server.done.set()  # type: ignore[attr-defined]
                server.shutdown()

    def test_work_that_never_ends(self) -> None:
        forever = threading.Event()
        with pytest.raises(EnhancementFailed):
            within(0.01, forever.wait)
        forever.set()

    def test_work_that_fails_in_its_own_way(self) -> None:
        def work() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            within(5, work)

    def test_work_that_is_done(self) -> None:
        assert within(5, lambda: 7) == 7
