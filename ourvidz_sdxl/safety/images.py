"""The optional check of painted images: a class of the operator's, named by IMAGE_CHECK."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Protocol, runtime_checkable

from PIL import Image

from ourvidz_sdxl.errors import ContentRefused, SettingsInvalid


@runtime_checkable
class ImageCheck(Protocol):
    """Made once, without arguments, before the first claim; that is the place to load a model.

    `allowed` may be called from several threads at a time.
    """

    def allowed(self, image: Image.Image) -> bool:
        """Whether this RGB image may be stored. Anything but True, an exception included, refuses it."""


def load_image_check(dotted_path: str) -> ImageCheck:
    """Imports and makes the class at `package.module.Class`. Raises SettingsInvalid, which names IMAGE_CHECK and the cause."""
    module, _, name = dotted_path.strip().rpartition(".")
    try:
        check = getattr(import_module(module), name)()
    except Exception as error:
        # Whatever the operator's code raises while it is imported or made, the worker must not start without its check.
        raise SettingsInvalid(f"IMAGE_CHECK: {dotted_path} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(check, ImageCheck) or not callable(check.allowed):
        raise SettingsInvalid(f"IMAGE_CHECK: {dotted_path} has no method allowed(image)")
    return check


def check_images(check: ImageCheck | None, images: Iterable[Image.Image]) -> None:
    """Raises ContentRefused unless `check` answers True for every image. Without a check every image passes."""
    if check is None:
        return
    for image in images:
        try:
            verdict = check.allowed(image)
        except Exception as error:  # noqa: BLE001  fail closed: a check that breaks down has not allowed anything
            failure = type(error).__name__
        else:
            if verdict is True:
                continue
            failure = ""
        # Outside the `except` block, and so without a cause: the check's own words could describe the image.
        raise ContentRefused(f"the image check failed: {failure}" if failure else "the image check refused an image")
