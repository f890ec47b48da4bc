"""Wide residual networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nncompress.models.common import image_channels
from nncompress.models.preresnet import Conv, PreActivationBlock, PreActivationNetwork, changes, shortcut_of, stages
from nncompress.surgery.channels import Scale


class ChangingBlock(nn.Module):
    """shortcut(a) + branch(a) with a = relu(bn1(x)): the 1x1 shortcut reads the activated input as the branch does."""

    def __init__(self, convs: Sequence[Conv], dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(convs[0].before)
        self.relu1 = nn.ReLU(inplace=True)
        self.branch = nn.Sequential()
        self.branch.add_module("conv1", convs[0].layer())
        self.branch.add_module("bn2", nn.BatchNorm2d(convs[1].before))
        self.branch.add_module("relu2", nn.ReLU(inplace=True))
        if dropout:
            self.branch.add_module("dropout", nn.Dropout(dropout))
        self.branch.add_module("conv2", convs[1].layer())
        self.shortcut = shortcut_of(convs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum (n, channels out, height, width) for x (n, channels in, height, width)."""
        x = self.relu1(self.bn1(x))
        y: Tensor = self.shortcut(x) + self.branch(x)
        return y

    def scales(self, block: str) -> list[Scale]:
        """Return its batch norms, for the block's name; the first has two readers and must keep a channel."""
        branch = f"{block}.branch"
        if not hasattr(self.branch, "conv1"):  # the branch has been taken out
            return [Scale(f"{block}.bn1", None, (f"{block}.shortcut",))]
        return [
            Scale(f"{block}.bn1", None, (f"{branch}.conv1", f"{block}.shortcut")),
            Scale(f"{branch}.bn2", f"{branch}.conv1", (f"{branch}.conv2",), branch),
        ]


class WideResNet(PreActivationNetwork):
    """3x3 convolution to 16 channels, three stages of 16, 32, 64 times `widen` channels, batch norm, averages, linear.

    Zagoruyko and Komodakis, "Wide residual networks" (2016): pre-activation blocks of two 3x3 convolutions; 36 479 194
    parameters by default on 10 classes. Raises ValueError for settings out of range, and for inputs that are no images
    (channels, height, width) of at least 4x4.

    - depth: 6n + 4; 28, as in the published code of SparseFW.
    - widen: multiplies the channels of the stages, at least 1; 10, as there.
    - dropout: between the two convolutions of a block, in [0, 1); 0, none (0.3 there).
    - initial_scale: the first scale of all batch norms; 1, PyTorch's own.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        depth: int = 28,
        widen: int = 10,
        dropout: float = 0.0,
        initial_scale: float = 1.0,
    ) -> None:
        in_stage, rest = divmod(depth - 4, 6)
        if rest or in_stage < 1:
            raise ValueError(f"depth must be 6n + 4 with n at least 1, found {depth}; choose 16 or 28, for example")
        if widen < 1 or not 0 <= dropout < 1:
            raise ValueError(f"widen must be at least 1 and dropout in [0, 1), found {widen} and {dropout}")
        channels = image_channels("wide_resnet", input_shape, 4)

        def block(convs: Sequence[Conv]) -> nn.Module:
            return (ChangingBlock if changes(convs) else PreActivationBlock)(convs, dropout)

        convs = stages(16, [widen * width for width in (16, 32, 64)], in_stage)
        super().__init__(channels, num_classes, convs, block, initial_scale)
