"""The convolutional nets of the zoo and its perceptron, in PyTorch. Attribute names become node names in the files."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 10
REGIONS = 3


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut: the identity, or a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: Projection | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = Projection(inputs, outputs, stride)
            # This bias and that of norm2 are added, so their gradients agree: from equal starts they would stay equal,
            # and the exporter makes one shared initializer of equal tensors.
            nn.init.normal_(self.shortcut.norm.bias, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, outputs, h / stride, w / stride]`."""
        y = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(y + (x if self.shortcut is None else self.shortcut(x)))


class Projection(nn.Module):
    """A 1x1 convolution with BatchNormalization."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, outputs, h / stride, w / stride]`."""
        return self.norm(self.conv(x))


class ConvUnit(nn.Module):
    """A convolution, BatchNormalization and one activation."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, act: nn.Module, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, outputs, h / stride, w / stride]`."""
        return self.act(self.norm(self.conv(x)))


class SqueezeExcite(nn.Module):
    """Multiply every channel by a gate between 0 and 1 computed from the means of all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.relu = nn.ReLU()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of `x`."""
        return x * self.gate(self.expand(self.relu(self.reduce(self.pool(x)))))


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel by itself, gate, narrow again.

    The shortcut is the identity and stands only where input and output have the same shape.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int = 4, stride: int = 1) -> None:
        super().__init__()
        inner = inputs * expansion
        self.widen = ConvUnit(inputs, inner, 1, nn.ReLU6())
        self.depthwise = ConvUnit(inner, inner, 3, nn.ReLU6(), stride, groups=inner)
        self.squeeze_excite = SqueezeExcite(inner, inner // 4)
        self.narrow = Projection(inner, outputs, stride=1)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, outputs, h / stride, w / stride]`."""
        y = self.narrow(self.squeeze_excite(self.depthwise(self.widen(x))))
        return x + y if self.adds_input else y


class Classifier(nn.Module):
    """Global average over the pixels, then one Gemm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.logits = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, CLASSES]`."""
        return self.logits(self.flatten(self.pool(x)))


class DigitsResNet(nn.Module):
    """Residual CNN: three stages of two blocks with 16, 32 and 64 channels; 1x1 shortcuts into the last two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvUnit(1, 16, 3, nn.ReLU())
        self.stage1_block1 = Residual(16, 16)
        self.stage1_block2 = Residual(16, 16)
        self.stage2_block1 = Residual(16, 32, stride=2)
        self.stage2_block2 = Residual(32, 32)
        self.stage3_block1 = Residual(32, 64, stride=2)
        self.stage3_block2 = Residual(64, 64)
        self.head = Classifier(64)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, CLASSES]` for images `[n, 1, 8, 8]`."""
        x = self.stage1_block2(self.stage1_block1(self.stem(x)))
        x = self.stage2_block2(self.stage2_block1(x))
        return self.head(self.stage3_block2(self.stage3_block1(x)))


class DigitsMobileNet(nn.Module):
    """MobileNet-like CNN: inverted residuals with depthwise convolutions, ReLU6 and squeeze-and-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvUnit(1, 16, 3, nn.ReLU6())
        self.block1 = InvertedResidual(16, 16)
        self.block2 = InvertedResidual(16, 24, stride=2)
        self.block3 = InvertedResidual(24, 24)
        self.block4 = InvertedResidual(24, 40, stride=2)
        self.block5 = InvertedResidual(40, 40)
        self.last = ConvUnit(40, 128, 1, nn.ReLU6())
        self.head = Classifier(128)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, CLASSES]` for images `[n, 1, 8, 8]`."""
        x = self.block3(self.block2(self.block1(self.stem(x))))
        return self.head(self.last(self.block5(self.block4(x))))


class DigitsMLP(nn.Module):
    """Three Gemm layers, 64-256-128-10."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.layer1 = nn.Linear(64, 256)
        self.relu1 = nn.ReLU()
        self.layer2 = nn.Linear(256, 128)
        self.relu2 = nn.ReLU()
        self.layer3 = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, CLASSES]` for images `[n, 1, 8, 8]`."""
        return self.layer3(self.relu2(self.layer2(self.relu1(self.layer1(self.flatten(x))))))


class DigitsVGG(nn.Module):
    """VGG-like CNN: pairs of 3x3 convolutions with biases, max pooling, and two Gemm over all pixels of the last map."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = vgg_stage(1, 32)
        self.pool1 = nn.MaxPool2d(2)
        self.stage2 = vgg_stage(32, 48)
        self.pool2 = nn.MaxPool2d(2)
        self.stage3 = vgg_stage(48, 64)
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(64 * 4, 96)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(0.3)
        self.logits = nn.Linear(96, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, CLASSES]` for images `[n, 1, 8, 8]`."""
        x = self.stage3(self.pool2(self.stage2(self.pool1(self.stage1(x)))))
        return self.logits(self.dropout(self.relu(self.hidden(self.flatten(x)))))


def vgg_stage(inputs: int, outputs: int) -> nn.Sequential:
    """Return two 3x3 convolutions, each with a bias, BatchNormalization and ReLU: `[n, outputs, h, w]`."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class DenseLayer(nn.Module):
    """Normalise all that came before, narrow it by a 1x1 convolution, and make `growth` new channels of it."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        inner = 4 * growth
        self.norm1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return the new channels, `[n, growth, h, w]`."""
        y = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu2(self.norm2(y)))


