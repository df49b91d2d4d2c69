"""Make everything in this folder: train the digit nets, export them, write the data files and the checksums.

    python models/train_digits.py [--out FOLDER]

Needs the extra `zoo`. One thread and fixed seeds: the same versions on the same kind of processor give the same files.
The held-out images are looked at once, after the last epoch, to print how good each net is: no epoch is chosen by them.
"""

from __future__ import annotations

import argparse
import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import digits_data
import onnx
import torch
from digits_nets import (
    REGIONS,
    DigitsDenseNet,
    DigitsMLP,
    DigitsMobileNet,
    DigitsResNet,
    DigitsShuffleNet,
    DigitsUNet,
    DigitsVGG,
)
from digits_sequences import DigitsLSTM, DigitsViT
from torch import Tensor, nn
from torch.nn import functional

OPSET = 17
BATCH = 64
METADATA = {
    "dataset": "UCI optical recognition of handwritten digits, as shipped by scikit-learn",
    "licence": "Apache-2.0",
    "made_by": "models/train_digits.py",
}


def digit(_: digits_data.Digits, __: Tensor, labels: Tensor) -> Tensor:
    """Return what a classifier is to say: `labels` `[n]`."""
    return labels


def regions(digits: digits_data.Digits, images: Tensor, _: Tensor) -> Tensor:
    """Return what a segmentation of `images` `[n, 1, 8, 8]` is to say: the region of each pixel, `[n, 8, 8]`."""
    return torch.from_numpy(digits.regions(images.numpy()))


def accuracy(said: Tensor, right: Tensor) -> float:
    """Return the share of `said` `[n]` that is `right` `[n]`."""
    return float((said == right).float().mean())


def overlap(said: Tensor, right: Tensor) -> float:
    """Return the mean over regions of intersection over union, between the maps `said` and `right`, both `[n, h, w]`."""
    both = [(said == region, right == region) for region in range(REGIONS)]
    return float(torch.stack([(one & other).sum() / (one | other).sum() for one, other in both]).mean())


@dataclass(frozen=True)
class Recipe:
    """One net of the zoo and how it is trained; `turn` in degrees, `shift` in pixels, `stretch` relative.

    `target` is what the net is to say of images and their labels, `judge` how what it says is compared with that, and
    `adam` takes AdamW in place of SGD. `folded` exports as the exporter does by default, with constants folded: without
    it the weights of LSTM and MatMul are the outputs of nodes that transpose and stack them. Nets with
    BatchNormalization are exported without, to keep it.
    """

    name: str
    about: str
    build: Callable[[], nn.Module]
    epochs: int
    rate: float
    turn: float = 10
    shift: float = 1
    stretch: float = 0.1
    adam: bool = False
    decay: float = 5e-4
    target: Callable[[digits_data.Digits, Tensor, Tensor], Tensor] = digit
    judge: Callable[[Tensor, Tensor], float] = accuracy
    output: str = "logits"
    folded: bool = False


RECIPES = (
    Recipe(
        "digits_resnet",
        "Residual CNN for 8x8 digits: identity and 1x1 shortcuts, BatchNormalization kept.",
        DigitsResNet,
        epochs=40,
        rate=0.1,
    ),
    Recipe(
        "digits_mobilenet",
        "MobileNet-like CNN for 8x8 digits: depthwise convolutions, ReLU6, squeeze-and-excite.",
        DigitsMobileNet,
        epochs=50,
        rate=0.1,
    ),
    Recipe(
        "digits_mlp",
        "Multilayer perceptron for 8x8 digits, 64-256-128-10.",
        DigitsMLP,
        epochs=40,
        rate=0.05,
        turn=8,
        shift=0.6,
    ),
    Recipe(
        "digits_vgg",
        "VGG-like CNN for 8x8 digits: convolutions with biases, max pooling, Gemm over pixels and channels.",
        DigitsVGG,
        epochs=30,
        rate=0.05,
    ),
    Recipe(
        "digits_densenet",
        "DenseNet-like CNN for 8x8 digits: three dense blocks, BatchNormalization before each convolution.",
        DigitsDenseNet,
        epochs=40,
        rate=0.1,
    ),
    Recipe(
        "digits_shufflenet",
        "ShuffleNet-like CNN for 8x8 digits: channel splits, depthwise convolutions, channel shuffles.",
        DigitsShuffleNet,
        epochs=50,
        rate=0.1,
    ),
    Recipe(
        "digits_unet",
        "Encoder and decoder for 8x8 digits: outside, stroke or enclosed hole for each pixel.",
        DigitsUNet,
        epochs=60,
        rate=0.1,
        target=regions,
        judge=overlap,
        output="regions",
    ),
    Recipe(
        "digits_lstm",
        "LSTM classifier for 8x8 digits: rows as steps, one layer in both directions and one forward.",
        DigitsLSTM,
        epochs=60,
        rate=0.005,
        adam=True,
        decay=0.01,
        folded=True,
    ),
    Recipe(
        "digits_vit",
        "Vision transformer for 8x8 digits: 2x2 patches, a class token, two blocks with four heads, GELU.",
        DigitsViT,
        epochs=150,
        rate=0.002,
        adam=True,
        decay=0.05,
        folded=True,
    ),
)


