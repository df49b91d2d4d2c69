"""Samples from image files: decoded, turned, resized, put in order, or refused by name."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from onnxcomp.errors import DataError, UsageError
from onnxcomp.runtime.data.samples import InputSpec, Preprocess, Samples, open_samples

F32 = np.dtype(np.float32)
X = InputSpec("x", F32, ("N", 3, 6, 8))
FREE = InputSpec("x", F32, ("N", 3, "h", "w"))
GRAY = InputSpec("x", F32, ("N", 1, 6, 8))
PLAIN = Preprocess(layout="NHWC->NCHW")


def pixels(seed: int, height: int = 6, width: int = 8) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def folder(path: Path, n: int, suffix: str = "png") -> list[NDArray[np.uint8]]:
    arrays = [pixels(i) for i in range(n)]
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(path / f"{i:03}.{suffix}")
    return arrays


def joined(samples: Samples, size: int = 4) -> NDArray[Any]:
    return np.concatenate([feeds["x"] for feeds in samples.batches(size)])


def refusal(source: Path | str, *inputs: InputSpec, preprocess: Any = PLAIN) -> str:
    with pytest.raises((DataError, UsageError)) as caught:
        list(open_samples(source, inputs, preprocess=preprocess).batches(4))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tiff", "PNG"])
def test_a_directory_of_images_is_fed_in_the_order_of_names(tmp_path: Path, suffix: str) -> None:
    arrays = folder(tmp_path, 10, suffix)
    (tmp_path / "labels.txt").write_text("other files beside images do no harm")
    for source in (str(tmp_path), str(tmp_path / f"*.{suffix}")):
        samples = open_samples(source, [X], preprocess=Preprocess(1 / 255, (0.5,), (0.25,), "NHWC->NCHW"))
        assert len(samples) == 10 and samples.source == source and samples.labels() is None
        assert [len(feeds["x"]) for feeds in samples.batches(4)] == [4, 4, 2]
        expected = (np.stack(arrays).transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25
        np.testing.assert_allclose(joined(samples), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_formats_are_decoded_as_pillow_does(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(pixels(0)).save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(joined(open_samples(tmp_path, [X], preprocess=PLAIN))[0], expected)


def test_one_image_file_is_one_sample(tmp_path: Path) -> None:
    (array,) = folder(tmp_path, 1)
    samples = open_samples(tmp_path / "000.png", [X], preprocess=PLAIN)
    np.testing.assert_array_equal(joined(samples)[0], array.transpose(2, 0, 1))


def test_folders_inside_are_reached_by_a_glob(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        folder(tmp_path / name, 2)
    assert len(open_samples(str(tmp_path / "**" / "*.png"), [X], preprocess=PLAIN)) == 4
    assert refusal(tmp_path, X) == (
        f"{tmp_path}: no files (folders inside are searched by a glob '**/*.png'); .npz files or images are needed"
    )


def test_size_is_height_then_width_and_resizing_is_bilinear(tmp_path: Path) -> None:
    Image.fromarray(pixels(0, 12, 20)).save(tmp_path / "a.png")
    fed = joined(open_samples(tmp_path, [FREE], preprocess=Preprocess(layout="NHWC->NCHW", size=(6, 8))))
    expected = np.asarray(Image.fromarray(pixels(0, 12, 20)).resize((8, 6), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(fed[0], expected.transpose(2, 0, 1))


def test_the_size_that_the_network_fixes_needs_no_mention(tmp_path: Path) -> None:
    Image.fromarray(pixels(0, 12, 20)).save(tmp_path / "a.png")
    assert joined(open_samples(tmp_path, [X], preprocess=PLAIN)).shape == (1, 3, 6, 8)
    last = InputSpec("x", F32, ("N", 6, 8, 3))
    assert joined(open_samples(tmp_path, [last], preprocess=Preprocess(layout="NHWC"))).shape == (1, 6, 8, 3)


def test_only_the_layout_of_the_network_counts_for_image_files(tmp_path: Path) -> None:
    folder(tmp_path, 3)
    both = [
        joined(open_samples(tmp_path, [X], preprocess=Preprocess(layout=x))) for x in ("NCHW", "NHWC->NCHW")
    ]
    np.testing.assert_array_equal(both[0], both[1])


def test_images_of_several_sizes_feed_a_network_of_free_size(tmp_path: Path) -> None:
    for i, (height, width) in enumerate([(6, 8), (6, 8), (4, 4), (4, 4), (4, 4), (6, 8)]):
        Image.fromarray(pixels(i, height, width)).save(tmp_path / f"{i}.png")
    samples = open_samples(tmp_path, [FREE], preprocess=PLAIN)
    assert len(samples) == 6
    for size in (1, 2, 6):
        shapes = [feeds["x"].shape for feeds in samples.batches(size)]
        assert sum(shape[0] for shape in shapes) == 6
        assert shapes[0][2:] == shapes[-1][2:] == (6, 8)
        assert max(shape[0] for shape in shapes) == min(size, 3)
    assert samples.take(5).digest() != samples.digest()


def test_an_image_that_does_not_fit_is_named_by_its_position(tmp_path: Path) -> None:
    for i, (height, width) in enumerate([(6, 8), (6, 9), (6, 9), (4, 4)]):
        Image.fromarray(pixels(i, height, width)).save(tmp_path / f"{i}.png")
    assert refusal(tmp_path, InputSpec("x", F32, ("N", 3, 6, "w"))).startswith(
        f"{tmp_path}: sample 3 of input 'x' has shape [3, 4, 4]"
    )


def test_channels_are_put_in_the_order_that_the_network_takes(tmp_path: Path) -> None:
    (array,) = folder(tmp_path, 1)
    fed = joined(open_samples(tmp_path, [X], preprocess=Preprocess(channels="BGR")))
    np.testing.assert_array_equal(fed[0], array[:, :, ::-1].transpose(2, 0, 1))
    gray = joined(open_samples(tmp_path, [GRAY], preprocess=Preprocess(channels="L")))
    np.testing.assert_array_equal(gray[0, 0], np.asarray(Image.fromarray(array).convert("L")))


def test_a_network_that_takes_uint8_gets_the_pixels(tmp_path: Path) -> None:
    (array,) = folder(tmp_path, 1)
    spec = InputSpec("x", np.dtype(np.uint8), ("N", 6, 8, 3))
    fed = joined(open_samples(tmp_path, [spec], preprocess=Preprocess(layout="NHWC")))
    assert fed.dtype == np.uint8
    np.testing.assert_array_equal(fed[0], array)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "LA"])
def test_every_mode_of_eight_bits_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(pixels(0)).convert(mode)
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    image.save(path)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(joined(open_samples(path, [X], preprocess=PLAIN))[0], expected)


def test_transparent_palettes_give_no_warning(tmp_path: Path) -> None:
    Image.fromarray(pixels(0)).convert("P").save(tmp_path / "a.png", transparency=b"\x00\x80")
    assert joined(open_samples(tmp_path, [X], preprocess=PLAIN)).shape == (1, 3, 6, 8)


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(0, 8, 6)).save(tmp_path / "a.png", exif=exif)
    fed = joined(open_samples(tmp_path, [X], preprocess=PLAIN))
    np.testing.assert_array_equal(fed[0], np.rot90(pixels(0, 8, 6), -1).transpose(2, 0, 1))


def test_images_without_a_table_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, 1)
    for preprocess in (None, "none"):
        assert refusal(tmp_path, X, preprocess=preprocess) == (
            f"{tmp_path}: images need a [preprocess] table (size, layout, mean, std, channels) in the config or "
            "--preprocess FILE"
        )


def test_images_feed_only_networks_with_one_image_input(tmp_path: Path) -> None:
    folder(tmp_path, 1)
    mask, tokens = InputSpec("m", F32, ("N", 2)), InputSpec("t", np.dtype(np.int64), ("N", 8))
    assert refusal(tmp_path, X, mask) == (
        f"{tmp_path}: images feed a network with one image input, this one takes 'x' float32 [N, 3, 6, 8], "
        "'m' float32 [N, 2]; use an .npz"
    )
    assert "this one takes 't' int64 [N, 8]; use an .npz" in refusal(tmp_path, tokens)


def test_channels_that_do_not_fit_the_network_are_refused_at_opening(tmp_path: Path) -> None:
    folder(tmp_path, 1)
    with pytest.raises(DataError, match=r"has shape \[3, 6, 8\] .*, the network takes \[1, 6, 8\]; mend"):
        open_samples(tmp_path, [GRAY], preprocess=PLAIN)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"no image", "cannot be decoded (damaged or no image); remove it or fetch it anew"),
        (b"", "cannot be decoded (damaged or no image); remove it or fetch it anew"),
    ],
)
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes, text: str) -> None:
    folder(tmp_path, 6)
    (tmp_path / "005.png").write_bytes(content)
    assert refusal(tmp_path, X) == f"{tmp_path / '005.png'}: {text}"


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "gif"])
def test_an_image_cut_short_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels(0, 64, 64)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refusal(tmp_path, X).startswith(f"{path}: cannot be decoded (")


def test_deep_pixels_are_refused_instead_of_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((6, 8), 40000, np.uint16)).save(tmp_path / "a.png")
    assert refusal(tmp_path, X) == (
        f"{tmp_path / 'a.png'}: pixels of mode I;16; convert the image to 8 bits per channel"
    )


@pytest.mark.parametrize("limit", [30, 20])
def test_a_bomb_of_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    folder(tmp_path, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert refusal(tmp_path, X) == (
        f"{tmp_path / '000.png'}: too many pixels for a sample; make the image smaller"
    )


def test_images_and_shards_in_one_directory_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, 1)
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 3, 6, 8), np.float32))
    assert refusal(tmp_path, X) == (
        f"{tmp_path}: both .npz files (a.npz) and images (000.png); choose with a glob like '*.npz'"
    )
    assert len(open_samples(str(tmp_path / "*.npz"), [X])) == 1


def test_a_directory_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert refusal(tmp_path, X) == (
        f"{tmp_path}: only files such as notes.txt; .npz files or images are needed"
    )


def test_images_are_decoded_a_batch_at_a_time(tmp_path: Path) -> None:
    spec = InputSpec("x", F32, ("N", 3, 64, 64))
    peaks = []
    for n in (16, 160):
        (tmp_path / str(n)).mkdir()
        for i in range(n):
            Image.new("RGB", (64, 64), (i, 0, 0)).save(tmp_path / str(n) / f"{i:03}.png")
        samples = open_samples(tmp_path / str(n), [spec], preprocess=PLAIN)
        for _ in samples.take(8).batches(8):
            pass
        tracemalloc.start()
        for _ in samples.batches(8):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] <= 1.2 * peaks[0]
