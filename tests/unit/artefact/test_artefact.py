"""The compact artefact: what is loaded is what was deployed, in files as small as counted."""

import gzip
import json
import os
import subprocess
import sys

import pytest
import torch
import zstandard
from artefact_cases import F32, assert_close, assert_same_state, check_size, noise, projected, saved
from cases import case
from problems import F64, OPTIONS, problem, problem_of
from torch import nn

from nncompress import metrics
from nncompress.artefact.files import stored_bytes
from nncompress.artefact.model import load, open_artefact
from nncompress.compressions.quantization.codebook import codebook
from nncompress.config.build import build
from nncompress.errors import ConfigError
from nncompress.surgery.compact_layers import CompactLayer

# What is loaded.


@pytest.mark.parametrize("option", OPTIONS)
def test_the_loaded_network_is_the_deployed_one_bit_for_bit_in_files_as_small_as_counted(option, tmp_path):
    p = problem_of(option, F32)
    observation = projected(p)
    deployed = saved(tmp_path, p, observation=observation)
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
    check_size(tmp_path, p, observation)


def test_numbers_of_64_bits_are_loaded_rounded_to_32(tmp_path):
    for option in ("additive", "codebook", "low_precision", "low_rank", "none", "uniform"):
        with case(option=option):
            p = problem_of(option, F64)
            deployed = saved(tmp_path / option, p)
            x = p.data.test.x.float()
            loaded = load(tmp_path / option)
            assert {tensor.dtype for tensor in loaded.state_dict().values()} == {F32}
            assert_close(loaded(x), deployed(x), 1e-5)
            assert_close(load(tmp_path / option, compact=True)(x), deployed(x), 1e-5)


RESNET20 = {"_target_": "nncompress.models.PreResNet", "depth": 20, "bottleneck": False}


def test_a_deep_network_of_one_bit_a_weight_takes_little_more_than_that(tmp_path):
    data = noise(3, 32, 32)
    torch.manual_seed(0)
    network = build(RESNET20, input_shape=(3, 32, 32), num_classes=3)
    p = problem(data, network, codebook, K=2, layers="all")
    observation = projected(p)
    deployed = saved(tmp_path, p, RESNET20, observation)
    assert_same_state(load(tmp_path), deployed)
    check_size(tmp_path, p, observation)
    assert stored_bytes(tmp_path)["bytes/disk"] < metrics.file_bits(p, observation.theta)["dense"] / 8 / 20
    assert len(json.loads((tmp_path / "model.json").read_text())["kinds"]) == 1


def test_what_loading_needs_is_there_in_a_fresh_process_in_another_folder(tmp_path):
    p = problem_of("additive", F32)
    deployed = saved(tmp_path / "run" / "model", p)
    x = p.data.test.x[:5]
    torch.save(x, tmp_path / "x.pt")
    script = """
        import sys, pickle, random
        import numpy, torch, torch._dynamo  # which reads shapes, and defines a class below Unpickler
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


def test_nothing_of_the_processs_defaults_reaches_the_loaded_network(tmp_path):
    for option in ("low_rank", "binary", "tucker"):
        with case(option=option):
            p, folder = problem_of(option, F32), tmp_path / option
            deployed = saved(folder, p)
            torch.set_default_dtype(F64)
            torch.set_default_device("meta")  # as any but the CPU
            try:
                loaded, compact, dense = load(folder), load(folder, compact=True), open_artefact(folder).dense()
            finally:
                torch.set_default_dtype(F32)
                torch.set_default_device(None)
            assert_same_state(loaded, deployed)
            for network in (compact, dense):
                tensors = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
                assert {(tensor.dtype, tensor.device.type) for tensor in tensors} == {(F32, "cpu")}
            assert_close(compact(p.data.test.x), deployed(p.data.test.x))


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


def test_ways_are_passed_on_and_a_wrong_one_is_the_callers_error(tmp_path):
    saved(tmp_path, problem_of("low_rank", F32))
    network = load(tmp_path, compact=True, ways=("reconstruct",))
    assert {m.ways for m in network.modules() if isinstance(m, CompactLayer)} == {("reconstruct",)}
    with pytest.raises(ConfigError, match="ways must be some of chain, reconstruct, cached, found slow"):
        load(tmp_path, compact=True, ways=("slow",))


def test_of_a_network_without_channels_what_is_left_and_a_bit_for_each_is_counted():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    left = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    p = problem(noise(1, 5, 5), network)
    dense = 32 * (4 * 9 + 4 + 8 + 8) + 64  # the running statistics too, and how many batches there were
    compressed = 32 * (3 * 9 + 3 + 6 + 6) + 64 + 4
    assert metrics.file_bits(p, (), left) == {"dense": dense, "compressed": compressed}
