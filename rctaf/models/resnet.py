"""Residual networks for small images: ResNet-18, PreAct-ResNet-18, wide ResNets and a ResNet-8.

They differ in the order of convolution, norm and activation inside a block, in depth and in width.
Every activation is made by the caller's factory, one instance per place; there is no other nonlinearity.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from rctaf.activations import activate_sum
from rctaf.models.norm import make_norm

Activation = Callable[[], nn.Module]


class _Parts:
    """What all blocks of a network are made with."""

    def __init__(self, activation: Activation, norm: str, norm_sets: int) -> None:
        self.activation = activation
        self._norm, self._sets = norm, norm_sets

    def norm(self, channels: int) -> nn.Module:
        return make_norm(self._norm, channels, self._sets)

    def conv(self, inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
        # a batch norm's own shift makes the bias of the convolution before it redundant
        return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=self._norm == "none")

    def finish(self, last: nn.Conv2d) -> None:
        """Without norm, zero the last convolution of a residual branch, so that the block begins as its shortcut.

        The variance of a residual sum would double at every block; beginning with empty branches (as in Fixup and
        SkipInit) keeps any depth trainable at the usual learning rates.
        """
        if self._norm == "none":
            for parameter in last.parameters():
                nn.init.zeros_(parameter)


class Block(nn.Module):
    """Post-activation basic block (He et al. 2016a): act(norm(conv(act(norm(conv x)))) + shortcut x)."""

    def __init__(self, inputs: int, outputs: int, stride: int, parts: _Parts) -> None:
        super().__init__()
        self.conv1, self.norm1 = parts.conv(inputs, outputs, 3, stride), parts.norm(outputs)
        self.conv2, self.norm2 = parts.conv(outputs, outputs, 3), parts.norm(outputs)
        self.act1, self.act2 = parts.activation(), parts.activation()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(parts.conv(inputs, outputs, 1, stride), parts.norm(outputs))
        parts.finish(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act1(self.norm1(self.conv1(x)))
        return activate_sum(self.act2, self.norm2(self.conv2(h)), self.shortcut(x))


class PreActBlock(nn.Module):
    """Pre-activation basic block (He et al. 2016b): conv(act(norm(conv h))) + shortcut, h = act(norm x).

    Where the shape changes the shortcut is a 1x1 convolution of h, else it is x itself.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, parts: _Parts) -> None:
        super().__init__()
        self.norm1, self.conv1 = parts.norm(inputs), parts.conv(inputs, outputs, 3, stride)
        self.norm2, self.conv2 = parts.norm(outputs), parts.conv(outputs, outputs, 3)
        self.act1, self.act2 = parts.activation(), parts.activation()
        self.projects = stride != 1 or inputs != outputs
        self.shortcut = parts.conv(inputs, outputs, 1, stride) if self.projects else nn.Identity()
        parts.finish(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act1(self.norm1(x))
        return self.conv2(self.act2(self.norm2(self.conv1(h)))) + self.shortcut(h if self.projects else x)


class ResNet(nn.Module):
    """Stem, stages of blocks, global average pooling, linear classifier.

    Args:
        block: :class:`Block` (the stem is then followed by norm and activation) or :class:`PreActBlock`.
        widths: channels of each stage; every stage after the first halves the resolution.
        depth: blocks per stage.
        stem: channels of the 3x3 convolution that reads the image.
        final_norm: norm and activation before pooling, where the blocks end without them.
    """

    def __init__(
        self,
        block: type[Block] | type[PreActBlock],
        widths: tuple[int, ...],
        depth: int,
        stem: int,
        *,
        final_norm: bool,
        activation: Activation,
        in_channels: int,
        n_classes: int,
        norm: str,
        norm_sets: int,
    ) -> None:
        super().__init__()
        parts = _Parts(activation, norm, norm_sets)
        begin: list[nn.Module] = [parts.conv(in_channels, stem, 3)]
        if block is Block:
            begin += [parts.norm(stem), parts.activation()]
        self.stem = nn.Sequential(*begin)
        blocks: list[nn.Module] = []
        inputs = stem
        for stage, width in enumerate(widths):
            for i in range(depth):
                blocks.append(block(inputs, width, 2 if stage and not i else 1, parts))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.final = nn.Sequential(parts.norm(inputs), parts.activation()) if final_norm else nn.Identity()
        self.classifier = nn.Linear(inputs, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] in [0, 1] to logits [N, n_classes]."""
        return self.classifier(self.final(self.blocks(self.stem(x))).mean((2, 3)))
