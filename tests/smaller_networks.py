"""Networks that lose channels: which, how that is checked, and one written to a folder."""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from artefact_cases import about
from image_networks import count, norms, outputs
from problems import F64, problem, randn
from torch import Tensor, nn

from nncompress.artefact.save import save
from nncompress.config.build import build
from nncompress.problem import Dataset, Split
from nncompress.surgery.channels import guard_channels, is_reshaped, kept_in, mask_channels, norm_of, scales_of
from nncompress.surgery.removal import remove_channels

Keep = dict[str, Tensor]
ARCHITECTURES: dict[str, dict[str, object]] = {
    "vgg": {"_target_": "nncompress.models.VGG", "layers": [1, 2, 1], "width": 0.1},
    "preresnet": {"_target_": "nncompress.models.PreResNet", "depth": 20, "width": 0.25},
    "densenet": {"_target_": "nncompress.models.DenseNet", "depth": 10, "growth": 3},
    "resnet18": {"_target_": "nncompress.models.ResNet18", "width": 0.06},
    "wide_resnet": {"_target_": "nncompress.models.WideResNet", "depth": 10, "widen": 1},
}


def random_keep(network: nn.Module, share: float, seed: int = 0) -> Keep:
    """Each channel stays with probability `share`, and a random one of each batch norm."""
    g = torch.Generator().manual_seed(seed)
    keep = {name: torch.rand(len(mask), generator=g) < share for name, mask in kept_in(network).items()}
    for mask in keep.values():
        mask[int(torch.randint(len(mask), (), generator=g))] = True
    return keep


def everything(network: nn.Module) -> Keep:
    return {norm: torch.ones_like(mask) for norm, mask in kept_in(network).items()}


def nothing(network: nn.Module) -> Keep:
    return {norm: torch.zeros_like(mask) for norm, mask in kept_in(network).items()}


def scores_of(network: nn.Module) -> Keep:
    return {scale.norm: norm_of(network, scale).weight.detach().abs() for scale in scales_of(network)}


def assert_same(a: nn.Module, b: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(outputs(a, x), outputs(b, x), rtol=1e-10, atol=1e-10)


def checked(network: nn.Module, keep: Mapping[str, Tensor], x: Tensor) -> nn.Module:
    """The smaller network, once it is found to compute what the masked one does."""
    dead = mask_channels(network, keep)
    found = remove_channels(dead)
    assert_same(found, dead, x)
    assert is_reshaped(found)
    assert count(found) < count(network)
    return found


def zeroed(network: nn.Module, keep: Mapping[str, Tensor]) -> nn.Module:
    """Scale 0 where a channel does not stay, its shift as it was."""
    found = copy.deepcopy(network)
    for scale in scales_of(found):
        norm_of(found, scale).weight.data.masked_fill_(~keep[scale.norm], 0)
    return found


def trained(network: nn.Module) -> nn.Module:
    """With batch norms as after training."""
    torch.manual_seed(0)
    network = network.to(F64)
    for norm in norms(network):
        for tensor, low, high in ((norm.weight, 0.3, 1), (norm.bias, -0.2, 0.4), (norm.running_var, 0.5, 2)):
            nn.init.uniform_(tensor, low, high)
        nn.init.uniform_(norm.running_mean, -0.2, 0.2)
    return network.eval()


def stored(folder: Path, name: str) -> tuple[nn.Module, Tensor]:
    """A smaller network written to a folder, in float32, and samples."""
    torch.manual_seed(0)
    network = trained(build(ARCHITECTURES[name], input_shape=(1, 8, 8), num_classes=5)).float()
    keep = random_keep(network, 0.5)
    for norm, mask in keep.items():
        mask &= "blocks.1.branch" not in norm
    found = remove_channels(mask_channels(network, guard_channels(network, keep, scores_of(network))[0]))
    x = randn(4, 1, 8, 8, dtype=torch.float32)
    split = Split(x, torch.tensor([0, 1, 2, 3]))
    p = problem(Dataset(split, split, 5, "noise"), network)
    save(folder, found, p.plan, (), about(p.data, ARCHITECTURES[name]))
    return found, x
