"""Synthetic inputs for real networks: pages of text, scenes, sound, bytes and tokens, drawn from a seed.

None of it is data of the world, but each kind has what a network of its kind answers to: edges and letters, harmonics
that come and go, words that repeat. All arrays are float32 unless said; the first axis counts samples.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from onnxcomp.numerics.arrays import Array

__all__ = ["file_bytes", "pages", "scenes", "sound", "text_lines", "tokens", "windows"]


SYLLABLES = "ba co de fi gu ha je ki lo mu na pe ri so tu va we xi yo zu 12 408 77 3.5".split()

RATE = 16_000
"""Samples of sound in a second."""


def pages(count: int, height: int, width: int, seed: int) -> Array:
    """Return `[count, 3, height, width]` pages of a few lines of text at several sizes, values in [0, 1]."""
    return np.stack([_page(random.Random(f"{seed}/{n}"), height, width) for n in range(count)])


def _page(draw: random.Random, height: int, width: int) -> Array:
    sheet = Image.new("RGB", (width, height), _shade(draw, 190, 255))
    top = draw.randrange(4, 24)
    while top < height - 12:
        line = _line(draw, draw.randrange(14, 44))
        sheet.paste(line[0], (draw.randrange(2, 40), top), line[1])
        top += line[0].height + draw.randrange(2, 30)
    return _channels(sheet.filter(ImageFilter.GaussianBlur(draw.uniform(0, 0.8))))


def text_lines(count: int, height: int, width: int, seed: int) -> Array:
    """Return `[count, 3, height, width]` images of one line of text each, values in [0, 1]."""
    return np.stack([_single(random.Random(f"{seed}/{n}"), height, width) for n in range(count)])


def _single(draw: random.Random, height: int, width: int) -> Array:
    strip = Image.new("RGB", (width, height), _shade(draw, 170, 255))
    ink, mask = _line(draw, draw.randrange(height * 2 // 3, height))
    strip.paste(ink, (draw.randrange(0, 10), (height - ink.height) // 2), mask)
    return _channels(strip.filter(ImageFilter.GaussianBlur(draw.uniform(0, 1.0))))


def _line(draw: random.Random, height: int) -> tuple[Image.Image, Image.Image]:
    """Return a line of words in one colour, and the mask of its letters, both `height` pixels high."""
    words = " ".join(_word(draw) for _ in range(draw.randrange(1, 6)))
    font = ImageFont.load_default()
    left, top, right, bottom = font.getbbox(words)
    mask = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(mask).text((1 - left, 1 - top), words, 255, font)
    grown = mask.resize((max(1, mask.width * height // mask.height), height), Image.Resampling.BICUBIC)
    return Image.new("RGB", grown.size, _shade(draw, 0, 110)), grown


def _word(draw: random.Random) -> str:
    word = "".join(draw.choice(SYLLABLES) for _ in range(draw.randrange(1, 4)))
    return word.capitalize() if draw.random() < 0.3 else word


def scenes(count: int, height: int, width: int, seed: int) -> Array:
    """Return `[count, 3, height, width]` scenes of shaded shapes before a gradient, with noise; values in [0, 1]."""
    return np.stack([_scene(random.Random(f"{seed}/{n}"), height, width) for n in range(count)])


def _scene(draw: random.Random, height: int, width: int) -> Array:
    picture = Image.new("RGB", (width, height), _shade(draw, 30, 220))
    brush = ImageDraw.Draw(picture)
    for _ in range(draw.randrange(4, 12)):
        left, top = draw.randrange(-40, width - 10), draw.randrange(-40, height - 10)
        box = (left, top, left + draw.randrange(20, width // 2), top + draw.randrange(20, height // 2))
        (brush.ellipse if draw.random() < 0.6 else brush.rectangle)(box, fill=_shade(draw, 0, 255))
    image = _channels(picture.filter(ImageFilter.GaussianBlur(draw.uniform(0.5, 3))))
    slope = np.linspace(draw.uniform(0.5, 1), draw.uniform(0.5, 1), width, dtype=np.float32)
    grain = np.random.default_rng(draw.randrange(2**32)).normal(0, 0.02, image.shape).astype(np.float32)
    return np.asarray(np.clip(image * slope + grain, 0, 1))


def _shade(draw: random.Random, low: int, high: int) -> tuple[int, int, int]:
    return (draw.randint(low, high), draw.randint(low, high), draw.randint(low, high))


def _channels(image: Image.Image) -> Array:
    return np.ascontiguousarray(np.asarray(image, np.float32).transpose(2, 0, 1) / np.float32(255))


def sound(seconds: float, seed: int) -> Array:
    """Return `[RATE * seconds]` samples in [-1, 1]: voiced stretches with gliding pitch and formants, hiss, silence."""
    rng = np.random.default_rng(seed)
    pieces: list[Array] = []
    wanted = int(RATE * seconds)
    while sum(map(len, pieces)) < wanted:
        length = int(RATE * rng.uniform(0.1, 0.6))
        kind = rng.choice(["voice", "voice", "hiss", "silence"])
        loud = {"voice": 0.3, "hiss": 0.05, "silence": 0.002}[str(kind)] * rng.uniform(0.4, 1.5)
        piece = _voice(length, rng) if kind == "voice" else rng.standard_normal(length)
        pieces.append(loud * piece * np.hanning(length) ** 0.3 + 0.001 * rng.standard_normal(length))
    return np.asarray(np.clip(np.concatenate(pieces)[:wanted], -1, 1), np.float32)


def _voice(length: int, rng: np.random.Generator) -> Array:
    """Return harmonics of a pitch that glides, each as loud as two formants let it be."""
    pitch = np.linspace(rng.uniform(90, 220), rng.uniform(90, 220), length)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    formants = (rng.uniform(300, 900), rng.uniform(1000, 2600))
    total = np.zeros(length)
    for number in range(1, 30):
        height = number * float(pitch.mean())
        weight = sum(np.exp(-(((height - formant) / 180) ** 2)) for formant in formants) + 0.1 / number
        total += weight * np.sin(number * phase)
    return np.asarray(total / np.abs(total).max())


def file_bytes(count: int, seed: int, size: int = 1024) -> Array:
    """Return `[count, 2 size]` int32: first and last `size` bytes of made files of several kinds, 256 beyond their end."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        content = list(_KINDS[number % len(_KINDS)](draw))
        head, tail = content[:size], content[-size:]
        blank = [256] * (size - len(head))
        rows.append(head + blank + blank + tail)
    return np.array(rows, np.int32)


