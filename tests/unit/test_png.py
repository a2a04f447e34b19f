"""Our PNG is read by others as exactly what went in."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ourvidz_sdxl.png import png_bytes

KEYWORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=79)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=500)


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 8, 255]),
    st.dictionaries(KEYWORDS, TEXTS, max_size=3),
)
def test_pixels_and_words_survive(width: int, height: int, seed: int, depth: int, words: dict[str, str]) -> None:
    noise = np.random.default_rng(seed).integers(0, depth, (height, width, 3), dtype=np.uint8, endpoint=True)
    with Image.open(BytesIO(png_bytes(Image.fromarray(noise), words))) as decoded:
        decoded.load()  # checks every checksum
        assert (decoded.mode, decoded.format) == ("RGB", "PNG")
        assert np.array_equal(np.asarray(decoded), noise)
        assert decoded.info == words


def test_only_rgb() -> None:
    with pytest.raises(ValueError, match="RGB"):
        png_bytes(Image.new("L", (8, 8)), {})
