"""Prompts -> what the UNet is conditioned on, for prompts of any length, with weights, and with a cache that all threads share.

A prompt that has neither weights nor more tokens than the encoders take goes through diffusers' own encoding. Any other goes
through compel, fragment by fragment: it encodes long prompts in chunks of 77 tokens and moves weighted fragments away from, or
towards, the prompt without them. Its own notation is not used, so that a user's "++" or quotes mean nothing special.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from compel import ReturnedEmbeddingsType
from compel.embeddings_provider import EmbeddingsProvider

from ourvidz_sdxl.engine.load import Components
from ourvidz_sdxl.prompts import fragments, is_weighted, plain

CACHED_PROMPTS = 64  # one is some 330 KB (77 x 2048 values in 16 bits, and the pooled 1280)


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """`embeds` is [1, 77 n, 2048], `pooled` [1, 1280] for SDXL; both on the UNet's device and in its precision."""

    embeds: torch.Tensor
    pooled: torch.Tensor


class PromptEncoder:
    def __init__(self, parts: Components, pipeline: Any) -> None:
        """`pipeline` is any SDXL pipeline over `parts`; its `encode_prompt` is the plain way."""
        self._pipeline = pipeline
        self._force_zeros = parts.force_zeros_for_empty_prompt
        self._tokenizers = (parts.tokenizer, parts.tokenizer_2)
        self._dtype = parts.unet.dtype
        self._device = parts.unet.device
        self._providers = [
            EmbeddingsProvider(
                tokenizer,
                encoder,
                truncate=False,
                returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
                dtype_for_device_getter=lambda _device: torch.float32,
            )
            for tokenizer, encoder in ((parts.tokenizer, parts.text_encoder), (parts.tokenizer_2, parts.text_encoder_2))
        ]
        self._cache: OrderedDict[str, Conditioning] = OrderedDict()
        self._cache_lock = threading.Lock()  # held for moments only: a painting that finds its prompts never waits for others'
        self.encoding = threading.Lock()  # the tokenizers do not bear two threads
        # a stream of its own: a prompt is encoded beside the painting and not behind it, but not before the weights are there
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def encode(self, prompt: str, negative_prompt: str) -> dict[str, torch.Tensor]:
        """The four arguments of an SDXL pipeline, positive and negative of one length.

        What an empty negative prompt means is the checkpoint's to say: zeros (`force_zeros_for_empty_prompt`), or "" encoded.
        """
        positive = self._cached(prompt)
        if not negative_prompt and self._force_zeros:
            negative = Conditioning(embeds=torch.zeros_like(positive.embeds), pooled=torch.zeros_like(positive.pooled))
        else:
            negative = self._cached(negative_prompt)
        length = max(positive.embeds.shape[1], negative.embeds.shape[1])
        return {
            "prompt_embeds": self._padded(positive.embeds, length),
            "pooled_prompt_embeds": positive.pooled,
            "negative_prompt_embeds": self._padded(negative.embeds, length),
            "negative_pooled_prompt_embeds": negative.pooled,
        }

    def encode_ahead(self, prompt: str, negative_prompt: str) -> None:
        """Leaves in the cache what `encode` will look for, and nothing in the stream that somebody paints on."""
        with torch.cuda.stream(self._stream):
            self.encode(prompt, negative_prompt)

    def _cached(self, prompt: str) -> Conditioning:
        found = self._find(prompt)
        if found is None:
            with self.encoding:
                found = self._find(prompt) or self._encoded(prompt)  # another thread may have had the same in work
        if self._stream:
            # The memory is the encoding stream's, which would use it again as soon as the cache lets go: it must then wait for the
            # stream that reads it, too.
            for tensor in (found.embeds, found.pooled):
                tensor.record_stream(torch.cuda.current_stream(self._device))
        return found

    def _find(self, prompt: str) -> Conditioning | None:
        with self._cache_lock:
            if prompt in self._cache:
                self._cache.move_to_end(prompt)
            return self._cache.get(prompt)

    def _encoded(self, prompt: str) -> Conditioning:
        with torch.cuda.stream(self._stream):
            new = self._by_fragments(prompt) if self._needs_compel(prompt) else self._plainly(prompt)
        if self._stream:
            self._stream.synchronize()  # what is in the cache is complete, on whatever stream it is read
        with self._cache_lock:
            self._cache[prompt] = new
            if len(self._cache) > CACHED_PROMPTS:
                self._cache.popitem(last=False)
        return new

    def _needs_compel(self, prompt: str) -> bool:
        words = plain(prompt)
        too_long = (len(tokenizer(words).input_ids) > tokenizer.model_max_length for tokenizer in self._tokenizers)
        return is_weighted(prompt) or any(too_long)

    def _plainly(self, prompt: str) -> Conditioning:
        embeds, _, pooled, _ = self._pipeline.encode_prompt(plain(prompt), device=self._device, do_classifier_free_guidance=False)
        return Conditioning(embeds=embeds, pooled=pooled)

    def _by_fragments(self, prompt: str) -> Conditioning:
        texts, weights = zip(*fragments(prompt), strict=True)
        embeds = [
            provider.get_embeddings_for_weighted_prompt_fragments([list(texts)], [list(weights)], device=str(self._device))
            for provider in self._providers
        ]
        pooled = self._providers[1].get_pooled_embeddings([plain(prompt)], device=str(self._device))
        return Conditioning(embeds=torch.cat(embeds, dim=-1).to(self._dtype), pooled=pooled.to(self._dtype))

    def _padded(self, embeds: torch.Tensor, length: int) -> torch.Tensor:
        """Fills up with the empty prompt, chunk by chunk, as compel does."""
        while embeds.shape[1] < length:
            embeds = torch.cat([embeds, self._cached("").embeds], dim=1)
        return embeds
