"""Paints docs/gallery.md: what a job can ask for, shown by the bundled model through the worker's own plan and engine.

python -m tools.gallery
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from PIL import Image

from ourvidz_sdxl.engine import Engine, load_engine
from ourvidz_sdxl.job import Job, Scheduler
from ourvidz_sdxl.plan import make_plan
from ourvidz_sdxl.reference import fit_reference
from ourvidz_sdxl.similarity import similarity

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "gallery.md"
PICTURES = ROOT / "docs" / "gallery"
NOBODY = UUID(int=0)


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    name: str
    columns: dict[str, Any]
    reference: Image.Image | None = None


def exhibits(reference: Image.Image, wide: Image.Image) -> Iterator[tuple[str, str, list[Exhibit]]]:
    """Chapters: title, what to look at, and the jobs."""
    circle = {"prompt": "a red circle on a blue background", "seed": 3}
    star = {"prompt": "a yellow star on a purple background", "seed": 5}
    yield (
        "Text to image",
        "The prompt names the picture. `sdxl_image_fast` takes 15 steps, `sdxl_image_high` 25.",
        [
            Exhibit(name="fast", columns=circle | {"job_type": "sdxl_image_fast"}),
            Exhibit(name="high", columns=circle),
            Exhibit(
                name="position and size",
                columns={"prompt": "a small black triangle in the top left on an orange background", "seed": 1},
            ),
        ],
    )
    yield "A batch of 3", "Image *i* has seed + *i*.", [Exhibit(name="batch", columns=star | {"batch_size": 3, "seed": 40})]
    yield (
        "Modify",
        "The reference, then one prompt at three strengths: the more of the reference is kept, the less of the prompt is seen.",
        [
            Exhibit(name=f"strength {strength}", columns=star | {"reference_strength": strength}, reference=reference)
            for strength in (0.2, 0.5, 0.8)
        ],
    )
    yield (
        "Exact copy",
        "One step at a twentieth of the noise, without guidance and without a prompt.",
        [Exhibit(name="exact copy", columns={"prompt": "", "exact_copy_mode": True, "seed": 1}, reference=reference)],
    )
    yield (
        "Negative prompt",
        "The same seed without and with `negative_prompt`.",
        [
            Exhibit(name="without", columns={"prompt": "a star", "seed": 11}),
            Exhibit(name="with", columns={"prompt": "a star", "seed": 11, "negative_prompt": "an orange background"}),
        ],
    )
    yield (
        "Weights",
        "`(word:1.3)` counts for more, `(word:0.5)` for less.",
        [
            Exhibit(
                name=f"(blue:{blue}) (yellow:{yellow})",
                columns={"prompt": f"a black star on a (blue:{blue}) (yellow:{yellow}) background", "seed": 8},
            )
            for blue, yellow in ((0.3, 1.6), (1.0, 1.0), (1.6, 0.3))
        ],
    )
    copy = {"prompt": "", "exact_copy_mode": True, "seed": 1}
    yield (
        "Fit",
        "Another aspect: cut (`cover`, the default), whole on white (`contain`), or, without a size, the reference's own.",
        [
            Exhibit(name="cover", columns=copy | {"width": 128, "height": 128}, reference=wide),
            Exhibit(name="contain", columns=copy | {"width": 128, "height": 128, "metadata": {"fit": "contain"}}, reference=wide),
            Exhibit(name="no size", columns=copy, reference=wide),
        ],
    )
    yield (
        "Schedulers",
        "The same job with each, 20 steps.",
        [Exhibit(name=name.value, columns=star | {"scheduler": name, "steps": 20}) for name in Scheduler],
    )


def paint(engine: Engine, exhibit: Exhibit) -> list[tuple[Image.Image, str]]:
    """Each image with its caption."""
    row = {"id": NOBODY, "user_id": NOBODY, "claims": 1, "job_type": "sdxl_image_high"} | exhibit.columns
    if exhibit.reference:
        row["reference_image_path"] = f"{NOBODY}/x.png"
    job, reference = Job.from_row(row), exhibit.reference
    size = reference.size if reference else None
    plan = make_plan(job, native_size=engine.native_size, random_seed=0, reference_size=size)
    if reference:
        reference = fit_reference(reference, plan.width, plan.height, job.metadata.fit)
    pictures = []
    for image, seed in zip(engine.paint(plan, reference, lambda _done, _total: None), plan.seeds, strict=True):
        caption = f"{exhibit.name}, seed {seed}" if plan.batch_size > 1 else exhibit.name
        if reference:
            caption += f"<br>similarity {similarity(image, reference):.2f}"
        pictures.append((image, caption))
    return pictures


def main() -> None:
    engine = load_engine(ROOT / "models" / "tiny-sdxl")
    [(reference, _)] = paint(engine, Exhibit(name="", columns={"prompt": "a green square on a white background", "seed": 2}))
    wide = Image.new("RGB", (256, 128), (41, 82, 224))  # the bundled model's blue
    wide.paste(reference, (64, 0))
    PICTURES.mkdir(parents=True, exist_ok=True)
    for old in PICTURES.glob("*.png"):
        old.unlink()
    lines = [
        "# Gallery",
        "",
        f"Made by `python -m tools.gallery` with the bundled model, {engine.native_size} x {engine.native_size}.",
        "",
    ]
    for number, (title, text, jobs) in enumerate(exhibits(reference, wide)):
        pictures = [(source, "reference") for source in [jobs[0].reference] if source]
        for job in jobs:
            pictures += paint(engine, job)
        cells = []
        for index, (image, caption) in enumerate(pictures):
            file = PICTURES / f"{number}-{index}.png"
            image.save(file, optimize=True)
            cells.append((f"![]({file.relative_to(PAGE.parent)})", caption))
        lines += [f"## {title}", "", text, ""]
        for start in range(0, len(cells), 4):
            some = cells[start : start + 4]
            lines += [f"| {' | '.join(column)} |" for column in zip(*some, strict=True)]
            lines.insert(-1, "|" + "---|" * len(some))
            lines.append("")
    PAGE.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
