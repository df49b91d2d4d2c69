"""Make everything in this folder: train the three digit nets, export them, write the data files and the checksums.

    python models/train_digits.py [--out FOLDER]

Needs the extra `zoo`. One thread and fixed seeds: the same versions on the same kind of processor give the same files.
The held-out images are looked at once, after the last epoch, to print the accuracy: no epoch is chosen by them.
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
from digits_nets import DigitsMLP, DigitsMobileNet, DigitsResNet
from torch import Tensor, nn
from torch.nn import functional

OPSET = 17
BATCH = 64
METADATA = {
    "dataset": "UCI optical recognition of handwritten digits, as shipped by scikit-learn",
    "licence": "Apache-2.0",
    "made_by": "models/train_digits.py",
}


@dataclass(frozen=True)
class Recipe:
    """One net of the zoo and how it is trained; `turn` in degrees, `shift` in pixels, `stretch` relative."""

    name: str
    about: str
    build: Callable[[], nn.Module]
    epochs: int
    rate: float
    turn: float = 10
    shift: float = 1
    stretch: float = 0.1


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


def parameter_groups(net: nn.Module) -> list[dict[str, object]]:
    """Return the optimizer's groups: decay on weights only, since decayed BN scales would leave dead channels."""
    weights = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    return [{"params": weights, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]


def train(recipe: Recipe, images: Tensor, labels: Tensor) -> nn.Module:
    """Return the net of `recipe` after all its epochs, in inference mode; no early stop, no choice of epoch."""
    torch.manual_seed(digits_data.SEED)
    random = torch.Generator().manual_seed(digits_data.SEED)
    net = recipe.build()
    optimizer = torch.optim.SGD(parameter_groups(net), lr=recipe.rate, momentum=0.9, nesterov=True)
    steps = recipe.epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps)
    net.train()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=random)
        # The short last batch is left out: the order is new every epoch, so no image is.
        for batch in order.split(BATCH)[: len(images) // BATCH]:
            loss = functional.cross_entropy(net(distort(images[batch], recipe, random)), labels[batch])
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
        torch.onnx.export(
            net,
            (torch.zeros(2, 1, 8, 8),),
            path,
            dynamo=False,
            opset_version=OPSET,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )
    model = onnx.load(path)
    model.graph.name = recipe.name
    model.doc_string = recipe.about
    onnx.helper.set_model_props(model, METADATA)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of `images` that `net` names rightly."""
    with torch.no_grad():
        return float((net(images).argmax(1) == labels).float().mean())


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
    images = torch.from_numpy(digits.preprocess(digits.train_images))
    labels = torch.from_numpy(digits.train_labels)
    held_out = torch.from_numpy(digits.preprocess(digits.held_out_images))
    held_out_labels = torch.from_numpy(digits.held_out_labels)
    written = digits_data.write_samples(digits, folder)
    for recipe in RECIPES:
        net = train(recipe, images, labels)
        path = folder / f"{recipe.name}.onnx"
        export(net, recipe, path)
        written.append(path)
        right = accuracy(net, held_out, held_out_labels)
        print(f"{path.name}: {path.stat().st_size:,} bytes, {right:.2%} of {len(held_out)} held-out images")
    write_checksums(written, folder)


if __name__ == "__main__":
    main()
