"""The compact artefact: what is loaded is what was deployed, in files as small as counted; bad files are named."""

import gzip
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
import zstandard
from problems import ARCHITECTURE, F64, OPTIONS, mlp, problem, problem_of, randn, small_digits
from runs import resign
from test_channels import stored
from torch import Tensor, nn

from nncompress import config, metrics
from nncompress.compact import artefact
from nncompress.compact.artefact import load, open_artefact, save_compact, stored_bytes
from nncompress.compact.layers import CompactLayer
from nncompress.compressions.base import Compression
from nncompress.compressions.codebook import Codebook, codebook
from nncompress.compressions.low_rank import low_rank
from nncompress.compressions.plan import Plan, Task, none
from nncompress.compressions.sparsity import l0
from nncompress.compressions.tensor_train import tt
from nncompress.compressions.views import AsMatrix, AsVector
from nncompress.errors import CheckpointError, ConfigError
from nncompress.problem import Dataset, Problem, Split, with_weights
from nncompress.report.stored import REST, stored_numbers
from nncompress.solvers.base import Observation

F32 = torch.float32


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks and compressions that are defined here may be named by files."""
    monkeypatch.setenv("NNCOMPRESS_ALLOW", "nets_of_a_user, test_artefact")


def projected(p: Problem) -> Observation:
    """The network, and Θ = Π(w)."""
    return Observation(p.model, p.plan.compress(p.plan.select(dict(p.model.named_parameters())).detach()), {})


def saved(folder: Path, p: Problem, architecture: Any = ARCHITECTURE) -> nn.Module:
    """The deployed network, as it was written to a folder."""
    observation = projected(p)
    save_compact(folder, p, observation, architecture)
    return with_weights(observation.model, p.plan.decompress(observation.theta)).float()


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    """The same names, types and numbers, bit for bit."""
    a_state, b_state = a.state_dict(), b.state_dict()
    assert a_state.keys() == b_state.keys()
    for name, tensor in a_state.items():
        assert tensor.dtype == b_state[name].dtype, name
        assert torch.equal(tensor, b_state[name]), name


def noise(*shape: int, count: int = 4, dtype: torch.dtype = F32) -> Dataset:
    split = Split(randn(count, *shape, dtype=dtype), torch.arange(count) % 3)
    return Dataset(split, split, 3, "noise")


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    found, expected = found.detach(), expected.detach()
    assert float((found - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


# What is loaded.


@pytest.mark.parametrize("option", OPTIONS)
def test_the_loaded_network_is_the_deployed_one_bit_for_bit_in_files_as_small_as_counted(option, tmp_path):
    p = problem_of(option, F32)
    deployed = saved(tmp_path, p)
    x = p.data.test.x
    loaded = load(tmp_path)
    assert_same_state(loaded, deployed)
    assert torch.equal(loaded(x), deployed(x))
    assert not any(module.training for module in loaded.modules())
    compact = load(tmp_path, compact=True)
    assert_close(compact(x), deployed(x))
    assert not any(parameter.requires_grad for parameter in compact.parameters())
    assert not any(module.training for module in compact.modules())
    replaced = [module for module in compact.modules() if isinstance(module, CompactLayer)]
    assert len(replaced) == sum(len(task.params) == 1 for task in p.plan.tasks)
    check_size(tmp_path, p)


def leaves(value: Any, field: str) -> Iterator[tuple[str, Any]]:
    """Every tensor and value in Θ with the fields it stands in."""
    fields = getattr(value, "_fields", None)
    if fields is None and not isinstance(value, tuple | list):
        yield field, value
        return
    items = zip(fields, value, strict=True) if fields is not None else enumerate(value)
    for key, item in items:
        yield from leaves(item, f"{field} {key}" if field.endswith("t") else f"{field}.{key}")


@pytest.mark.parametrize("option", OPTIONS)
def test_the_numbers_of_each_tensor_are_found_without_torch(option, tmp_path):
    p = problem_of(option, F32)
    saved(tmp_path, p)
    expected = {
        name: tensor.numpy()
        for task, theta in zip(p.plan.tasks, projected(p).theta, strict=True)
        for name, tensor in leaves(theta, ", ".join(task.params))
        if isinstance(tensor, Tensor) and tensor.dtype in (F32, F64, torch.float16)
    }
    found = stored_numbers(tmp_path)
    expected = {name: value for name, value in expected.items() if value.size > 1 and np.ptp(value) > 0}
    assert found.keys() - {REST} == expected.keys()
    assert all(np.array_equal(found[name], value.astype(found[name].dtype)) for name, value in expected.items())


def check_size(folder: Path, p: Problem, network: nn.Module | None = None, theta: Any = None) -> None:
    bits = metrics.file_bits(p, projected(p).theta if theta is None else theta, network)["compressed"]
    assert bits / 8 <= sum((folder / name).stat().st_size for name in os.listdir(folder)) <= 1.02 * bits / 8 + 4096


@pytest.mark.parametrize("option", ["additive", "codebook", "low_precision", "low_rank", "none", "uniform"])
def test_numbers_of_64_bits_are_loaded_rounded_to_32(option, tmp_path):
    p = problem_of(option, F64)
    deployed = saved(tmp_path, p)
    x = p.data.test.x.float()
    loaded = load(tmp_path)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {F32}
    assert_close(loaded(x), deployed(x), 1e-5)
    assert_close(load(tmp_path, compact=True)(x), deployed(x), 1e-5)


RESNET20 = {"_target_": "nncompress.models.preresnet.PreResNet", "depth": 20, "bottleneck": False}


def test_a_deep_network_of_one_bit_a_weight_takes_little_more_than_that(tmp_path):
    data = noise(3, 32, 32)
    torch.manual_seed(0)
    network = config.build(RESNET20, input_shape=(3, 32, 32), num_classes=3)
    p = problem(data, network, codebook, K=2, layers="all")
    deployed = saved(tmp_path, p, RESNET20)
    assert_same_state(load(tmp_path), deployed)
    check_size(tmp_path, p)
    assert stored_bytes(tmp_path)["bytes/disk"] < metrics.file_bits(p, projected(p).theta)["dense"] / 8 / 20
    assert len(json.loads((tmp_path / "model.json").read_text())["kinds"]) == 1


@pytest.mark.parametrize("name", ["preresnet", "vgg", "densenet"])
def test_a_network_without_its_dead_channels_takes_what_is_left(name, tmp_path):
    found, x = stored(tmp_path, name)
    assert_same_state(load(tmp_path), found)
    node = json.loads((tmp_path / "model.json").read_text())["architecture"]
    dense = config.build(node, input_shape=(1, 8, 8), num_classes=5)
    check_size(tmp_path, problem(Dataset(Split(x, x), Split(x, x), 5, "noise"), dense), found, ())
    assert_close(load(tmp_path, compact=True)(x), found(x))


def test_what_loading_needs_is_there_in_a_fresh_process_in_another_folder(tmp_path):
    p = problem_of("additive", F32)
    deployed = saved(tmp_path / "run" / "model", p)
    x = p.data.test.x[:5]
    torch.save(x, tmp_path / "x.pt")
    script = """
        import sys, pickle, random
        import numpy, torch
        import nncompress
        x = torch.load("x.pt")
        def refuse(*arguments, **keywords):
            raise AssertionError("unpickled")
        torch.load = pickle.load = pickle.loads = pickle.Unpickler = refuse
        states = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()
        network = nncompress.load(sys.argv[1])
        compact = nncompress.load(sys.argv[1], compact=True)
        assert torch.equal(states[0], torch.get_rng_state())
        assert states[1:] == (numpy.random.get_state()[1].tolist(), random.getstate())
        assert not [name for name in sys.modules if name.startswith("nncompress.solvers")]
        assert not [name for name in sys.modules if name.startswith(("nncompress.data", "nncompress.report"))]
        assert torch.is_grad_enabled() and not network.training
        print(network(x).tolist() , compact(x).tolist(), sep="\\n")
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(line[8:] for line in script.splitlines()), tmp_path / "run"],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    network, compact = (torch.tensor(json.loads(line)) for line in done.stdout.splitlines())
    assert torch.equal(network, deployed(x))
    assert_close(compact, deployed(x))