def _prose(draw: random.Random) -> bytes:
    return " ".join(_word(draw) for _ in range(draw.randrange(60, 700))).encode()


def _code(draw: random.Random) -> bytes:
    names = [_word(draw).lower() for _ in range(8)]
    lines = ["import os", "import sys", ""]
    for _ in range(draw.randrange(10, 60)):
        one, two, three = (draw.choice(names) for _ in range(3))
        lines += [f"def {one}({two}, {three}=None):", f"    if {two} > {draw.randrange(99)}:"]
        lines += [f"        return {three}[{two}]", f"    return {one}({two} + 1)", ""]
    return "\n".join(lines).encode()


def _record(draw: random.Random) -> bytes:
    rows = [{_word(draw): draw.randrange(1000), "name": _word(draw)} for _ in range(draw.randrange(5, 80))]
    return json.dumps(rows, indent=draw.choice([None, 2])).encode()


def _table(draw: random.Random) -> bytes:
    rows = (",".join(str(draw.randrange(9999)) for _ in range(6)) for _ in range(draw.randrange(20, 90)))
    return ("id,a,b,c,d,e\n" + "\n".join(rows)).encode()


def _packed(draw: random.Random) -> bytes:
    return b"\x1f\x8b\x08\x00" + zlib.compress(b"".join(_prose(draw) for _ in range(5)))


def _page_source(draw: random.Random) -> bytes:
    body = "".join(f"<p class='{_word(draw)}'>{_word(draw)}</p>\n" for _ in range(draw.randrange(20, 90)))
    return (
        f"<!DOCTYPE html>\n<html><head><title>{_word(draw)}</title></head><body>{body}</body></html>".encode()
    )


_KINDS = (_prose, _code, _record, _table, _packed, _page_source)


def tokens(count: int, length: int, seed: int, vocabulary: int = 30_522) -> dict[str, Array]:
    """Return `input_ids`, `attention_mask` and `token_type_ids`, `[count, length]` int64: sentences of several lengths.

    Words are drawn by Zipf's law, between the marks for beginning (101) and end (102); 0 fills up.
    """
    rng = np.random.default_rng(seed)
    ids, mask = (np.zeros((count, length), np.int64) for _ in range(2))
    for row in range(count):
        words = int(rng.integers(3, length - 1))
        drawn = 1000 + (rng.zipf(1.3, words) * 37) % (vocabulary - 1000)
        ids[row, : words + 2] = np.concatenate([[101], drawn, [102]])
        mask[row, : words + 2] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def windows(wave: Array, step: int, context: int) -> Iterator[Array]:
    """Yield `[1, context + step]` windows of `wave`, each with the `context` samples before it."""
    padded = np.concatenate([np.zeros(context, wave.dtype), wave])
    for start in range(0, len(wave) - step + 1, step):
        yield padded[None, start : start + context + step]
