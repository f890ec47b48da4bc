"""The compact artefact of networks of all kinds: ties, buffers, types, and a user's own networks and compressions."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from artefact_cases import F32, about, assert_close, assert_same_state, noise, projected, refusal, saved
from cases import case
from problems import ARCHITECTURE, F64, mlp, problem, small_digits
from runs import resign
from safetensors.torch import load_file
from torch import Tensor, nn

from nncompress import metrics
from nncompress.artefact.model import load, open_artefact
from nncompress.artefact.save import save
from nncompress.compressions.base import Compression
from nncompress.compressions.decomposition.low_rank import low_rank
from nncompress.compressions.plan import Plan, Task, none
from nncompress.compressions.quantization.codebook import codebook
from nncompress.compressions.sparsity.magnitude import l0
from nncompress.compressions.views import AsMatrix, AsVector
from nncompress.errors import CheckpointError
from nncompress.problem import Dataset


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks and compressions that are defined here may be named by files."""
    monkeypatch.setenv("NNCOMPRESS_ALLOW", "nets_of_a_user, test_artefact_networks")


NETS = '''
import torch
from torch import nn


class Tied(nn.Module):
    """A decoder that shares the encoder's weight, buffers of whole and of real numbers, one of them of two modules."""

    def __init__(self, num_classes):
        super().__init__()
        self.embed, self.hidden, self.decode = nn.Linear(6, 5), nn.Linear(5, 5, bias=False), nn.Linear(6, 5)
        self.again = self.hidden
        self.decode.weight = self.embed.weight
        self.out = nn.Linear(5, num_classes)
        table = torch.zeros(5)
        self.register_buffer("order", torch.arange(5))
        self.register_buffer("mask", torch.ones(5, dtype=torch.bool))
        self.register_buffer("short", torch.ones(3, dtype=torch.float64))
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("scratch", torch.zeros(9), persistent=False)
        for module in (self.embed, self.out):
            module.register_buffer("table", table)
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x):
        y = self.embed(x) + self.decode(x) * self.mask
        y = self.again(self.hidden(y)[:, self.order]).relu() + self.embed.table + self.out.table
        return self.out(y) * self.scale + self.short.sum()


class Half(nn.Linear):
    """A layer that is made in half precision."""

    def __init__(self, num_classes):
        super().__init__(6, num_classes, dtype=torch.float16)


def single(num_classes):
    return nn.Linear(6, num_classes)


def strict(num_classes):
    assert num_classes == 0, "never"


def number():
    return 3
'''


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A user's module of networks."""
    (tmp_path / "nets_of_a_user.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    return __import__("nets_of_a_user")


def changed(network: nn.Module) -> nn.Module:
    """With other numbers in its buffers than its constructor puts there."""
    with torch.no_grad():
        network.order.copy_(torch.tensor([3, 1, 0, 4, 2]))
        network.mask[2] = False
        network.short.copy_(torch.tensor([0.1, 0.2, 0.3]))
        network.embed.table.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]))
        network.out.table.copy_(network.embed.table)
        network.scale.fill_(1.3)
    return network


def test_ties_buffers_of_all_types_and_parameters_of_64_bits_come_back(nets, tmp_path):
    for recipe in (none, low_rank, l0, codebook):
        for dtype in (F32, F64):
            with case(recipe=recipe.__name__, dtype=dtype):
                check_ties(nets, tmp_path / f"{recipe.__name__}{dtype}", recipe, dtype)


