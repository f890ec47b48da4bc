"""`round_to`: channels as multiples of a number, by hand, with targets and fine-tuning; runs and what tables say."""

import copy
from pathlib import Path

import pytest
import torch
from cases import case
from image_networks import norms, small
from omegaconf.errors import ValidationError
from problems import F64, randn, small_digits
from runs import configuration, refusal, rows, run
from slimming_cases import counts, size_by_hand, vgg
from slimming_cases import small as problem_with
from torch import Tensor, nn

from nncompress.artefact.model import load
from nncompress.compressions.plan import none
from nncompress.errors import Unsupported
from nncompress.experiment import checkpoint
from nncompress.models.preresnet import PreResNet
from nncompress.problem import Problem
from nncompress.report.run.tables import run_tables
from nncompress.results.records import read_run
from nncompress.solvers.slimming.network_slimming import NetworkSlimming
from nncompress.solvers.slimming.proximal import Slimming
from nncompress.solvers.slimming.scales import Scales, size_of
from nncompress.surgery.channels import kept_in
from nncompress.surgery.pruning import smaller
from nncompress.surgery.removal import remove_channels

MULTIPLE = 4


def slimming(**settings: object) -> Slimming:
    return Slimming(num_steps=1, batch_size=20, lam=1.0, beta=5.0, **settings)


def three() -> nn.Module:
    """Channels 6, 13, 26, with scaling factors that differ."""
    return vgg((1, 1, 1), 0.1)


def left(p: Problem, xi: Tensor, **settings: object) -> nn.Module:
    """What proximal slimming leaves of the network for these xi."""
    method = slimming(**settings)
    return method.masked_network(p, method.init(p)._replace(xi=xi))


def test_of_the_dead_channels_those_with_the_largest_scaling_factors_stay():
    network = three()
    xi = torch.zeros(45, dtype=F64)
    xi[[0, 6, 8, 10, 12, 17, *range(19, 32)]] = -0.5  # 1 of 6, 5 of 13, 13 of 26
    found = kept_in(left(problem_with(network, round_to=MULTIPLE), xi))
    assert [int(mask.sum()) for mask in found.values()] == [4, 8, 16]
    gamma = Scales.of(network).gamma()
    for mask, own, factors in zip(found.values(), xi.split([6, 13, 26]), gamma.split([6, 13, 26]), strict=True):
        assert bool(mask[own != 0].all())
        back, gone = factors[mask & (own == 0)], factors[~mask]
        assert float(back.min()) > float(gone.max())
    assert counts(left(problem_with(network, round_to=8), xi)) == [6, 8, 16]
    assert counts(left(problem_with(network), xi)) == [1, 5, 13]
    assert counts(left(problem_with(network, round_to=64), xi)) == [6, 13, 26]


def test_a_channel_that_comes_back_has_its_scaling_factor_and_shift():
    network = three()
    xi = torch.zeros(45, dtype=F64)
    xi[[0, 6, 19]] = 0.7
    found = left(problem_with(network, round_to=MULTIPLE), xi)
    scales, before = Scales.of(found), Scales.of(network)
    mask = torch.cat(list(kept_in(found).values()))
    assert int(mask.sum()) == 12
    expected = torch.where(xi != 0, xi, before.gamma())
    assert torch.equal(scales.gamma(), torch.where(mask, expected, 0))
    assert torch.equal(torch.cat(scales.shifts), torch.where(mask, torch.cat(before.shifts), 0))


def test_a_residual_branch_without_any_channel_still_goes():
    network, _ = small("preresnet-bottleneck")
    branch = next(scale.branch for scale in network.scales() if scale.branch)
    scales = Scales.of(network)
    own = [scale.norm for scale in network.scales() if scale.branch == branch]
    sizes = zip(scales.names, scales.sizes, strict=True)
    xi = torch.cat([torch.full((n,), float(name != own[0]), dtype=F64) for name, n in sizes])
    found = kept_in(left(Problem(network, small_digits(20), none({}), round_to=MULTIPLE), xi))
    assert all(not found[name].any() for name in own)
    assert all(found[name].all() for name in found if name not in own)


