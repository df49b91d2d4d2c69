"""Image files as samples: found, decoded and resized a batch at a time with Pillow."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from onnxcomp.errors import DataError, UsageError
from onnxcomp.runtime.data.fitting import Chunk, Fitter
from onnxcomp.runtime.data.preprocess import Preprocess

__all__ = ["IMAGE_SUFFIXES", "ImageSource", "decode_image"]

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)
"""Files that count as images in a folder."""

# Pillow clips deeper pixels at 255 when it converts them; 16-bit photographs would come out white.
_EIGHT_BITS = frozenset(
    ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
)


class ImageSource:
    """Samples from image files, in the order given, for a network with a single image input.

    Nothing is decoded but the images of the chunk at hand; opening decodes the first one to see that it fits.

    Raises:
        UsageError: if the network has several inputs or no image input, or no preprocess table was given.
        DataError: if the first image cannot be decoded or does not fit.
    """

    def __init__(self, where: str, files: Sequence[Path], fitter: Fitter) -> None:
        self._where = where
        self._files = tuple(files)
        if len(fitter.inputs) != 1 or fitter.inputs[0].name not in fitter.image_inputs:
            takes = ", ".join(f"'{spec.name}' {spec}" for spec in fitter.inputs)
            raise UsageError(
                f"{where}: images feed a network with one image input, this one takes {takes}; use an .npz"
            )
        table = fitter.table(None)
        if table is None:
            raise UsageError(
                f"{where}: images need a [preprocess] table (size, layout, mean, std, channels) in the "
                "config or --preprocess FILE"
            )
        self._table = _with_size(table, fitter.inputs[0].shape).for_decoded()
        self.batch = fitter.batch(where)
        self._name = fitter.inputs[0].name
        fitter.fit(next(self.chunks(1)))

    def count(self, stop: int | None = None) -> int:
        """Return how many images there are, counting no further than `stop`."""
        return len(self._files) if stop is None else min(stop, len(self._files))

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """Yield the images `rows` at a time, decoded `[b, H, W, C]` uint8; fewer where their size changes."""
        for start in range(0, len(self._files), rows):
            images = [decode_image(path, self._table) for path in self._files[start : start + rows]]
            position = start
            for _, run in groupby(images, key=lambda image: image.shape):
                block = np.stack(list(run))
                index = np.arange(position, position + len(block), dtype=np.int64)
                position += len(block)
                yield Chunk(self._where, index, {self._name: block}, table=self._table)

    def labels(self, stop: int | None = None) -> None:
        """Return None: image files carry no labels."""
        return


def decode_image(path: Path, table: Preprocess) -> NDArray[np.uint8]:
    """Return the image in `path` as `[H, W, C]` uint8, in the size and channel order of `table`.

    Turned upright as its EXIF tag says; of animations the first frame; transparency is dropped. Resizing is
    bilinear with antialiasing and does not keep the aspect ratio.

    Raises:
        DataError: if the file is no image that Pillow reads, is damaged, has more than 8 bits per channel, or
            is so large that Pillow takes it for an attack on memory.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd EXIF data and the like; what matters raises
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.mode not in _EIGHT_BITS:
                    raise DataError(
                        f"{path}: pixels of mode {image.mode}; convert the image to 8 bits per channel"
                    )
                pixels = _pixels(image, table)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as problem:
        raise DataError(f"{path}: too many pixels for a sample; make the image smaller") from problem
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as problem:
        reason = (
            problem.strerror if isinstance(problem, OSError) and problem.strerror else "damaged or no image"
        )
        raise DataError(f"{path}: cannot be decoded ({reason}); remove it or fetch it anew") from problem
    return pixels


def _pixels(image: Image.Image, table: Preprocess) -> NDArray[np.uint8]:
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "P" and "transparency" in upright.info:
        upright = upright.convert("RGBA")
    plain = upright.convert("L" if table.channels == "L" else "RGB")
    if table.size is not None and plain.size != (table.size[1], table.size[0]):
        plain = plain.resize((table.size[1], table.size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(plain, dtype=np.uint8)
    if table.channels == "L":
        return pixels[:, :, None]
    return pixels[:, :, ::-1] if table.channels == "BGR" else pixels


def _with_size(table: Preprocess, shape: tuple[int | str | None, ...] | None) -> Preprocess:
    """Return `table`, with the height and width that the input of `shape` fixes where the table names none."""
    if table.size is not None or shape is None or len(shape) != 4:
        return table
    height, width = shape[1:3] if table.layout == "NHWC" else shape[2:4]
    if isinstance(height, int) and isinstance(width, int):
        return replace(table, size=(height, width))
    return table