def test_loading_leaves_the_generator_alone(tmp_path):
    saved(tmp_path, problem_of("low_rank", F32))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    load(tmp_path)
    load(tmp_path, compact=True)
    open_artefact(tmp_path).dense()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("option", ["low_rank", "binary", "tucker"])
def test_nothing_of_the_processs_defaults_reaches_the_loaded_network(option, tmp_path):
    deployed = saved(tmp_path, problem_of(option, F32))
    torch.set_default_dtype(F64)
    torch.set_default_device("meta")  # as any but the CPU
    try:
        loaded, compact, dense = load(tmp_path), load(tmp_path, compact=True), open_artefact(tmp_path).dense()
    finally:
        torch.set_default_dtype(F32)
        torch.set_default_device(None)
    assert_same_state(loaded, deployed)
    for network in (compact, dense):
        tensors = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
        assert {(tensor.dtype, tensor.device.type) for tensor in tensors} == {(F32, "cpu")}
    assert_close(compact(problem_of(option, F32).data.test.x), deployed(problem_of(option, F32).data.test.x))


def test_an_artefact_tells_what_is_in_it(tmp_path):
    p = problem_of("codebook", F32)
    deployed = saved(tmp_path / "model", p)
    found = open_artefact(tmp_path)
    assert found.folder == tmp_path / "model"
    assert found.plan == p.plan
    assert found.plan.bits(found.theta) == p.plan.bits(projected(p).theta)
    assert found.weights.keys() == {name for name, _ in p.model.named_parameters()} - set(p.plan.shapes)
    assert found.description["input_shape"] == [1, 8, 8]
    assert (found.description["num_classes"], found.description["output_shape"]) == (10, [10])
    assert found.description["dataset"] == p.data.name
    for name, weight in found.plan.decompress(found.theta).items():
        assert torch.equal(weight, deployed.get_parameter(name))
    dense = found.dense()
    assert [(n, t.shape) for n, t in dense.state_dict().items()] == [
        (n, t.shape) for n, t in p.model.state_dict().items()
    ]
    first, second = found.network(), found.network()
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert_same_state(second, deployed)
    assert_same_state(found.network(), deployed)


