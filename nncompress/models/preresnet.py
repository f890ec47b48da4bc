"""Pre-activation residual networks for small images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from nncompress.models.common import head, image_channels, initialise_normed, scale_channels
from nncompress.surgery.channels import Scale

EXPANSION = 4
MOST = 10_000
"""Channels out of a bottleneck for each one in its middle."""


class Conv(NamedTuple):
    """A convolution of a branch: channels in and out, kernel size, stride."""

    before: int
    after: int
    size: int
    stride: int

    def layer(self) -> nn.Conv2d:
        """Make the layer, which keeps height and width but for its stride; no bias."""
        return nn.Conv2d(*self, padding=self.size // 2, bias=False)


class PreActivationBlock(nn.Module):
    """shortcut(x) + branch(x), the branch a chain of batch norm, ReLU, convolution (He et al. 2016).

    The shortcut is a 1x1 convolution of x itself where the block changes channels or size, else x. `dropout` acts
    before the last convolution.
    """

    def __init__(self, convs: Sequence[Conv], dropout: float = 0.0) -> None:
        super().__init__()
        self.branch = nn.Sequential()
        for k, conv in enumerate(convs, 1):
            self.branch.add_module(f"bn{k}", nn.BatchNorm2d(conv.before))
            self.branch.add_module(f"relu{k}", nn.ReLU(inplace=True))
            if dropout and k == len(convs):
                self.branch.add_module("dropout", nn.Dropout(dropout))
            self.branch.add_module(f"conv{k}", conv.layer())
        self.shortcut = shortcut_of(convs) if changes(convs) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum (n, channels out, height, width) for x (n, channels in, height, width)."""
        y: Tensor = self.shortcut(x) + self.branch(x)
        return y

    def scales(self, block: str) -> list[Scale]:
        """Return the branch's batch norms, for a block of the name `block`; the first reads the residual stream."""
        branch = f"{block}.branch"
        names = [f"{branch}.{name}" for name, _ in self.branch.named_children()]
        norms, convs = ([name for name in names if name.startswith(f"{branch}.{kind}")] for kind in ("bn", "conv"))
        makers = [None, *convs][: len(norms)]
        return [Scale(norm, make, (conv,), branch) for norm, make, conv in zip(norms, makers, convs, strict=True)]


def changes(convs: Sequence[Conv]) -> bool:
    """Return whether what comes out of the convolutions has other channels or another size than what goes in."""
    return convs[0].before != convs[-1].after or any(conv.stride > 1 for conv in convs)


def shortcut_of(convs: Sequence[Conv]) -> nn.Conv2d:
    """Return the 1x1 convolution from what goes into the convolutions to what comes out of them."""
    return Conv(convs[0].before, convs[-1].after, 1, max(conv.stride for conv in convs)).layer()


class PreActivationNetwork(nn.Module):
    """A convolution `conv1` of images of `channels`, residual `blocks` that list their `scales`, and a `head`.

    `convs` are the convolutions of each block, of which `block` makes it.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        convs: Sequence[Sequence[Conv]],
        block: Callable[[Sequence[Conv]], nn.Module],
        initial_scale: float,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, convs[0][0].before, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*map(block, convs))
        self.head = head(convs[-1][-1].after, num_classes)
        initialise_normed(self, initial_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, num_classes) of x (n, channels, height, width)."""
        logits: Tensor = self.head(self.blocks(self.conv1(x)))
        return logits

    def scales(self) -> list[Scale]:
        """Return all batch norms: those of the blocks and the last one."""
        blocks = [(f"blocks.{k}", cast(Any, block)) for k, block in self.blocks.named_children()]
        return [
            *(scale for name, block in blocks for scale in block.scales(name)),
            Scale("head.bn", None, ("head.fc",)),
        ]


class PreResNet(PreActivationNetwork):
    """3x3 convolution, three stages of pre-activation blocks of 16, 32, 64 channels, batch norm, averages, linear.

    He et al., "Identity mappings in deep residual networks" (2016); 1 703 258 parameters for depth 164 on 10 classes.
    Raises ValueError for settings out of range, and for inputs that are no images (channels, height, width) of at
    least 4x4.

    - depth: 9n + 2 with bottlenecks, 6n + 2 without; 164, as in the slimming papers.
    - bottleneck: blocks of 1x1, 3x3, 1x1 to four times the channels, as in the slimming papers, or of two 3x3.
    - width: multiplies all numbers of channels, above 0; 1.
    - initial_scale: the first scale of all batch norms; 0.5, as in the slimming papers.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        depth: int = 164,
        bottleneck: bool = True,
        width: float = 1.0,
        initial_scale: float = 0.5,
    ) -> None:
        layers = 9 if bottleneck else 6
        in_stage, rest = divmod(depth - 2, layers)
        if rest or in_stage < 1:
            example = f"{'with' if bottleneck else 'without'} bottlenecks, found {depth}; choose"
            raise ValueError(f"depth must be {layers}n + 2 {example} {max(1, in_stage) * layers + 2}")
        channels = image_channels("preresnet", input_shape, 4)
        widths = [scale_channels(number, width) for number in (16, 32, 64)]
        convs = stages(widths[0], widths, in_stage, _bottleneck if bottleneck else basic)
        super().__init__(channels, num_classes, convs, PreActivationBlock, initial_scale)


def basic(before: int, after: int, stride: int) -> list[Conv]:
    """Return two 3x3 convolutions, the first with the stride."""
    return [Conv(before, after, 3, stride), Conv(after, after, 3, 1)]


def _bottleneck(before: int, middle: int, stride: int) -> list[Conv]:
    """Chain 1x1 down to `middle` channels, 3x3 with the stride, 1x1 up to EXPANSION times as many."""
    return [Conv(before, middle, 1, 1), Conv(middle, middle, 3, stride), Conv(middle, EXPANSION * middle, 1, 1)]


def stages(
    before: int, widths: Sequence[int], in_stage: int, convs_of: Callable[[int, int, int], list[Conv]] = basic
) -> list[list[Conv]]:
    """List the convolutions of `in_stage` blocks of each width; but for the first, a stage begins with stride 2.

    Raises ValueError for more than 10,000 blocks.
    """
    if len(widths) * in_stage > MOST:
        raise ValueError(f"depth must give at most {MOST:,} blocks, found {len(widths) * in_stage:,}")
    blocks: list[list[Conv]] = []
    for k in range(len(widths) * in_stage):
        stride = 2 if k > 0 and k % in_stage == 0 else 1
        blocks.append(convs_of(blocks[-1][-1].after if blocks else before, widths[k // in_stage], stride))
    return blocks