def test_a_target_is_met_with_multiples_and_as_few_channels_gone_as_possible():
    network, xi = three(), randn(45) * (torch.arange(45) % 5 > 0)
    method = slimming()
    state = method.init(problem_with(network, round_to=MULTIPLE))._replace(xi=xi)
    for name in ("ratio", "macs", "bits"):
        for value in (0.3, 0.7):
            with case(name=name, value=value):
                dense = size_by_hand(name, [6, 13, 26]) - (45 if name == "bits" else 0)
                best = None
                for count in range(int((xi != 0).sum()) + 1):
                    threshold = xi.abs().sort(descending=True).values[:count].min() if count else float("inf")
                    own = [int(((part.abs() >= threshold) & (part != 0)).sum()) for part in xi.split([6, 13, 26])]
                    sizes = [
                        min(n, -(-max(1, k) // MULTIPLE) * MULTIPLE) for k, n in zip(own, (6, 13, 26), strict=True)
                    ]
                    if size_by_hand(name, sizes) <= value * dense:
                        best = sizes
                p = problem_with(network, (name, value), round_to=MULTIPLE)
                found = method.masked_network(p, state)
                assert counts(found) == best
                assert size_of(p, remove_channels(found), name) <= value * dense
                assert sum(w.numel() for w in remove_channels(found).parameters()) == size_by_hand("ratio", best)


def test_a_target_that_a_multiple_in_every_layer_exceeds_is_refused():
    p = problem_with(three(), ("ratio", 0.1), round_to=8)
    with pytest.raises(
        Unsupported, match=r"target.ratio=0.1 must leave 8 channels \(round_to\) in every layer, which is"
    ):
        slimming().init(p)
    assert slimming().init(problem_with(three(), ("ratio", 0.1))).k == 0


def network_slimming(num_steps: int = 4, fine_tune: int = 2, **settings: object) -> NetworkSlimming:
    given = {"lam": 0.01, "percent": 0.5, "batch_size": 20}
    return NetworkSlimming(num_steps=num_steps, fine_tune=fine_tune, **(given | settings))


def residual() -> nn.Module:
    torch.manual_seed(0)
    return PreResNet((1, 8, 8), 10, depth=11, width=0.5).to(F64)


@pytest.mark.parametrize(("make", "target"), [(three, None), (residual, None), (three, ("ratio", 0.6))])
def test_the_channels_that_rounding_keeps_are_fine_tuned(make, target):
    p, method = problem_with(make(), target, round_to=MULTIPLE), network_slimming()
    states = [copy.deepcopy(iterate.state) for iterate in method.run(p, 4)]
    before, tuned, last = (method.masked_network(p, state) for state in states[2:])
    keep = torch.cat(list(kept_in(before).values()))
    assert all(k in (0, n) or k % MULTIPLE == 0 for k, n in zip(counts(before), Scales.of(p.model).sizes, strict=True))
    for state in states[3:]:
        assert torch.equal(state.keep != 0, keep)
    without = Problem(p.model, p.data, p.plan, target=target)
    plain = method.masked_network(without, states[2])  # what would have stayed
    back = keep & ~torch.cat(list(kept_in(plain).values()))
    assert bool(back.any())
    assert torch.equal(states[-1].plain != 0, torch.cat(list(kept_in(plain).values())))
    moved = Scales.of(last).gamma() - Scales.of(tuned).gamma()
    assert bool((moved[back] != 0).all())
    assert counts(last) == counts(before)
    for state in states[2:]:
        details = method.result(p, state, method.observe(p, state)).details
        assert details["round_to/channels"] == sum(counts(plain))
        assert details["round_to/params"] == sum(w.numel() for w in remove_channels(plain).parameters())
    if target is not None:
        assert size_of(p, remove_channels(last), "ratio") <= 0.6 * sum(w.numel() for w in p.model.parameters())


def test_fine_tuning_of_multiples_is_taken_up_again_bit_for_bit(tmp_path):
    p, method = problem_with(three(), round_to=MULTIPLE), network_slimming()
    *_, whole = method.run(p, 4)
    *_, part = method.run(p, 3)
    packed = checkpoint.pack(part.state)
    state = checkpoint.restore(method.init(p), packed, tmp_path)
    *_, resumed = method.run(p, 4, state=state)
    assert torch.equal(resumed.state.keep, whole.state.keep)
    assert torch.equal(resumed.state.plain, whole.state.plain)
    pairs = zip(resumed.state.model.state_dict().values(), whole.state.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_of_a_network_that_declares_nothing_the_channels_of_a_chain_are_multiples_too():
    torch.manual_seed(0)
    chain = [nn.Conv2d(1, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 9, 3), nn.BatchNorm2d(9), nn.ReLU()]
    network = nn.Sequential(*chain, nn.Flatten(), nn.Linear(144, 10)).to(F64).eval()
    for norm in norms(network):
        nn.init.uniform_(norm.weight, 0.2, 0.9)
        nn.init.uniform_(norm.bias, 0.1, 0.3)
    xi = torch.zeros(19, dtype=F64)
    xi[[0, 1, 2, 3, 4, 10]] = 1.0
    found = left(problem_with(network, round_to=MULTIPLE), xi)
    x = small_digits(20).train.x[:4]
    smaller_one, words = smaller(found, x)
    assert words is None
    assert (smaller_one[0].weight.shape[0], smaller_one[3].weight.shape[0]) == (8, 4)
    with torch.no_grad():
        torch.testing.assert_close(smaller_one.eval()(x), found.eval()(x), rtol=1e-10, atol=1e-10)


# Runs.

DATA = ["dataset.train_size=100", "dataset.test_size=50"]
SGD = [*DATA, "solver=sgd", "solver.num_steps=0"]


def note(folder: Path) -> list[str]:
    """What the compression table says of rounding."""
    notes = next(table.notes for table in run_tables(read_run(folder)) if table.name == "compression")
    return [words for words in notes if words.startswith("round_to")]


@pytest.mark.usefixtures("apart")
def test_a_run_of_low_rank_has_multiples_in_its_file_and_says_what_that_added(tmp_path):
    words = [*SGD, "model.widths=[40,30]", "compression=low_rank", "compression.rank=5"]
    plain, ends = run(tmp_path / "plain", *words), run(tmp_path / "run", *words, "round_to=8")
    added = 3 * (64 + 40) + 3 * (40 + 30)
    assert (plain["round_to"], ends["round_to"]) == (1, 8)
    assert ends["round_to/params"] == plain["params/compressed"] == ends["params/compressed"] - added
    assert not any(key.startswith("round_to/") for key in plain)
    assert note(tmp_path / "plain") == []
    shares = [f"{ends[key] / ends['params/dense']:.4g}" for key in ("round_to/params", "params/compressed")]
    said = f"round_to = 8: rank 5 → 8 (fc1.weight, fc2.weight); parameters {shares[0]} → {shares[1]} of dense."
    assert note(tmp_path / "run") == [said]
    assert [task["theta"] for task in ends["tasks"]] == ["U 40x8, V 8x64", "U 30x8, V 8x40"]


@pytest.mark.usefixtures("apart")
def test_a_target_of_a_run_is_met_with_multiples(tmp_path):
    words = [*SGD, "model.widths=[80,60]", "round_to=8", "target.ratio=0.6"]
    ends = run(tmp_path / "ranks", *words, "compression=low_rank")
    assert ends["ratio/params"] == ends["target/achieved"] <= 0.6
    assert ends["target/setting"] == "rank=16"
    assert note(tmp_path / "ranks") == ["round_to = 8: there was nothing to round."]
    ends = run(tmp_path / "rows", *words, "compression=group_l0")
    assert ends["ratio/params"] <= 0.6
    assert [change["what"] for change in ends["round_to/changed"]] == ["rows"] * len(ends["round_to/changed"])
    assert all(change["after"][0] % 8 == 0 or change["after"][0] == 60 for change in ends["round_to/changed"])


@pytest.mark.usefixtures("apart")
def test_learned_ranks_are_multiples_and_what_that_changes_is_left_open(tmp_path):
    words = [*DATA, "solver=sgd", "solver.num_steps=1", "model.widths=[40,30]", "round_to=8"]
    ends = run(tmp_path, *words, "compression=rank_selection", "compression.alpha=3e-3")
    assert ends["round_to/params"] is None
    assert note(tmp_path) == ["round_to = 8: chosen among the multiples (fc1.weight, fc2.weight)."]
    for task in ends["tasks"]:
        assert int(task["theta"].split()[1].split("x")[1].rstrip(",")) % 8 == 0


RESNET = ["model=resnet20", "model.depth=8", "model.width=0.5", "eval_every=2"]
FINE_TUNED = ("num_steps=2", "fine_tune=1", "percent=0.6")
VGG = ["model=vgg19", "model.layers=[1,1,1]", "model.width=0.4", "eval_every=2"]
SLIMMED = {
    "slimming": [*VGG, "solver=slimming", "solver.num_steps=1", "target.ratio=0.5"],
    "network_slimming": [*RESNET, "solver=network_slimming", *(f"solver.{word}" for word in FINE_TUNED)],
}


@pytest.mark.parametrize("solver", SLIMMED)
@pytest.mark.usefixtures("apart")
def test_a_slimmed_network_is_stored_with_multiples(solver, tmp_path):
    ends = run(tmp_path, *SLIMMED[solver], *DATA, "solver.batch_size=50", "round_to=8")
    assert solver == "network_slimming" or ends["ratio/params"] <= 0.5
    found = [layer["kept"] for layer in ends["channels"]]
    assert all(count % 8 == 0 for count in found)
    assert sum(found) == ends["channels/kept"] == rows(tmp_path)[-1]["channels/kept"] < ends["channels/total"]
    network = load(tmp_path / "model")
    assert counts(network) == [count for count in found if count]
    assert sum(w.numel() for w in network.parameters()) == ends["params/compressed"]
    before = [ends["round_to/params"], ends["round_to/channels"]]
    assert solver == "slimming" or before < [ends["params/compressed"], ends["channels/kept"]]
    assert solver == "network_slimming" or before[0] <= 0.5 * ends["params/dense"]
    shares = [f"{ends[key] / ends['params/dense']:.4g}" for key in ("round_to/params", "params/compressed")]
    channels = f"channels {before[1]} → {ends['channels/kept']}"
    assert note(tmp_path) == [f"round_to = 8: {channels}; parameters {shares[0]} → {shares[1]} of dense."]


@pytest.mark.usefixtures("apart")
def test_bad_values_are_one_sentence_and_exit_code_2(tmp_path):
    for k, (words, said) in enumerate((
        (["round_to=0"], "round_to: must be at least 1, found 0"),
        (["compression=low_rank", "+compression.round_to=0"], "compression: round_to must be at least 1, found 0"),
    )):  # fmt: skip
        with case(words=words):
            failure = refusal(tmp_path / str(k), *words)
            assert said in str(failure)
            assert failure.exit_code == 2
    with pytest.raises(ValidationError, match="round_to"):
        configuration("round_to=many")