def test_the_same_network_gives_the_same_files(tmp_path):
    for name in "ab":
        saved(tmp_path / name, problem_of("mixed", F32))
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    saved(tmp_path / "a", problem_of("l0", F32))  # in place of another
    assert sorted(os.listdir(tmp_path / "a")) == ["model.json", "model.safetensors"]
    load(tmp_path / "a")


def test_bytes_are_those_of_the_files_and_of_gzip_and_zstd(tmp_path):
    saved(tmp_path / "model", problem_of("codebook", F32))
    content = b"".join((tmp_path / "model" / name).read_bytes() for name in ("model.safetensors", "model.json"))
    found = stored_bytes(tmp_path)
    assert found == stored_bytes(tmp_path / "model")
    assert found["bytes/disk"] == len(content)
    assert found["bytes/gzip"] == pytest.approx(len(gzip.compress(content, 6)), abs=32)
    assert found["bytes/zstd"] == pytest.approx(len(zstandard.compress(content)), abs=32)


def test_plans_are_passed_on_and_a_wrong_one_is_the_callers_error(tmp_path):
    saved(tmp_path, problem_of("low_rank", F32))
    network = load(tmp_path, compact=True, plans=("reconstruct",))
    assert {m.plans for m in network.modules() if isinstance(m, CompactLayer)} == {("reconstruct",)}
    with pytest.raises(ConfigError, match="plans must be some of chain, reconstruct, cached, found slow"):
        load(tmp_path, compact=True, plans=("slow",))


