"""Weights and negative presets as tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ourvidz_sdxl.prompts import Fragment, fragments, is_weighted, join_negative, plain


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("a (red:1.3) cat", [("a ", 1), ("red", 1.3), (" cat", 1)]),
        ("(red cat:0.5), (blue:1)", [("red cat", 0.5), (", ", 1), ("blue", 1)]),
        ("(red: 1.25)", [("red", 1.25)]),
        ("(red:9)", [("red", 2)]),
        ("(red:.5)", [("red", 0.5)]),
        ("a photo (old) of a cat++ [sic]", [("a photo (old) of a cat++ [sic]", 1)]),
        ("at 10:30 (about)", [("at 10:30 (about)", 1)]),
        ("(unclosed:1.3", [("(unclosed:1.3", 1)]),
        ("", [("", 1)]),
    ],
)
def test_fragments(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert fragments(prompt) == [Fragment(*pair) for pair in expected]


@given(st.text(max_size=200))
def test_any_text_has_fragments_with_sane_weights(prompt: str) -> None:
    assert all(0 <= fragment.weight <= 2 for fragment in fragments(prompt))


def test_plain_keeps_the_words() -> None:
    assert plain("a (red:1.3) cat") == "a red cat"
    assert is_weighted("a (red:1.3) cat")
    assert not is_weighted("a (red:1.0) cat")


@pytest.mark.parametrize(
    ("preset", "own", "joined"),
    [("", "", ""), ("blur", "", "blur"), ("", "text", "text"), ("blur, ", " text", "blur, text")],
)
def test_the_preset_comes_first(preset: str, own: str, joined: str) -> None:
    assert join_negative(preset, own) == joined
