"""From the pixels of one 1024 x 1024 image to the bytes that are stored: ours beside Pillow, on one core.

The picture is scikit-image's astronaut, a photograph; noise would show nothing of compression.

    python -m benchmarks.encode [--rounds N]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from io import BytesIO

from PIL import Image
from skimage import data

from benchmarks.results_file import write_results
from ourvidz_sdxl.encode import encode, thumbnail
from ourvidz_sdxl.job import OutputFormat
from ourvidz_sdxl.png import png_bytes

WORDS = {
    "parameters": "a red circle on a blue background\n" + "Steps: 25, Sampler: default, CFG scale: 7.5, " * 20,
    "ourvidz": "{}" * 400,
}


def pillow(image: Image.Image, level: int) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    image = Image.fromarray(data.astronaut()).resize((1024, 1024), Image.Resampling.LANCZOS)
    ways: dict[str, Callable[[], bytes]] = {
        "png": lambda: png_bytes(image, WORDS),
        "png with its SHA-256": lambda: encode(image, OutputFormat.PNG, WORDS).content,
        "pillow, level 1": lambda: pillow(image, 1),
        "pillow, level 6": lambda: pillow(image, 6),
        "webp": lambda: encode(image, OutputFormat.WEBP, WORDS).content,
        "jpeg": lambda: encode(image, OutputFormat.JPEG, WORDS).content,
        "thumbnail": lambda: thumbnail(image).content,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    sizes: dict[str, int] = {}
    for number in range(rounds):
        for name, way in ways.items():
            if name == "pillow, level 6" and number % 8:
                continue  # it takes as long as all the others
            started = time.perf_counter()
            sizes[name] = len(way())
            times[name].append((time.perf_counter() - started) * 1000)
    took = {name: round(statistics.median(values), 1) for name, values in times.items()}
    figures = [
        {"name": f"lossless PNG, 1024 x 1024, beside {peer}", "unit": "ms", "ours": took["png"], "peer": took[peer]}
        | {"peer_name": peer, "bar": 10, "better": "lower"}
        for peer in ("pillow, level 1", "pillow, level 6")
    ]
    figures += [
        {"name": f"its size, beside {peer}", "unit": "KB", "ours": sizes["png"] // 1000, "peer": sizes[peer] // 1000}
        | {"peer_name": peer, "bar": None, "better": "lower"}
        for peer in ("pillow, level 1", "pillow, level 6")
    ]
    figures += [
        {"name": name, "unit": "ms", "ours": took[name], "peer": None, "peer_name": None, "bar": None, "better": "lower"}
        for name in ("png with its SHA-256", "webp", "jpeg", "thumbnail")
    ]
    write_results("encode", figures, packages=["isal", "numpy", "pillow"])


if __name__ == "__main__":
    main()