def check_ties(nets: Any, folder: Path, recipe: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = changed(nets.Tied(3).to(dtype))
    settings = {} if recipe is none else {"layers": "all", **({"rank": 2} if recipe is low_rank else {})}
    p = problem(noise(6, dtype=dtype), network, recipe, **settings)
    deployed = saved(folder, p, {"_target_": "nets_of_a_user.Tied"})
    for compact in (False, True):
        loaded = load(folder, compact=compact)
        assert_close(loaded(p.data.test.x.float()), deployed(p.data.test.x.float()))
        assert loaded.again is loaded.hidden
        assert loaded.decode.weight is loaded.embed.weight
    loaded = load(folder)
    assert {n: t.dtype for n, t in loaded.state_dict().items()} == {
        n: t.dtype for n, t in deployed.state_dict().items()
    }
    if dtype == F32:
        assert_same_state(loaded, deployed)
        assert torch.equal(loaded(p.data.test.x), deployed(p.data.test.x))
    bits = metrics.file_bits(p, projected(p).theta)["compressed"]
    streams = load_file(folder / "model.safetensors").values()
    assert sum(t.nbytes for t in streams) <= math.ceil(bits / 8) + 8 * len(p.plan.tasks) + 4 * 5


def test_buffers_that_a_gpu_or_another_type_has_parted_come_back(nets, tmp_path):
    """Module.to gives each module its own copy of a buffer that two share."""
    network = changed(nets.Tied(3))
    network.embed.table = network.embed.table.clone()
    p = problem(noise(6), network)
    deployed = saved(tmp_path / "model", p, {"_target_": "nets_of_a_user.Tied"})
    assert_same_state(load(tmp_path), deployed)


def test_a_network_that_is_a_single_layer(nets, tmp_path):
    for recipe, settings in ((none, {}), (low_rank, {"rank": 2, "layers": "all"})):
        with case(recipe=recipe.__name__):
            folder = tmp_path / recipe.__name__
            p = problem(noise(6), nets.single(3), recipe, **settings)
            deployed = saved(folder, p, {"_target_": "nets_of_a_user.single"})
            assert_same_state(load(folder), deployed)
            assert_close(load(folder, compact=True)(p.data.test.x), deployed(p.data.test.x))


def test_a_network_made_in_half_precision_is_loaded_in_float32(nets, tmp_path):
    p = problem(noise(6), nets.Half(3).float())
    deployed = saved(tmp_path / "model", p, {"_target_": "nets_of_a_user.Half"})
    assert_same_state(load(tmp_path), deployed)
    p = problem(noise(6, dtype=torch.float16), nets.Half(3))
    deployed = saved(tmp_path / "half", p, {"_target_": "nets_of_a_user.Half"})
    assert_same_state(load(tmp_path / "half"), deployed)


def test_a_module_that_is_missing_is_named_with_what_to_do(nets, tmp_path, monkeypatch):
    saved(tmp_path / "model", problem(noise(6), nets.Tied(3)), {"_target_": "nets_of_a_user.Tied"})
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    del sys.modules["nets_of_a_user"]
    said = refusal(tmp_path)
    assert "nets_of_a_user.Tied" in said
    assert "PYTHONPATH" in said


def test_a_constructor_that_fails_is_told_in_one_sentence(nets, tmp_path):
    saved(tmp_path / "model", problem(noise(6), nets.Tied(3)), {"_target_": "nets_of_a_user.Tied"})
    resign(tmp_path / "model", lambda about: about["architecture"].update({"_target_": "nets_of_a_user.strict"}))
    assert "never" in refusal(tmp_path)
    resign(tmp_path / "model", lambda about: about["architecture"].update({"_target_": "nets_of_a_user.number"}))
    assert "found int" in refusal(tmp_path)


def test_what_a_file_has_to_hold_is_counted_by_hand(nets):
    data = noise(6)
    network = nets.Tied(3)
    real = 6 * 5 + 5 + 25 + 5 + (15 + 3) + 1  # embed, hidden, the bias of decode, out, scale
    buffers = 32 * (3 + 5) + 64 * 5 + 8 * 5  # short, table; order; mask
    assert metrics.file_bits(problem(data, network), ()) == dict.fromkeys(("dense", "compressed"), 32 * real + buffers)
    p = problem(data, network, codebook, K=4, layers=["hidden"])
    compressed = 32 * (real - 25) + 25 * 2 + 32 * 4 + buffers
    assert metrics.file_bits(p, projected(p).theta) == {"dense": 32 * real + buffers, "compressed": compressed}


# A user's own compression.


class Shifted(NamedTuple):
    """Any kind of part."""

    shift: Tensor
    signs: Tensor
    size: float
    shape: tuple[int, ...]
    word: str
    nothing: None
    flags: Tensor


@dataclass(frozen=True)
class Mine(Compression[Shifted]):
    """Signs times a number, plus a shift."""

    exact: ClassVar[bool] = False

    largest: float = math.inf
    count: Any = 3
    nested: tuple[Any, ...] = ((1, 2), "word", None)

    def project(self, w: Tensor, mu: float, start: Shifted | None) -> Shifted:
        size, shift = min(float(w.abs().mean()), self.largest), w.mean().reshape(1)
        return Shifted(shift, w.sign().to(torch.int8), size, tuple(w.shape), "word", None, w > 0)

    def decompress(self, theta: Shifted) -> Tensor:
        return (theta.signs.to(theta.shift.dtype) * theta.size + theta.shift).reshape(theta.shape)

    def bits(self, theta: Shifted) -> int:
        return 64 + 8 * theta.signs.numel()

    def num_params(self, theta: Shifted) -> int:
        return theta.signs.numel() + 2


class Outer:
    """Holds a class."""

    @dataclass(frozen=True)
    class Inner(Mine):
        """A class in a class."""


def mine(weights: dict[str, Tensor], compression: Compression[Any]) -> Plan:
    return Plan.of([Task(["fc1"], AsMatrix(), compression), Task(["fc2", "fc3"], AsVector(), compression)], weights)


OWN = [Mine(), Mine(count=np.int64(4)), Mine(-math.inf), Outer.Inner(0.5)]


def test_a_users_own_compression_comes_back(tmp_path):
    data = small_digits(20, F32)
    for k, compression in enumerate(OWN):
        with case(compression=compression):
            p, folder = problem(data, mlp(data), mine, compression=compression), tmp_path / str(k)
            deployed, theta = saved(folder, p), projected(p).theta[0]
            loaded, found = load(folder), open_artefact(folder)
            if math.isfinite(theta.size):
                assert_same_state(loaded, deployed)
            assert found.plan == p.plan
            bare = {"shift": 0, "signs": 0, "flags": 0}
            assert found.theta[0]._replace(**bare) == theta._replace(**bare)
            assert found.theta[0].flags.dtype == torch.bool
            if compression.largest > 0:
                assert_close(load(folder, compact=True)(data.test.x), loaded(data.test.x))


def test_what_no_file_can_hold_is_refused_when_it_is_written(tmp_path):
    data = small_digits(20, F32)
    p = problem(data, mlp(data), mine, compression=Mine(count=torch.float32))
    with pytest.raises(CheckpointError, match=r"found torch.float32, a dtype"):
        saved(tmp_path, p)

    @dataclass(frozen=True)
    class Local(Mine):
        """No other process has it."""

    p = problem(data, mlp(data), mine, compression=Local())
    with pytest.raises(CheckpointError, match=r"Local.*move it to a module"):
        saved(tmp_path, p)
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_and_infinite_ones_are_written(tmp_path):
    data = noise(6)
    data = Dataset(data.train, data.test, np.int64(3), "noise", classes=(np.str_("a"), np.str_("b"), np.str_("c")))
    p = problem(data, nn.Sequential(nn.Linear(6, 3)))
    node = ARCHITECTURE | {"widths": []}
    save(tmp_path, mlp(data, ()), p.plan, (), about(data, node, {"limit": math.inf}))
    found = open_artefact(tmp_path).description
    assert (found["num_classes"], found["classes"], found["data"]) == (3, ["a", "b", "c"], {"limit": math.inf})
