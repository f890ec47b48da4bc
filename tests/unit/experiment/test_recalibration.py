"""The statistics of batch norms taken anew."""

import copy

import torch
from problems import F64, gaussian, mlp, randn
from torch import nn

from nncompress.surgery.norms import recalibrate_norms


def test_recalibrated_statistics_are_the_means_over_the_batches():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 2)).to(
        F64
    )
    x = randn(25, 1, 6, 6)
    before = copy.deepcopy(network.state_dict())
    found = recalibrate_norms(network, x, batch_size=10)
    batches = [network[0](part).detach() for part in torch.split(x, 10)]
    mean = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    var = torch.stack([b.var((0, 2, 3), unbiased=True) for b in batches]).mean(0)
    torch.testing.assert_close(found[1].running_mean, mean)
    torch.testing.assert_close(found[1].running_var, var)
    assert found[1].momentum == network[1].momentum
    assert not any(module.training for module in found.modules())
    assert all(map(torch.equal, network.state_dict().values(), before.values()))
    assert all(map(torch.equal, found.parameters(), network.parameters()))


def test_dropout_stays_off_while_statistics_are_taken():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(4)).to(F64).train()
    x = randn(7, 4)
    torch.testing.assert_close(recalibrate_norms(network, x)[1].running_mean, x.mean(0))


def test_one_sample_left_over_goes_with_the_batch_before():
    network, x = nn.Sequential(nn.BatchNorm1d(4)).to(F64), randn(7, 4)
    found = recalibrate_norms(network, x, batch_size=3)[0]
    torch.testing.assert_close(found.running_mean, (x[:3].mean(0) + x[3:].mean(0)) / 2)


def test_a_network_without_batch_norms_is_only_copied():
    network = mlp(gaussian())
    found = recalibrate_norms(network, randn(4, 12))
    assert found is not network
    assert all(map(torch.equal, found.parameters(), network.parameters()))
    frozen = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)).to(F64)
    assert recalibrate_norms(frozen, randn(5, 4))[0].running_mean is None
