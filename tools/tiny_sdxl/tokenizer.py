"""SDXL's two tokenizers over a small vocabulary of our own.

Like CLIP's: lower case, byte-level byte-pair encoding with `</w>` at the end of a word, `<|startoftext|>` and
`<|endoftext|>` as the last two ids. All 256 bytes are in the vocabulary, so any text has tokens; every word that the
captions use is one token.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from transformers import CLIPTokenizer

from tools.tiny_sdxl.captions import caption, idle_phrases
from tools.tiny_sdxl.shapes import sample_scene

CONTEXT_LENGTH: Final = 77  # CLIP's and SDXL's
START: Final = "<|startoftext|>"
END: Final = "<|endoftext|>"
_CAPTIONS: Final = 20_000
_RAREST: Final = 20  # how often a word must occur among the captions to become a token; invented words stay below

Merge = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """`ids` maps each token to its number, `merges` are in the order in which the encoding applies them."""

    ids: dict[str, int]
    merges: tuple[Merge, ...]


def learn_vocabulary(seed: int = 0) -> Vocabulary:
    """The vocabulary of the captions; the same on every machine."""
    rng = random.Random(seed)
    words = Counter(_words(caption(sample_scene(rng), rng) for _ in range(_CAPTIONS)))
    common = {word: count for word, count in words.items() if count >= _RAREST}
    for word in _words(idle_phrases()):
        common.setdefault(word, _RAREST)
    merges = _learn_merges(common)
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *dict.fromkeys(a + b for a, b in merges), START, END]
    return Vocabulary(ids={token: index for index, token in enumerate(tokens)}, merges=merges)


def save_tokenizers(vocabulary: Vocabulary, first: Path, second: Path) -> None:
    """Write both tokenizer folders with the four files that SDXL's have.

    They differ in one thing, as SDXL's do: the first fills up with `<|endoftext|>`, the second with `!`, whose id is 0.
    """
    for folder, pad in ((first, END), (second, "!")):
        folder.mkdir(parents=True, exist_ok=True)
        special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT_LENGTH, "do_lower_case": True, **special}
        merges = "\n".join(["#version: 0.2", *(" ".join(merge) for merge in vocabulary.merges), ""])
        (folder / "vocab.json").write_text(json.dumps(vocabulary.ids, ensure_ascii=False), encoding="utf-8")
        (folder / "merges.txt").write_text(merges, encoding="utf-8")
        (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_tokenizers(model: Path) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Both tokenizers of a saved model folder."""
    first, second = (CLIPTokenizer.from_pretrained(model / name) for name in ("tokenizer", "tokenizer_2"))
    return first, second


def _words(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        yield from re.findall(r"[a-z]+|[0-9]|[^a-z0-9\s]+", text.lower())


def _byte_letters() -> list[str]:
    """A visible letter for each of the 256 bytes, in the order of GPT-2's and CLIP's vocabularies: `!` is the first."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in visible] + [chr(256 + n) for n in range(256 - len(visible))]


def _learn_merges(words: dict[str, int]) -> tuple[Merge, ...]:
    """Byte-pair merges (Sennrich et al. 2016) until every word is one token; ties go to the pair that sorts first."""
    spellings = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[Merge] = []
    while True:
        pairs: Counter[Merge] = Counter()
        for word, parts in spellings.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            return tuple(merges)
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, parts in spellings.items():
            spellings[word] = _merged(parts, best)


def _merged(parts: list[str], pair: Merge) -> list[str]:
    result: list[str] = []
    for part in parts:
        if result and (result[-1], part) == pair:
            result[-1] += part
        else:
            result.append(part)
    return result
