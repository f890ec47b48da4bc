"""VGG networks with batch norm."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nncompress.models.common import image_channels, initialise_normed, scale_channels
from nncompress.surgery.channels import Scale

STAGES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""The convolutions of each stage, by depth."""

WIDTHS = (64, 128, 256, 512, 512)
"""The channels of each stage."""


class VGG(nn.Module):
    """Stages of 3x3 convolution, batch norm, ReLU with max pooling between them, then averages and one linear layer.

    The form of network slimming (Liu et al., ICCV 2017): convolutions without biases, 64, 128, 256, 512, 512 channels,
    one layer behind the average over the image; 20 035 018 parameters for depth 19 on 10 classes.
    Raises ValueError for settings out of range, and for images (channels, height, width) too small for the layers.

    - depth: 16 or 19; 19, as in the slimming papers.
    - layers: the convolutions of each of at most five stages in place of `depth`; None.
    - width: multiplies all numbers of channels, above 0; 1.
    - padding: of the convolutions, 0 or 1; 1, which keeps height and width.
    - initial_scale: the first scale of all batch norms; 0.5, as in the slimming papers.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        depth: int = 19,
        layers: Sequence[int] | None = None,
        width: float = 1.0,
        padding: int = 1,
        initial_scale: float = 0.5,
    ) -> None:
        super().__init__()
        stages = _stages(depth, layers)
        before = image_channels("vgg", input_shape, _smallest_side(stages, padding))
        self.features = nn.Sequential()
        for stage, count in enumerate(stages, 1):
            if stage > 1:
                self.features.add_module(f"pool{stage - 1}", nn.MaxPool2d(2))
            for k in range(1, count + 1):
                after = scale_channels(WIDTHS[stage - 1], width)
                self.features.add_module(f"conv{stage}_{k}", nn.Conv2d(before, after, 3, padding=padding, bias=False))
                self.features.add_module(f"bn{stage}_{k}", nn.BatchNorm2d(after))
                self.features.add_module(f"relu{stage}_{k}", nn.ReLU(inplace=True))
                before = after
        self.fc = nn.Linear(before, num_classes)
        initialise_normed(self, initial_scale)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, num_classes) of x (n, channels, height, width)."""
        logits: Tensor = self.fc(self.features(x).mean((2, 3)))
        return logits

    def scales(self) -> list[Scale]:
        """Return all batch norms: each between its convolution and the next layer."""
        names = [f"features.{name}" for name, _ in self.features.named_children()]
        convs, norms = ([name for name in names if kind in name] for kind in (".conv", ".bn"))
        return [Scale(norm, c, (reader,)) for norm, c, reader in zip(norms, convs, [*convs[1:], "fc"], strict=True)]


def _stages(depth: int, layers: Sequence[int] | None) -> Sequence[int]:
    if layers is None:
        if depth not in STAGES:
            known = " or ".join(map(str, STAGES))
            raise ValueError(f"depth must be {known}, found {depth}; choose one of them or give layers")
        return STAGES[depth]
    if not 1 <= len(layers) <= len(WIDTHS) or min(layers) < 1:
        most = len(WIDTHS)
        raise ValueError(f"layers must be the convolutions of 1 to {most} stages, each at least 1, found {[*layers]}")
    return layers


def _smallest_side(stages: Sequence[int], padding: int) -> int:
    """Return how many pixels a side of an image must have for every layer to be left one."""
    if padding not in (0, 1):
        raise ValueError(f"padding must be 0 or 1, found {padding}")
    side = 1
    for count in reversed(stages):
        side = 2 * (side + 2 * (1 - padding) * count)
    return side // 2
