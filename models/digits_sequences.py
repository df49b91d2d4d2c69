"""The nets of the zoo that read an image as a sequence, in PyTorch. Attribute names become node names in the files."""

from __future__ import annotations

import torch
from digits_nets import CLASSES
from torch import Tensor, nn


class DigitsLSTM(nn.Module):
    """LSTM classifier: the rows of the image are the steps; one layer reads both ways, one reads what that one says."""

    def __init__(self) -> None:
        super().__init__()
        self.both_ways = nn.LSTM(8, 48, batch_first=True, bidirectional=True)
        self.forward_only = nn.LSTM(96, 64, batch_first=True)
        self.logits = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, CLASSES]` for images `[n, 1, 8, 8]`."""
        steps, _ = self.both_ways(x.squeeze(1))
        steps, _ = self.forward_only(steps)
        return self.logits(steps[:, -1])


class Attention(nn.Module):
    """Self-attention with several heads; one MatMul makes queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, tokens, width]`."""
        count, tokens, width = x.shape
        qkv = self.qkv(x).reshape(count, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query * self.scale @ key.transpose(-2, -1)).softmax(-1)
        return self.project((weights @ value).transpose(1, 2).reshape(count, tokens, width))


class TransformerBlock(nn.Module):
    """Attention, then two layers with GELU; each reads the normalised stream and adds to it."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, inner)
        self.gelu = nn.GELU()
        self.narrow = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, tokens, width]`."""
        x = x + self.attention(self.norm1(x))
        return x + self.narrow(self.gelu(self.widen(self.norm2(x))))


class DigitsViT(nn.Module):
    """Vision transformer: 16 patches of 2x2 pixels and a class token, width 64, two blocks with four heads."""

    def __init__(self) -> None:
        super().__init__()
        width = 64
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        self.block1 = TransformerBlock(width, heads=4, inner=3 * width)
        self.block2 = TransformerBlock(width, heads=4, inner=3 * width)
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, CLASSES]` for images `[n, 1, 8, 8]`."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.position
        return self.logits(self.norm(self.block2(self.block1(x)))[:, 0])