def distort(images: Tensor, recipe: Recipe, random: torch.Generator) -> Tensor:
    """Return `images` `[n, 1, 8, 8]` each turned, shifted and stretched a little by its own amounts.

    What comes in from outside the frame repeats the border, which is blank in nearly every digit.
    """
    count, _, height, width = images.shape
    turn, across, down, stretch = torch.rand(4, count, generator=random) * 2 - 1
    angle = torch.deg2rad(turn * recipe.turn)
    zoom = 1 + stretch * recipe.stretch
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    # affine_grid counts in half frames: one pixel is 2 / width.
    across, down = across * recipe.shift * 2 / width, down * recipe.shift * 2 / height
    rows = torch.stack([torch.stack([cos, -sin, across], 1), torch.stack([sin, cos, down], 1)], 1)
    grid = functional.affine_grid(rows, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def optimizer_of(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimizer: decay on weights only, since decayed BN scales would leave dead channels."""
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": recipe.decay},
        {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.adam:
        return torch.optim.AdamW(groups, lr=recipe.rate)
    return torch.optim.SGD(groups, lr=recipe.rate, momentum=0.9, nesterov=True)


def train(recipe: Recipe, digits: digits_data.Digits) -> nn.Module:
    """Return the net of `recipe` after all its epochs, in inference mode; no early stop, no choice of epoch."""
    torch.manual_seed(digits_data.SEED)
    random = torch.Generator().manual_seed(digits_data.SEED)
    images = torch.from_numpy(digits.preprocess(digits.train_images))
    labels = torch.from_numpy(digits.train_labels)
    net = recipe.build()
    optimizer = optimizer_of(net, recipe)
    steps = recipe.epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps)
    net.train()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=random)
        # The short last batch is left out: the order is new every epoch, so no image is.
        for batch in order.split(BATCH)[: len(images) // BATCH]:
            seen = distort(images[batch], recipe, random)
            loss = functional.cross_entropy(net(seen), recipe.target(digits, seen, labels[batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def export(net: nn.Module, recipe: Recipe, path: Path) -> None:
    """Write `net` to `path` with its BatchNormalization nodes, a dynamic batch axis, a doc string and metadata.

    The TorchScript exporter with `PRESERVE` is used because it keeps BatchNormalization at this opset; the other one
    folds it into the convolutions, and a zoo without it would not show what real files need.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        # It warns of LSTM and batches: here the zero states take their size from the image, and a test tries others.
        warnings.filterwarnings("ignore", "Exporting a model to ONNX with a batch_size", UserWarning)
        torch.onnx.export(
            net,
            (torch.zeros(2, 1, 8, 8),),
            path,
            dynamo=False,
            opset_version=OPSET,
            training=torch.onnx.TrainingMode.EVAL if recipe.folded else torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=recipe.folded,
            input_names=["image"],
            output_names=[recipe.output],
            dynamic_axes={"image": {0: "batch"}, recipe.output: {0: "batch"}},
        )
    model = onnx.load(path)
    model.graph.name = recipe.name
    model.doc_string = recipe.about
    onnx.helper.set_model_props(model, METADATA)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def quality(net: nn.Module, recipe: Recipe, digits: digits_data.Digits) -> float:
    """Return what `recipe.judge` says of `net` on the held-out images."""
    images = torch.from_numpy(digits.preprocess(digits.held_out_images))
    right = recipe.target(digits, images, torch.from_numpy(digits.held_out_labels))
    with torch.no_grad():
        return recipe.judge(net(images).argmax(1), right)


def write_checksums(paths: list[Path], folder: Path) -> None:
    """Write `SHA256SUMS` in the form that `sha256sum -c` reads."""
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in sorted(paths)]
    (folder / "SHA256SUMS").write_text("".join(lines))


def main() -> None:
    """Make every file, and print one line a net."""
    parser = argparse.ArgumentParser(description="Train the digit nets and write the zoo.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    digits = digits_data.load()
    written = digits_data.write_samples(digits, folder)
    for recipe in RECIPES:
        net = train(recipe, digits)
        path = folder / f"{recipe.name}.onnx"
        export(net, recipe, path)
        written.append(path)
        score = quality(net, recipe, digits)
        print(
            f"{path.name}: {path.stat().st_size:,} bytes, {recipe.judge.__name__} {score:.2%} on held-out images"
        )
    write_checksums(written, folder)


if __name__ == "__main__":
    main()
