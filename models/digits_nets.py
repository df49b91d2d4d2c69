"""The three nets of the zoo, in PyTorch. Attribute names become node names in the ONNX files."""

from __future__ import annotations

from torch import Tensor, nn

CLASSES = 10


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
