"""The handwritten digits that scikit-learn ships, split once and for all.

1,797 images of 8x8 pixels, integers from 0 to 16. Everything below is a function of `SEED` alone, so the held-out images
are the same in every run and no net has ever seen one of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 0
HELD_OUT = 450
CALIBRATION = 512
BRIGHTEST = 16
INK = 5.5
"""What is brighter is stroke: between two integers, so that no rounding decides about a pixel of a given image."""

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Digits:
    """Training and held-out images, uint8 `[n, 8, 8, 1]`, their labels, and how a net wants to see them."""

    train_images: Images
    train_labels: Labels
    held_out_images: Images
    held_out_labels: Labels
    scale: float
    mean: float
    std: float

    def preprocess(self, images: Images) -> NDArray[np.float32]:
        """Return `images` `[n, 8, 8, 1]` as a net takes them: `(x * scale - mean) / std`, float32 `[n, 1, 8, 8]`."""
        scaled = (images.astype(np.float32) * np.float32(self.scale) - np.float32(self.mean)) / np.float32(
            self.std
        )
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def regions(self, images: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the region of each pixel of preprocessed `images` `[n, 1, 8, 8]`: int64 `[n, 8, 8]`.

        0 is outside, 1 the stroke, 2 a hole: not stroke, and no way leads out over pixels that touch by their sides.
        """
        stroke = images[:, 0] > (INK * self.scale - self.mean) / self.std
        # A frame around each image makes one connected whole of all that is outside; images do not touch each other.
        blank = np.pad(~stroke, ((0, 0), (1, 1), (1, 1)), constant_values=True)
        sides = np.zeros((3, 3, 3), bool)
        sides[1] = ndimage.generate_binary_structure(2, 1)
        parts, _ = ndimage.label(blank, sides)
        hole = blank & (parts != parts[:, :1, :1])
        return np.where(stroke, 1, np.where(hole[:, 1:-1, 1:-1], 2, 0)).astype(np.int64)

    def preprocess_table(self) -> str:
        """Return the JSON text that the data files carry in their array `preprocess`."""
        table = {"layout": "NHWC->NCHW", "scale": self.scale, "mean": [self.mean], "std": [self.std]}
        return json.dumps(table)


def load() -> Digits:
    """Return the split: `HELD_OUT` images aside, stratified by class; mean and deviation of the others alone."""
    raw = load_digits()
    images = raw.images.astype(np.uint8)[..., np.newaxis]
    labels = raw.target.astype(np.int64)
    train_images, held_out_images, train_labels, held_out_labels = train_test_split(
        images, labels, test_size=HELD_OUT, stratify=labels, random_state=SEED
    )
    scale = 1 / BRIGHTEST
    scaled = train_images.astype(np.float64) * scale
    return Digits(
        train_images,
        train_labels,
        held_out_images,
        held_out_labels,
        scale=scale,
        mean=round(float(scaled.mean()), 4),
        std=round(float(scaled.std()), 4),
    )


def write_samples(digits: Digits, folder: Path) -> list[Path]:
    """Write `digits_calibration.npz` (training images, unlabelled) and `digits_evaluation.npz`; return their paths."""
    calibration, _ = train_test_split(
        digits.train_images, train_size=CALIBRATION, stratify=digits.train_labels, random_state=SEED
    )
    table = np.array(digits.preprocess_table())
    calibration_path = folder / "digits_calibration.npz"
    evaluation_path = folder / "digits_evaluation.npz"
    np.savez_compressed(calibration_path, image=calibration, preprocess=table)
    np.savez_compressed(
        evaluation_path, image=digits.held_out_images, labels=digits.held_out_labels, preprocess=table
    )
    return [calibration_path, evaluation_path]