class DenseBlock(nn.Module):
    """Layers that each read the concatenation of the block's input and of all layers before them."""

    def __init__(self, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(inputs + i * growth, growth) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Return the input and all new channels, `[n, inputs + layers * growth, h, w]`."""
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


class Transition(nn.Module):
    """BatchNormalization, ReLU, a 1x1 convolution to fewer channels and average pooling."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, outputs, h / 2, w / 2]`."""
        return self.pool(self.conv(self.relu(self.norm(x))))


class DigitsDenseNet(nn.Module):
    """DenseNet-like CNN: three blocks of four layers, growth 12, with transitions that halve channels and pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 24, 3, padding=1, bias=False)
        self.block1 = DenseBlock(24, 12, layers=4)
        self.transition1 = Transition(72, 36)
        self.block2 = DenseBlock(36, 12, layers=4)
        self.transition2 = Transition(84, 42)
        self.block3 = DenseBlock(42, 12, layers=4)
        self.norm = nn.BatchNorm2d(90)
        self.relu = nn.ReLU()
        self.head = Classifier(90)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, CLASSES]` for images `[n, 1, 8, 8]`."""
        x = self.transition1(self.block1(self.stem(x)))
        x = self.block3(self.transition2(self.block2(x)))
        return self.head(self.relu(self.norm(x)))


class Shuffle(nn.Module):
    """Interleave the two halves of the channels of square maps: Reshape, Transpose and Reshape to constant sizes."""

    def __init__(self, channels: int, pixels: int) -> None:
        super().__init__()
        self.apart = (-1, 2, channels // 2, pixels, pixels)
        self.together = (-1, channels, pixels, pixels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of `x`, `[n, channels, pixels, pixels]`."""
        return x.reshape(self.apart).transpose(1, 2).reshape(self.together)


class ShuffleUnit(nn.Module):
    """One half of the channels passes, the other is filtered; then the halves are interleaved.

    With a stride of 2 nothing is split: both branches read all channels. `pixels` is the side of the output.
    """

    def __init__(self, inputs: int, outputs: int, pixels: int, stride: int = 1) -> None:
        super().__init__()
        self.half = half = outputs // 2
        self.bypass: nn.Module | None = None
        if stride == 2:
            self.bypass = nn.Sequential(
                ConvUnit(inputs, inputs, 3, nn.Identity(), stride, groups=inputs),
                ConvUnit(inputs, half, 1, nn.ReLU()),
            )
        self.narrow = ConvUnit(inputs if stride == 2 else half, half, 1, nn.ReLU())
        self.depthwise = ConvUnit(half, half, 3, nn.Identity(), stride, groups=half)
        self.widen = ConvUnit(half, half, 1, nn.ReLU())
        self.shuffle = Shuffle(outputs, pixels)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, outputs, pixels, pixels]`."""
        kept, filtered = x.split(self.half, 1) if self.bypass is None else (self.bypass(x), x)
        return self.shuffle(torch.cat([kept, self.widen(self.depthwise(self.narrow(filtered)))], 1))


class DigitsShuffleNet(nn.Module):
    """ShuffleNet-like CNN (version 2): channel splits, depthwise convolutions, channel shuffles."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvUnit(1, 32, 3, nn.ReLU())
        self.unit1 = ShuffleUnit(32, 32, pixels=8)
        self.unit2 = ShuffleUnit(32, 64, pixels=4, stride=2)
        self.unit3 = ShuffleUnit(64, 64, pixels=4)
        self.unit4 = ShuffleUnit(64, 64, pixels=4)
        self.unit5 = ShuffleUnit(64, 128, pixels=2, stride=2)
        self.unit6 = ShuffleUnit(128, 128, pixels=2)
        self.last = ConvUnit(128, 160, 1, nn.ReLU())
        self.head = Classifier(160)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, CLASSES]` for images `[n, 1, 8, 8]`."""
        x = self.unit4(self.unit3(self.unit2(self.unit1(self.stem(x)))))
        return self.head(self.last(self.unit6(self.unit5(x))))


class DigitsUNet(nn.Module):
    """Encoder and decoder with skip connections; one step up is a ConvTranspose, the other a Resize.

    It names the region of each pixel: outside the stroke, the stroke, or a hole that the stroke encloses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encode1 = unet_stage(1, 16)
        self.pool1 = nn.MaxPool2d(2)
        self.encode2 = unet_stage(16, 32)
        self.pool2 = nn.MaxPool2d(2)
        self.middle = unet_stage(32, 64)
        self.up2 = nn.ConvTranspose2d(64, 32, 2, stride=2, bias=False)
        self.up2_norm = nn.BatchNorm2d(32)
        self.up2_relu = nn.ReLU()
        self.decode2 = unet_stage(64, 32)
        self.up1 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.up1_narrow = ConvUnit(32, 16, 1, nn.ReLU())
        self.decode1 = unet_stage(32, 16)
        self.regions = nn.Conv2d(16, REGIONS, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, REGIONS, 8, 8]` for images `[n, 1, 8, 8]`."""
        fine = self.encode1(x)
        coarse = self.encode2(self.pool1(fine))
        deep = self.middle(self.pool2(coarse))
        up = self.up2_relu(self.up2_norm(self.up2(deep)))
        up = self.decode2(torch.cat([up, coarse], 1))
        up = self.up1_narrow(self.up1(up))
        return self.regions(self.decode1(torch.cat([up, fine], 1)))


def unet_stage(inputs: int, outputs: int) -> nn.Sequential:
    """Return two 3x3 convolutions, each with BatchNormalization and ReLU: `[n, outputs, h, w]`."""
    return nn.Sequential(ConvUnit(inputs, outputs, 3, nn.ReLU()), ConvUnit(outputs, outputs, 3, nn.ReLU()))
