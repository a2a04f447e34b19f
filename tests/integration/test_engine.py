"""The engine on its own, with the bundled model: no job leaves anything behind, and every fault has its name."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ourvidz_sdxl.engine import text
from ourvidz_sdxl.engine.load import load_components
from ourvidz_sdxl.engine.sdxl import SdxlEngine
from ourvidz_sdxl.errors import BlankImage, GpuUnusable, JobCancelled, OutOfMemory
from ourvidz_sdxl.job import Scheduler
from ourvidz_sdxl.plan import I2IMode, Plan
from tests.pace import TIMEOUT_SECONDS

MODEL = Path(__file__).parents[2] / "models" / "tiny-sdxl"
PLAN = Plan(
    mode=I2IMode.NONE,
    prompt="a red circle on a blue background",
    negative_prompt="",
    width=64,
    height=64,
    steps=6,
    guidance_scale=7.5,
    scheduler=None,
    denoise=1,
    seeds=(1,),
)


@pytest.fixture(scope="module")
def engine() -> SdxlEngine:
    return SdxlEngine.load(MODEL)


def paint(engine: SdxlEngine, plan: Plan = PLAN, reference: Image.Image | None = None) -> list[Any]:
    return [np.asarray(image) for image in engine.paint(plan, reference, lambda _done, _total: None)]


def test_a_job_gives_the_same_bytes_whatever_ran_before_it(engine: SdxlEngine) -> None:
    [first] = paint(engine)
    reference = Image.new("RGB", (64, 64), "green")
    paint(engine, replace(PLAN, scheduler=Scheduler.EULER_A, prompt="a (green:1.5) star", seeds=(5, 6, 7)))
    paint(engine, replace(PLAN, mode=I2IMode.MODIFY, denoise=0.5, negative_prompt="blue"), reference)
    [again] = paint(engine)
    assert np.array_equal(first, again)


@pytest.mark.parametrize("scheduler", [None, Scheduler.EULER_A, Scheduler.DPMPP_2M_KARRAS])
def test_alone_or_in_a_batch_of_6_an_image_is_the_same(engine: SdxlEngine, scheduler: Scheduler | None) -> None:
    batch = paint(engine, replace(PLAN, scheduler=scheduler, seeds=tuple(range(6))))
    for seed in (0, 5):
        [alone] = paint(engine, replace(PLAN, scheduler=scheduler, seeds=(seed,)))
        assert np.abs(alone.astype(int) - batch[seed]).max() <= 2


@pytest.mark.parametrize("prompt", ["", "a red circle on a blue background", 'Hello, world! It\'s (odd) -- and "quoted"++'])
def test_without_weights_and_length_the_long_way_encodes_as_the_plain_one(engine: SdxlEngine, prompt: str) -> None:
    with torch.inference_mode():
        plain, long = engine._text._plainly(prompt), engine._text._by_fragments(prompt)
    assert torch.equal(plain.embeds, long.embeds)
    assert torch.equal(plain.pooled, long.pooled)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a ( red : 1.3 ) circle", "a (red:1.3) circle"),
        ("a ((red:1.2):1.25) circle", "a (red:1.5) circle"),
        ("a (red:1) circle", "a red circle"),
    ],
)
def test_two_spellings_of_one_weight_encode_the_same(engine: SdxlEngine, one: str, other: str) -> None:
    with torch.inference_mode():
        first, second = (engine._text.encode(prompt, "") for prompt in (one, other))
    assert torch.equal(first["prompt_embeds"], second["prompt_embeds"])
    assert torch.equal(first["pooled_prompt_embeds"], second["pooled_prompt_embeds"])


def test_an_escaped_bracket_is_a_bracket(engine: SdxlEngine) -> None:
    with torch.inference_mode():
        escaped, weighted = (engine._text.encode(prompt, "") for prompt in (r"a \(red:1.3\) circle", "a (red:1.3) circle"))
        [tokens] = engine._text._pipeline.tokenizer([r"a (red:1.3) circle"], return_tensors="pt").input_ids
        expected = engine._text._pipeline.text_encoder(tokens[None], output_hidden_states=True).hidden_states[-2]
    found = escaped["prompt_embeds"][:, : tokens.shape[0], : expected.shape[-1]]
    assert torch.allclose(found, expected.to(found.dtype), atol=1e-4)
    assert not torch.equal(escaped["prompt_embeds"], weighted["prompt_embeds"])


def test_a_prompt_that_was_encoded_lately_is_not_encoded_again(engine: SdxlEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        first = engine._text.encode("a prompt of its own", "")
        monkeypatch.setattr(engine._text, "_plainly", None)
        again = engine._text.encode("a prompt of its own", "")
    assert torch.equal(first["prompt_embeds"], again["prompt_embeds"])


def test_a_prompt_that_was_encoded_ahead_is_not_encoded_by_the_painting(
    engine: SdxlEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    [expected] = paint(engine, replace(PLAN, prompt="a green star"))
    engine._text._cache.clear()
    with ThreadPoolExecutor(1) as thread:  # of its own, which says nothing of gradients
        thread.submit(engine.encode_prompts, replace(PLAN, prompt="a green star")).result()
    monkeypatch.setattr(engine._text, "_encoded", None)
    [picture] = paint(engine, replace(PLAN, prompt="a green star"))
    assert np.array_equal(picture, expected)


def test_many_threads_encode_each_prompt_once_and_one_at_a_time(engine: SdxlEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = ["a (red:1.3) cross", "a blue square, " * 30, "a yellow triangle", "a white star"]
    with torch.inference_mode():
        expected = [engine._text._by_fragments(prompt).embeds for prompt in prompts]
    encoded, encode, alone = Counter[str](), engine._text._encoded, threading.Lock()

    def watched(prompt: str) -> Any:
        assert alone.acquire(blocking=False), "the tokenizers do not bear two threads"
        try:
            encoded[prompt] += 1
            return encode(prompt)
        finally:
            alone.release()

    monkeypatch.setattr(engine._text, "_encoded", watched)
    start = threading.Barrier(8)

    def ask(number: int) -> list[torch.Tensor]:
        start.wait()
        with torch.inference_mode():
            turned = prompts[number % 4 :] + prompts[: number % 4]
            found = {prompt: engine._text.encode(prompt, "")["prompt_embeds"] for prompt in turned}
            return [found[prompt] for prompt in prompts]

    with ThreadPoolExecutor(8) as threads:
        for answers in threads.map(ask, range(8)):
            assert all(torch.equal(answer, wanted) for answer, wanted in zip(answers, expected, strict=True))
    assert encoded == Counter(prompts)


def test_a_painting_that_finds_its_prompts_does_not_wait_for_the_encoding_of_others(engine: SdxlEngine) -> None:
    engine.encode_prompts(PLAN)
    with engine._text.encoding, ThreadPoolExecutor(1) as thread:
        assert thread.submit(paint, engine).result(timeout=TIMEOUT_SECONDS)


def test_the_cache_of_prompts_is_bounded_and_lets_go_of_the_oldest(engine: SdxlEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "CACHED_PROMPTS", 2)
    engine._text._cache.clear()
    with torch.inference_mode():
        for prompt in ("one", "two", "one", "three"):
            engine._text._cached(prompt)
    assert list(engine._text._cache) == ["one", "three"]


@pytest.mark.parametrize(
    ("fault", "named"), [(torch.OutOfMemoryError("no room"), None), (torch.AcceleratorError("device-side assert"), GpuUnusable)]
)
def test_encoding_ahead_leaves_a_lack_of_memory_to_the_painting_and_names_a_fault(
    engine: SdxlEngine, monkeypatch: pytest.MonkeyPatch, fault: Exception, named: type[Exception] | None
) -> None:
    plan = replace(PLAN, prompt=f"a prompt for {named}")

    def fail(*_: object) -> None:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(engine._text, "_plainly", fail)
        with pytest.raises(named) if named else nullcontext():
            engine.encode_prompts(plan)
    assert paint(engine, plan), "nothing stays locked"


def test_weights_move_what_they_weigh_and_long_prompts_are_read_to_the_end(engine: SdxlEngine) -> None:
    encode = engine._text.encode
    with torch.inference_mode():
        plain, weighted = (encode(f"a {word} circle", "")["prompt_embeds"] for word in ("red", "(red:1.5)"))
        long, longer = (encode("a red circle, " * 40 + end, "green")["prompt_embeds"] for end in ("", "and a blue square"))
        negative = encode("a red circle, " * 40, "green")["negative_prompt_embeds"]
    assert plain.shape == weighted.shape
    assert not torch.equal(plain, weighted)
    assert long.shape[1] % 77 == 0 < long.shape[1] - 77
    assert not torch.equal(long[:, -77:], longer[:, -77:])
    assert negative.shape == long.shape


def test_denoise_0_returns_the_reference_itself(engine: SdxlEngine) -> None:
    reference = Image.effect_noise((64, 64), 50).convert("RGB")
    [picture] = paint(engine, replace(PLAN, mode=I2IMode.MODIFY, denoise=0), reference)
    assert np.array_equal(picture, np.asarray(reference))


def test_every_step_is_told_and_may_end_the_painting(engine: SdxlEngine) -> None:
    told: list[tuple[int, int]] = []

    def cancel_at_the_third(done: int, total: int) -> None:
        told.append((done, total))
        if done == 3:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        engine.paint(PLAN, None, cancel_at_the_third)
    assert told == [(1, 6), (2, 6), (3, 6)]


@pytest.mark.parametrize(
    ("fault", "named"),
    [(torch.OutOfMemoryError("no room\nmore"), OutOfMemory), (torch.AcceleratorError("device-side assert"), GpuUnusable)],
)
def test_the_drivers_faults_get_their_names_and_keep_no_tensors(
    engine: SdxlEngine, monkeypatch: pytest.MonkeyPatch, fault: Exception, named: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_pixels", fail)
        with pytest.raises(named) as caught:
            engine.paint(PLAN, None, lambda _done, _total: None)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert paint(engine), "the engine goes on"


def test_a_blank_image_is_decoded_again_in_fp32() -> None:
    parts = load_components(MODEL, device="cpu", vae_dtype=torch.bfloat16)
    engine, decode = SdxlEngine(parts, torch.device("cpu")), parts.vae.decode

    def overflow_in_16_bits(latents: torch.Tensor, **options: Any) -> Any:
        (pixels,) = decode(latents, **options)
        return (pixels if latents.dtype is torch.float32 else pixels * float("nan"),)

    parts.vae.decode = overflow_in_16_bits
    [picture] = paint(engine)
    assert picture.std() > 20
    assert parts.vae.dtype is torch.bfloat16, "it goes back"


@pytest.mark.parametrize("pixel", [float("nan"), float("inf"), -1.0])
def test_a_blank_image_is_never_delivered(engine: SdxlEngine, monkeypatch: pytest.MonkeyPatch, pixel: float) -> None:
    monkeypatch.setattr(engine, "_pixels", lambda _latents: torch.full((3, 64, 64), pixel))
    with pytest.raises(BlankImage):
        paint(engine)


@pytest.mark.parametrize("mode", [I2IMode.NONE, I2IMode.MODIFY])
def test_frugally_painted_images_are_nearly_the_same_and_leave_nothing_behind(engine: SdxlEngine, mode: I2IMode) -> None:
    reference = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 100).convert("RGB") if mode is I2IMode.MODIFY else None
    plan = replace(PLAN, mode=mode, denoise=0.5 if reference else 1, seeds=(1, 2, 3))
    whole = paint(engine, plan, reference)
    steps: list[tuple[int, int]] = []
    frugal = engine.paint(plan, reference, lambda done, total: steps.append((done, total)), frugal=True)
    for one, other in zip(whole, frugal, strict=True):
        assert np.abs(one.astype(int) - np.asarray(other)).mean() < 8, "each tile has its own normalisation; seams are blended"
    total = 3 * plan.painted_steps
    assert steps == [(done, total) for done in range(1, total + 1)], "steps count on through the batch"
    assert all(np.array_equal(one, again) for one, again in zip(whole, paint(engine, plan, reference), strict=True))
