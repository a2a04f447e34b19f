"""What people might write below a scene: the plain form and its many relatives.

Words that say nothing about the picture are mixed in, so that the model learns to pass over them; some captions say
less than the picture shows, so that a part of a caption (say, as a negative prompt) has a meaning of its own.
"""

from __future__ import annotations

import random
import string
from typing import Final

from tools.tiny_sdxl.shapes import Scene, article

_SHAPE_WORDS: Final = {
    "circle": ("circle", "circle", "circle", "disc", "ball"),
    "square": ("square", "square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "cross", "cross", "plus sign"),
}
_SIZE_WORDS: Final = {
    "tiny": ("tiny", "very small"),
    "small": ("small", "little"),
    "medium": ("",),
    "large": ("large", "big", "huge"),
}
_VERTICAL: Final = {"top": ("top", "top", "upper"), "bottom": ("bottom", "bottom", "lower")}
_CENTRE: Final = ("in the centre", "in the center", "in the middle", "centered")
_LEAD_INS: Final = (
    "a photo of", "a picture of", "an image of", "a painting of", "a drawing of", "an illustration of", "a beautiful picture of",
    "there is", "this is", "please paint", "flat design of", "a simple", "vector art,", "minimalist,", "portrait of", "a render of",
)  # fmt: skip
_ADJECTIVES: Final = ("bright", "beautiful", "single", "solid", "plain", "simple", "perfect", "vivid", "clean", "lone", "pretty")
_PRAISE: Final = (
    "beautiful", "high quality", "best quality", "detailed", "highly detailed", "intricate details", "masterpiece", "4k", "8k",
    "hd", "sharp focus", "sharp", "minimalist", "flat design", "vector art", "digital art", "photorealistic", "realistic",
    "cinematic lighting", "soft lighting", "studio light", "professional", "award winning", "vibrant colors", "trending",
    "geometric", "clean lines", "simple", "crisp edges", "elegant", "ultra", "photography", "natural light", "artistic",
)  # fmt: skip
_BLAME: Final = (
    "blurry", "low quality", "worst quality", "lowres", "watermark", "text", "signature", "jpeg artifacts", "deformed",
    "distorted", "disfigured", "ugly", "bad anatomy", "bad hands", "extra fingers", "extra limbs", "missing fingers",
    "noise", "grainy", "cropped", "out of frame", "duplicate", "mutated", "bad proportions", "logo", "username", "error",
    "oversaturated", "cartoon", "poorly drawn", "malformed", "plastic skin", "morbid", "artifacts",
)  # fmt: skip


def caption(scene: Scene, rng: random.Random) -> str:
    """A caption for the scene; about one in twelve says nothing at all, which is what guidance compares with."""
    kind = rng.random()
    if kind < 0.06:
        return ""
    if kind < 0.085:
        return _idle_words(rng)
    core = _partial(scene, rng) if kind < 0.19 else _full(scene, rng)
    if rng.random() < 0.2:
        core = f"{rng.choice(_LEAD_INS)} {core}"
    if rng.random() < 0.25:
        core = f"{core}, {_idle_words(rng)}"
    if rng.random() < 0.04:
        core = f"{_idle_words(rng)}, {core}"
    return core + "." if rng.random() < 0.1 else core


def idle_phrases() -> tuple[str, ...]:
    """Every phrase that says nothing about the picture, for the tokenizers to learn as words."""
    return (*_LEAD_INS, *_ADJECTIVES, *_PRAISE, *_BLAME)


def _full(scene: Scene, rng: random.Random) -> str:
    """Everything that is out of the ordinary about the scene: an unnamed size is medium, an unnamed place the centre."""
    subject, ground, place = _subject(scene, rng), _ground(scene, rng), _place(scene, rng)
    if rng.random() < 0.08:
        background = scene.combination.background
        return " ".join(filter(None, (f"{_an(background, rng)}{background} background with", subject, place)))
    if not place:
        return subject + ground
    order = rng.random()
    if order < 0.4:
        return f"{subject}{ground} {place}"
    if order < 0.6:
        return f"{subject}{ground}, {place}"
    if order < 0.85:
        return f"{subject} {place}{ground}"
    return f"{place}, {subject}{ground}"


def _partial(scene: Scene, rng: random.Random) -> str:
    """A true part of the truth."""
    combination = scene.combination
    shape = rng.choice(_SHAPE_WORDS[combination.shape])
    return rng.choice(
        (
            f"{_an(shape, rng)}{shape}",
            f"{_an(shape, rng)}{shape}{_ground(scene, rng)}",
            f"{_an(combination.colour, rng)}{combination.colour} {shape}",
            f"{_an(combination.colour, rng)}{combination.colour} shape{_ground(scene, rng)}",
            f"{_an(combination.colour, rng)}{combination.colour} shape",
            f"{_an(combination.background, rng)}{combination.background} background",
            f"{combination.background} background",
            rng.choice((combination.colour, combination.background)),
            _subject(scene, rng),
        )
    )


def _subject(scene: Scene, rng: random.Random) -> str:
    words = [
        rng.choice(_SIZE_WORDS[scene.size]),
        rng.choice(_ADJECTIVES) if rng.random() < 0.1 else "",
        scene.combination.colour,
        rng.choice(_SHAPE_WORDS[scene.combination.shape]),
    ]
    text = " ".join(filter(None, words))
    return _an(text, rng) + text


def _ground(scene: Scene, rng: random.Random) -> str:
    colour = scene.combination.background
    forms = (
        (f" on {article(colour)} {colour} background", 8),
        (f" on {colour} background", 2),
        (f" on {colour}", 2),
        (f", {colour} background", 3),
        (f" against {article(colour)} {colour} background", 1),
        (f" with {article(colour)} {colour} background", 1),
        (f" on a {rng.choice(_ADJECTIVES)} {colour} background", 1),
        (f" on the {colour} background", 1),
    )
    return rng.choices([form for form, _ in forms], [weight for _, weight in forms])[0]


def _place(scene: Scene, rng: random.Random) -> str:
    if scene.place == "centre":
        return rng.choice(_CENTRE) if rng.random() < 0.25 else ""
    words = [rng.choice(_VERTICAL.get(word, (word,))) for word in scene.place.split()]
    if len(words) == 2:
        place = " ".join(words)
        return rng.choice((f"in the {place}", f"in the {place} corner", f"at the {place}", place))
    if words[0] in ("left", "right"):
        return rng.choice((f"on the {words[0]}", f"on the {words[0]} side", f"at the {words[0]}", f"to the {words[0]}"))
    return rng.choice((f"at the {words[0]}", f"in the {words[0]} part", f"near the {words[0]}", f"on the {words[0]}"))


def _idle_words(rng: random.Random) -> str:
    """One to four phrases (now and then many) of praise or blame, some of them words that nobody has ever seen."""
    count = rng.randint(1, 4) if rng.random() < 0.9 else rng.randint(5, 25)
    return ", ".join(_idle_word(rng) for _ in range(count))


def _idle_word(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.2:
        return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(2, 9)))
    return rng.choice(_PRAISE if kind < 0.65 else _BLAME)


def _an(text: str, rng: random.Random) -> str:
    """`a ` or `an ` before the text, or nothing, or `the `."""
    kind = rng.random()
    return f"{article(text)} " if kind < 0.65 else "" if kind < 0.93 else "the "
