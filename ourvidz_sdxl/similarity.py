"""How much of a reference is left in a picture."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

# Structural similarity: Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment", IEEE Trans. Image Processing 13(4), 2004, with
# the constants given there and a uniform window of 7 pixels, which is also scikit-image's default; the tests compare the two.
WINDOW = 7
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
LONGEST_EDGE = 512  # structure is judged at this size: fine noise counts for little, and it takes 0.1 s


def similarity(picture: Image.Image, reference: Image.Image) -> float:
    """Mean structural similarity of the luminances of two images of one size: 1 is the same, 0 unrelated."""
    a, b = (_luminance(image) for image in (picture, reference))
    mean_a, mean_b = _mean(a), _mean(b)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    var_a, var_b = unbiased * (_mean(a * a) - mean_a**2), unbiased * (_mean(b * b) - mean_b**2)
    covariance = unbiased * (_mean(a * b) - mean_a * mean_b)
    ratio = (2 * mean_a * mean_b + C1) * (2 * covariance + C2) / ((mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2))
    return float(ratio.mean())


def _luminance(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    small = image.convert("L")
    small.thumbnail((LONGEST_EDGE, LONGEST_EDGE), Image.Resampling.LANCZOS)
    return np.asarray(small, dtype=np.float64)


def _mean(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The mean of each WINDOW x WINDOW square that lies within."""
    rows: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = sliding_window_view(values, WINDOW, axis=0).mean(-1)
    means: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = sliding_window_view(rows, WINDOW, axis=1).mean(-1)
    return means