def test_what_a_file_has_to_hold_is_counted_by_hand(nets):
    data = noise(6)
    network = nets.Tied(3)
    real = 6 * 5 + 5 + 25 + 5 + (15 + 3) + 1  # embed, hidden, the bias of decode, out, scale
    buffers = 32 * (3 + 5) + 64 * 5 + 8 * 5  # short, table; order; mask
    assert metrics.file_bits(problem(data, network), ()) == dict.fromkeys(("dense", "compressed"), 32 * real + buffers)
    p = problem(data, network, codebook, K=4, layers=["hidden"])
    compressed = 32 * (real - 25) + 25 * 2 + 32 * 4 + buffers
    assert metrics.file_bits(p, projected(p).theta) == {"dense": 32 * real + buffers, "compressed": compressed}


def test_of_a_network_without_channels_what_is_left_and_a_bit_for_each_is_counted():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    left = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    p = problem(noise(1, 5, 5), network)
    dense = 32 * (4 * 9 + 4 + 8 + 8) + 64  # the running statistics too, and how many batches there were
    compressed = 32 * (3 * 9 + 3 + 6 + 6) + 64 + 4
    assert metrics.file_bits(p, (), left) == {"dense": dense, "compressed": compressed}


# Networks of all kinds.

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


@pytest.mark.parametrize("recipe", [none, low_rank, l0, codebook], ids=lambda recipe: recipe.__name__)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_ties_buffers_of_all_types_and_parameters_of_64_bits_come_back(recipe, dtype, nets, tmp_path):
    torch.manual_seed(0)
    network = changed(nets.Tied(3).to(dtype))
    settings = {} if recipe is none else {"layers": "all", **({"rank": 2} if recipe is low_rank else {})}
    p = problem(noise(6, dtype=dtype), network, recipe, **settings)
    deployed = saved(tmp_path / "model", p, {"_target_": "nets_of_a_user.Tied"})
    for compact in (False, True):
        loaded = load(tmp_path, compact=compact)
        assert_close(loaded(p.data.test.x.float()), deployed(p.data.test.x.float()))
        assert loaded.again is loaded.hidden
        assert loaded.decode.weight is loaded.embed.weight
    loaded = load(tmp_path)
    assert {n: t.dtype for n, t in loaded.state_dict().items()} == {
        n: t.dtype for n, t in deployed.state_dict().items()
    }
    if dtype == F32:
        assert_same_state(loaded, deployed)
        assert torch.equal(loaded(p.data.test.x), deployed(p.data.test.x))
    bits = metrics.file_bits(p, projected(p).theta)["compressed"]
    assert sum(t.nbytes for t in streams(tmp_path).values()) <= math.ceil(bits / 8) + 8 * len(p.plan.tasks) + 4 * 5


def streams(folder: Path) -> dict[str, Tensor]:
    return artefact.load_file(folder / "model" / "model.safetensors")


def test_buffers_that_a_gpu_or_another_type_has_parted_come_back(nets, tmp_path):
    """Module.to gives each module its own copy of a buffer that two share."""
    network = changed(nets.Tied(3))
    network.embed.table = network.embed.table.clone()
    p = problem(noise(6), network)
    deployed = saved(tmp_path / "model", p, {"_target_": "nets_of_a_user.Tied"})
    assert_same_state(load(tmp_path), deployed)


@pytest.mark.parametrize(("recipe", "settings"), [(none, {}), (low_rank, {"rank": 2, "layers": "all"})])
def test_a_network_that_is_a_single_layer(recipe, settings, nets, tmp_path):
    p = problem(noise(6), nets.single(3), recipe, **settings)
    deployed = saved(tmp_path / "model", p, {"_target_": "nets_of_a_user.single"})
    assert_same_state(load(tmp_path), deployed)
    assert_close(load(tmp_path, compact=True)(p.data.test.x), deployed(p.data.test.x))


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
    resign(tmp_path / "model", lambda about: about["architecture"].update({"_target_": "torch.nn.Parameter"}))
    assert "found Parameter" in refusal(tmp_path)


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


