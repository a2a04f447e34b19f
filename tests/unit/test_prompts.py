"""Weights, blanks and negative presets as tables."""

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ourvidz_sdxl.prompts import Fragment, fragments, is_blank, is_weighted, join_negative, plain


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("a (red:1.3) cat", [("a ", 1), ("red", 1.3), (" cat", 1)]),
        ("(red cat:0.5), (blue:1)", [("red cat", 0.5), (", ", 1), ("blue", 1)]),
        ("(a:1.2)(b:1.2)", [("a", 1.2), ("b", 1.2)]),
        ("", [("", 1)]),
        # the number
        ("(red:9)", [("red", 2)]),
        ("(red:" + "9" * 3900 + ")", [("red", 2)]),
        ("(red:.5)", [("red", 0.5)]),
        ("(red:+1.5)", [("red", 1.5)]),
        ("(red:-1.5)", [("red", 0)]),
        ("((red:-1.5):-1)", [("red", 0)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(red:1e3)", [("(red:1e3)", 1)]),
        ("(red:1.2.3)", [("(red:1.2.3)", 1)]),
        ("(red:١.٣)", [("(red:١.٣)", 1)]),
        # blanks
        ("( x : 1.3 )", [("x", 1.3)]),
        ("(x\n:\t1.3\u3000)", [("x", 1.3)]),
        ("a( red :1.3)cat", [("a", 1), ("red", 1.3), ("cat", 1)]),
        ("(a :1.2)(b:1.3)", [("a", 1.2), ("b", 1.3)]),
        # brackets that are letters
        (r"(a \(b\):1.3)", [("a (b)", 1.3)]),
        (r"\(a:1.3\)", [("(a:1.3)", 1)]),
        (r"(a\):1.3)", [("a)", 1.3)]),
        (r"\\(a:1.3)", [("\\", 1), ("a", 1.3)]),
        (r"\[a\] C:\dir", [(r"[a] C:\dir", 1)]),
        ("a\\", [("a\\", 1)]),
        # nesting
        ("((x:1.2):1.1)", [("x", pytest.approx(1.32))]),
        ("(a (b:1.2) c:0.5)", [("a", 0.5), ("b", pytest.approx(0.6)), ("c", 0.5)]),
        ("((x:3):0.5)", [("x", 1.5)]),
        ("((x:0.5):3)", [("x", 1.5)]),
        ("(((x:9):9):0)", [("x", 0)]),
        ("(a (b) c:1.2)", [("a (b) c", 1.2)]),
        ("(a (b:1.2) c)", [("(a ", 1), ("b", 1.2), (" c)", 1)]),
        # no notation
        ("a photo (old) of a cat++ [sic]", [("a photo (old) of a cat++ [sic]", 1)]),
        ("((old)) [a:b:0.5]", [("((old)) [a:b:0.5]", 1)]),
        ("at 10:30 (about)", [("at 10:30 (about)", 1)]),
        ("(unclosed:1.3", [("(unclosed:1.3", 1)]),
        ("unopened:1.3)", [("unopened:1.3)", 1)]),
        ("((a:1.2)", [("(", 1), ("a", 1.2)]),
        ("(a:1.2))", [("a", 1.2), (")", 1)]),
        ("(:1.2)", [("(:1.2)", 1)]),
        ("( \u200b :1.2)", [("( \u200b :1.2)", 1)]),
        ("((:1.2):1.3)", [("(:1.2)", 1.3)]),
    ],
)
def test_fragments(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert fragments(prompt) == [Fragment(*pair) for pair in expected]


@given(st.text(max_size=200) | st.text("()\\:.1- a", max_size=60))
def test_any_text_has_fragments_with_sane_weights(prompt: str) -> None:
    found = fragments(prompt)
    assert all(0 <= fragment.weight <= 2 for fragment in found)
    assert [fragment for fragment in found if is_blank(fragment.text)] in ([], [Fragment("", 1)])
    assert is_blank(plain(prompt)) == is_blank(prompt) == (found == [Fragment("", 1)])


@pytest.mark.parametrize("text", ["a (red) [cat], 10:30 :-) ++", "", "\\", "(a:1.3", "a:1.3)", "ü 🎨 \n"])
def test_text_without_notation_stays_as_it_is(text: str) -> None:
    assert plain(text) == text


@pytest.mark.parametrize(
    "prompt",
    ["(" * 4000, ")" * 4000, "\\" * 4000, "(:" * 2000, ":" + " " * 3999, ": " * 2000, ":1" * 2000, "(" * 800 + "x" + ":1)" * 800],
    ids=lambda prompt: prompt[:4],
)
def test_no_prompt_takes_long(prompt: str) -> None:
    started = time.process_time()
    fragments(prompt * 25)
    assert time.process_time() - started < 5  # linear: 0.1 s for 100,000 signs


@pytest.mark.parametrize("first", "():\\1.[] ")
def test_the_time_grows_with_the_length_and_not_with_its_square(first: str) -> None:
    for second in "():\\1.[] ":
        for shape in ("{0}{3}", "{2}", ":{1}{4}", "(x:1.{1}{4}"):

            def prompt(length: int, shape: str = shape, second: str = second) -> str:
                half = length // 2
                return shape.format(first, first * half, (first + second) * half, second * length, second * half)

            # sixteen times the length: sixteen times the time, or 256 times where each character is read again for each before it
            if seconds(prompt(4000)) > 64 * seconds(prompt(250)):  # once more: the machine may have been busy
                assert seconds(prompt(4000)) < 64 * seconds(prompt(250)), prompt(20)


def seconds(prompt: str) -> float:
    """CPU time of the quicker of two calls."""
    times = []
    for _ in range(2):
        started = time.thread_time()
        fragments(prompt)
        times.append(time.thread_time() - started)
    return min(times)


def test_nesting_may_be_deep() -> None:
    assert fragments("(" * 1000 + "x" + ":1.5)" * 1000 + " y") == [Fragment("x", 2), Fragment(" y", 1)]


def test_plain_keeps_the_text() -> None:
    assert plain(r"a (red:1.3) ((big:1.2) cat:1.1) \(b\)") == "a red big cat (b)"
    assert is_weighted("a (red:1.3) cat")
    assert is_weighted("( red : 1.3 )")
    assert not is_weighted("a (red:1.0) cat")
    assert not is_weighted(r"a \(red:1.3\) cat")


@pytest.mark.parametrize(
    "text", ["", " ", "\t\r\n", "\u00a0\u3000", "\u2003", "\u200b", "\ufeff", "\u2800", "\u3164", "\u00ad", "\x1f\x7f"]
)
def test_text_of_which_nothing_can_be_seen_is_blank(text: str) -> None:
    assert is_blank(text)
    assert not is_blank(text + "." + text)


def test_every_space_and_control_character_is_blank_and_no_letter_is() -> None:
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        character, category = chr(code), unicodedata.category(chr(code))
        if character.isspace() or category == "Cc":
            assert is_blank(character), hex(code)
        if is_blank(character) and code not in {0x115F, 0x1160, 0x3164, 0xFFA0, 0x2800}:  # Hangul fillers, blank Braille
            assert category[0] not in "LNPS", hex(code)


@pytest.mark.parametrize(
    ("preset", "own", "joined"),
    [("", "", ""), ("blur", "", "blur"), ("", "text", "text"), ("blur, ", " text", "blur, text"), ("blur", "\u3000\u200b", "blur")],
)
def test_the_preset_comes_first(preset: str, own: str, joined: str) -> None:
    assert join_negative(preset, own) == joined