@pytest.mark.parametrize("compression", [Mine(), Mine(count=np.int64(4)), Mine(-math.inf), Outer.Inner(0.5)], ids=str)
def test_a_users_own_compression_comes_back(compression, tmp_path):
    data = small_digits(20, F32)
    p = problem(data, mlp(data), mine, compression=compression)
    deployed = saved(tmp_path, p)
    loaded = load(tmp_path)
    if math.isfinite(projected(p).theta[0].size):
        assert_same_state(loaded, deployed)
    found = open_artefact(tmp_path)
    assert found.plan == p.plan
    assert found.theta[0]._replace(shift=0, signs=0, flags=0) == projected(p).theta[0]._replace(
        shift=0, signs=0, flags=0
    )
    assert found.theta[0].flags.dtype == torch.bool
    assert_close(load(tmp_path, compact=True)(data.test.x), loaded(data.test.x)) if compression.largest > 0 else None


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
    save_compact(
        tmp_path,
        Problem(mlp(data, ()), data, p.plan),
        Observation(mlp(data, ()), (), {}),
        node,
        data={"limit": math.inf},
    )
    about = open_artefact(tmp_path).description
    assert (about["num_classes"], about["classes"], about["data"]) == (3, ["a", "b", "c"], {"limit": math.inf})


# Bad files.


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of two kinds of tasks, written once."""
    folder = tmp_path_factory.mktemp("good")
    data = small_digits(20, F32)
    p = problem(data, mlp(data, bias=True), both)
    saved(folder, p, ARCHITECTURE | {"bias": True})
    return folder


def both(weights: dict[str, Tensor]) -> Plan:
    tasks = [
        Task(["fc1"], AsMatrix(), Codebook(4)),
        *tt(weights, rank=2, layers=["fc2"]).tasks,
        *l0(weights, keep=0.2, layers=["fc3"]).tasks,
    ]
    return Plan.of(tasks, weights)


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(good, tmp_path / "copy")


def refusal(path: Path, **settings: Any) -> str:
    """The sentence, which names a file."""
    with pytest.raises((CheckpointError, ConfigError)) as refused:
        load(path, **settings)
    words = str(refused.value)
    assert str(path) in words
    assert "model.json" in words or "model.safetensors" in words
    assert "\n" not in words
    return words


def test_truncated_tensors_are_refused(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for left in (0, 4, 8, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:left])
        assert str(path) in refusal(folder)
    path.write_bytes(whole + b"x")
    refusal(folder)


def test_a_bit_anywhere_in_the_tensors_is_noticed(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for place in [*range(0, 400, 7), *range(400, len(whole), len(whole) // 40)]:
        for bit in (1, 128):
            damaged = bytearray(whole)
            damaged[place] ^= bit
            path.write_bytes(damaged)
            assert str(folder) in refusal(folder), (place, bit)


def test_a_bit_anywhere_in_the_description_is_noticed(folder):
    path = folder / "model.json"
    whole = path.read_bytes()
    for place in range(0, len(whole) - 1, 11):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert str(folder) in refusal(folder), place


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"K":4', '"K":5'),
        ('"relu"', '"tanh"'),
        ('"widths":[16,16]', '"widths":[16,17]'),
        ('"num_classes":10', '"num_classes":9'),
    ],
)
def test_an_edited_description_is_noticed(old, new, folder):
    path = folder / "model.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert "found another checksum" in refusal(folder)
    path.write_text(json.dumps(json.loads(text), indent=4))  # laid out otherwise, it says the same
    load(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a whole JSON file"),
        ("{", "a whole JSON file"),
        ("nothing", "a whole JSON file"),
        (b"\xff\xfe\x00", "a whole JSON file"),
        ("[]", "no format"),
        ("{}", "no format"),
        ("null", "no format"),
        ('"word"', "no format"),
        ('{"format": 99}', "format 99, this version reads format 3: take a newer nncompress"),
        ('{"format": 2}', "format 2, this version reads format 3: write it again"),
        ('{"format": "3"}', "has format 3, this version reads format 3"),
        ('{"format": 3}', "another checksum"),
    ],
)
def test_what_is_no_description_is_refused(text, said, folder):
    path = folder / "model.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert said in refusal(folder)


def test_both_files_are_needed(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "kept")
    assert str(folder / "model.safetensors") in refusal(folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        stored_bytes(folder)
    (tmp_path / "kept").rename(folder / "model.safetensors")
    (folder / "model.json").unlink()
    assert "neither model.json nor model/model.json" in refusal(folder)
    with pytest.raises(CheckpointError, match=r"model\.json"):
        stored_bytes(folder)


def test_a_path_without_a_network_is_told_what_is_there(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("nothing", "nothing/model"):
        with pytest.raises(CheckpointError, match=f"{tmp_path / place}: there is no such folder"):
            load(tmp_path / place)
    for place in ("", "file"):
        with pytest.raises(CheckpointError, match=r"neither model.json nor model/model.json is there"):
            load(str(tmp_path / place))


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ('{"status": "running"}', "this run is running"),
        ('{"status": "failed"}', "this run is failed"),
        ("{", "this run is unknown"),
        ("[]", "this run is unknown"),
        ("", "this run is unknown"),
    ],
)
def test_a_run_without_a_network_is_told_how_it_ended(status, said, tmp_path):
    (tmp_path / "status.json").write_text(status)
    with pytest.raises(CheckpointError) as refused:
        load(tmp_path)
    assert said in str(refused.value)
    assert f"train resume={tmp_path}" in str(refused.value)


def of_task(k: int, **entries: Any) -> Callable[[dict[str, Any]], object]:
    return lambda about: about["tasks"][k].update(entries)


def of_kind(k: int, *keys: str, to: Any) -> Callable[[dict[str, Any]], object]:
    def change(about: dict[str, Any]) -> None:
        place = about["kinds"][k]
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return change


def sizes_of(k: int, change: Callable[[list[Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda about: change(about["tasks"][k]["sizes"])


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "fewer sizes": sizes_of(0, lambda sizes: sizes.pop()),
    "no sizes": of_task(1, sizes=[]),
    "more sizes": sizes_of(1, lambda sizes: sizes.append([3, 3])),
    "sizes of another task": lambda about: of_task(0, sizes=about["tasks"][2]["sizes"])(about),
    "sizes that are no list": of_task(0, sizes=3),
    "a longer tensor": sizes_of(0, lambda sizes: sizes[1].__setitem__(0, 400)),
    "a shorter tensor": sizes_of(0, lambda sizes: sizes[1].__setitem__(1, 3)),
    "a negative size": sizes_of(0, lambda sizes: sizes[0].__setitem__(0, -16)),
    "a size that is a word": sizes_of(0, lambda sizes: sizes[0].__setitem__(0, "x")),
    "a width of 40": sizes_of(0, lambda sizes: sizes[0].__setitem__(2, 40)),
    "a smaller width": sizes_of(0, lambda sizes: sizes[0].__setitem__(2, 1)),
    "another shape of the same size": sizes_of(0, lambda sizes: sizes.__setitem__(1, [4, 1])),
    "another dense shape": sizes_of(2, lambda sizes: sizes.__setitem__(-1, [10, 17])),
    "a dense shape too small": sizes_of(2, lambda sizes: sizes.__setitem__(-1, [1, 3])),
    "a kind that is not there": of_task(0, kind=7),
    "a kind before the first": of_task(0, kind=-1),
    "the kind of another": of_task(0, kind=1),
    "a weight that is not there": of_task(0, params=["fc9.weight"]),
    "the weight of another task": of_task(0, params=["fc2.weight"]),
    "no weight": of_task(0, params=[]),
    "a bias": of_task(0, params=["fc1.bias"]),
    "fewer tasks": lambda about: about["tasks"].pop(),
    "no tasks": lambda about: about.pop("tasks"),
    "no kinds": lambda about: about.pop("kinds"),
    "tasks that are a word": lambda about: about.update(tasks="abc"),
    "an unknown compression": of_kind(0, "compression", "class", to="nncompress.compressions.codebook.Nothing"),
    "an unknown module": of_kind(0, "compression", "class", to="nowhere.L0"),
    "no module": of_kind(0, "compression", "class", to="L0"),
    "a function": of_kind(0, "compression", "class", to="os.system"),
    "a class that is no dataclass": of_kind(0, "compression", "class", to="subprocess.Popen"),
    "a dataclass that is no compression": of_kind(0, "compression", "class", to="nncompress.problem.Split"),
    "an abstract compression": of_kind(0, "compression", "class", to="nncompress.compressions.codes.Quantization"),
    "a class of Θ for a compression": of_kind(0, "compression", "class", to="nncompress.compressions.codes.Coded"),
    "another view": of_kind(0, "view", "class", to="nncompress.compressions.codebook.Codebook"),
    "an unknown class of Θ": of_kind(0, "theta", "class", to="nncompress.compressions.codes.Other"),
    "another class of Θ": of_kind(0, "theta", "class", to="nncompress.compressions.tensor_train.Cores"),
    "a class that is a number": of_kind(0, "theta", "class", to=3),
    "a field that is missing": lambda about: about["kinds"][0]["compression"].pop("K"),
    "a field that is unknown": of_kind(0, "compression", "rank", to=3),
    "a field of Θ that is missing": lambda about: about["kinds"][0]["theta"].pop("table"),
    "a form that is unknown": of_kind(0, "theta", "codes", to="bytes uint8"),
    "a form that is a number": of_kind(0, "theta", "codes", to=7),
    "a type that is unknown": of_kind(0, "theta", "table", to="plain float33"),
    "another type": of_kind(0, "theta", "table", to="plain float16"),
    "another network": lambda about: about["architecture"].update(widths=[16, 15]),
    "another activation": lambda about: about["architecture"].update(activation="sigmoid"),
    "a keyword too many": lambda about: about["architecture"].update(depth=3),
    "no network": lambda about: about.pop("architecture"),
    "a network that is a list": lambda about: about.update(architecture=[1, 2]),
    "no class": lambda about: about["architecture"].pop("_target_"),
    "another input": lambda about: about.update(input_shape=[65]),
    "no input": lambda about: about.pop("input_shape"),
    "other outputs": lambda about: about.update(num_classes=9),
    "channels": lambda about: about.update(channels={"shapes": {}}),
    "ties": lambda about: about.update(tied={"fc1.weight": "nothing"}),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_description_that_does_not_fit_the_tensors_is_refused(wrong, folder):
    resign(folder, WRONG[wrong])
    for compact in (False, True):
        words = refusal(folder, compact=compact)
        assert str(folder / "model.json") in words
        assert not words.endswith(": ")


def test_what_is_signed_again_without_a_change_is_loaded(folder):
    resign(folder, lambda about: None)
    assert not load(folder).training


@pytest.mark.parametrize(
    "extra", [{"more": torch.zeros(3)}, {"float32": torch.zeros(3)}, {"bits": torch.zeros(3, 3, dtype=torch.uint8)}]
)
def test_other_tensors_that_are_signed_are_refused(extra, folder):
    from safetensors.torch import load_file, save_file

    save_file(load_file(folder / "model.safetensors") | extra, folder / "model.safetensors")
    resign(folder, lambda about: None)
    assert str(folder / "model.json") in refusal(folder)
