"""Networks that NN-BCD accepts, each with its layers written out by hand, its objective by definition, the rate toy."""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import problems
import torch
from problems import F64, gaussian, problem, randn
from torch import Tensor, nn
from torch.nn import functional

from nncompress.compressions.decomposition.tensor_train import tt
from nncompress.compressions.sparsity.magnitude import l0
from nncompress.models.cnn import NNBCDCNN
from nncompress.models.mlp import MLP, ResidualMLP
from nncompress.problem import Dataset, Problem, Split
from nncompress.solvers.nnbcd.nnbcd import NNBCD
from nncompress.solvers.nnbcd.state import Blocks


class Part(NamedTuple):
    """Layer i: the module `name`, applied to before(V_{i-1}), and which V are added to U_i (inner) and V_i (outer)."""

    name: str
    before: Callable[[Tensor], Tensor] = lambda V: V
    slope: float = 0.0
    inner: int | None = None
    outer: int | None = None


class Case(NamedTuple):
    """A network for samples of `shape` and its layers; the last part is the output layer."""

    model: nn.Module
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    def linear(self, i: int, W: Tensor, b: Tensor | None, V: Tensor) -> Tensor:
        """What module i makes of V_{i-1}, as rows."""
        part = self.parts[i - 1]
        module = self.model.get_submodule(part.name)
        parameters = {"weight": W.view(module.weight.shape)} | ({} if b is None else {"bias": b})
        return rows(torch.func.functional_call(module, parameters, part.before(V)))


class Net(nn.Module):
    """A network of the given layers with a forward pass given as a function of itself and its input."""

    def __init__(self, run: Callable, **layers: nn.Module):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.run(self, x)


def linear_net(run: Callable, **widths: tuple[int, int]) -> Net:
    """A network of Linear layers of (inputs, outputs)."""
    return Net(run, **{name: nn.Linear(*sizes) for name, sizes in widths.items()})


def rows(x: Tensor) -> Tensor:
    """A layer's output as NN-BCD keeps it: the channel runs fastest."""
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).flatten(1)


def images(channels: int, height: int, width: int) -> Callable[[Tensor], Tensor]:
    """The inverse of `rows`."""
    return lambda V: V.view(-1, height, width, channels).permute(0, 3, 1, 2)


def mlp(**settings) -> Case:
    slope = 0.01 if settings.get("activation") == "leaky_relu" else 0.0
    model = MLP((12,), 3, widths=(8, 7), **settings)
    return Case(model, (12,), (Part("fc1", slope=slope), Part("fc2", slope=slope), Part("fc3")))


def cnn() -> Case:
    model = NNBCDCNN((2, 7, 6), 3, filters=3, widths=(6, 5))
    return Case(model, (2, 7, 6), (Part("conv1", lambda V: V.view(-1, 2, 7, 6)), Part("fc2"), Part("fc3"), Part("fc4")))


def pooled_cnn() -> Case:
    model = NNBCDCNN((1, 6, 5), 3, filters=3, stride=1, padding=1, pool=2, widths=(6,), bias=True)
    pool = lambda V: rows(functional.avg_pool2d(images(3, 6, 5)(V), 2))  # noqa: E731
    return Case(model, (1, 6, 5), (Part("conv1", lambda V: V.view(-1, 1, 6, 5)), Part("fc2", pool), Part("fc3")))


def two_convolutions() -> Case:
    convolutions = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=(1, 0), bias=False)
    model = nn.Sequential(
        convolutions[0], nn.LeakyReLU(0.1), nn.AvgPool2d(2), convolutions[1], nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    )
    pool = lambda V: functional.avg_pool2d(images(3, 6, 5)(V), 2)  # noqa: E731
    first = Part("0", lambda V: V.view(-1, 2, 6, 5), slope=0.1)
    return Case(model, (2, 6, 5), (first, Part("3", pool), Part("6", lambda V: images(4, 3, 1)(V).flatten(1))))


def residual() -> Case:
    model = ResidualMLP((12,), 3, width=7, blocks=3)
    blocks = [Part(f"blocks.{k}", outer=k + 1) for k in range(3)]
    return Case(model, (12,), (Part("stem"), *blocks, Part("head")))


def inner_skip() -> Case:
    def run(net, x):
        h = torch.relu(net.a(x))
        h = torch.relu(net.b(h) + h)
        return net.c(h)

    model = Net(run, a=nn.Linear(12, 7), b=nn.Linear(7, 7), c=nn.Linear(7, 3))
    return Case(model, (12,), (Part("a"), Part("b", inner=1), Part("c")))


def inner_skip_over_two() -> Case:
    def run(net, x):
        h = torch.relu(net.a(x))
        h = torch.relu(net.c(torch.relu(net.b(h))) + h)
        return net.d(h)

    model = Net(run, a=nn.Linear(12, 7), b=nn.Linear(7, 4), c=nn.Linear(4, 7), d=nn.Linear(7, 3))
    return Case(model, (12,), (Part("a"), Part("b"), Part("c", inner=1), Part("d")))


def skip_from_the_input() -> Case:
    def run(net, x):
        return net.c(torch.relu(net.b(torch.relu(net.a(x))) + x))

    model = Net(run, a=nn.Linear(12, 14), b=nn.Linear(14, 12), c=nn.Linear(12, 3))
    return Case(model, (12,), (Part("a"), Part("b", inner=0), Part("c")))


def crossing_skips() -> Case:
    def run(net, x):
        h1 = functional.leaky_relu(net.a(x) + x, 0.2)
        h2 = torch.relu(net.b(h1)) + h1
        h3 = torch.relu(net.c(h2) + h1) + h2
        return net.e(net.d(h3) + h1)

    hidden = {name: nn.Linear(6, 6, bias=name != "c") for name in "abcd"}
    parts = (
        Part("a", slope=0.2, inner=0),
        Part("b", outer=1),
        Part("c", inner=1, outer=2),
        Part("d", slope=1.0, inner=1),
    )
    return Case(Net(run, **hidden, e=nn.Linear(6, 3)), (6,), (*parts, Part("e")))


def residual_cnn() -> Case:
    def run(net, x):
        h = torch.relu(net.a(x))
        h = torch.relu(net.c(torch.relu(net.b(h))) + h)
        h = h + torch.relu(net.d(h))
        return net.e(functional.adaptive_avg_pool2d(h, 1).flatten(1))

    b, c, d = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 3, padding="same", bias=False)
    model = Net(run, a=nn.Conv2d(1, 2, 3, stride=2), b=b, c=c, d=d, e=nn.Linear(2, 3))
    maps, thin = images(2, 3, 2), images(3, 3, 2)
    first = Part("a", lambda V: V.view(-1, 1, 7, 5))
    hidden = Part("b", maps), Part("c", thin, inner=1), Part("d", maps, outer=3)
    return Case(model, (1, 7, 5), (first, *hidden, Part("e", lambda V: maps(V).mean(dim=(2, 3)))))


def sequence() -> Case:
    model = nn.Sequential(
        nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3)
    )
    parts = Part("0", lambda V: V.view(-1, 3, 4)), Part("2", lambda V: V.view(-1, 3, 5)), Part("5")
    return Case(model, (3, 4), parts)


MAKERS: dict[str, Callable[[], Case]] = {
    "mlp": mlp,
    "leaky mlp without bias": lambda: mlp(bias=False, activation="leaky_relu"),
    "cnn": cnn,
    "pooled cnn": pooled_cnn,
    "two convolutions": two_convolutions,
    "residual mlp": residual,
    "inner skip": inner_skip,
    "inner skip over two": inner_skip_over_two,
    "skip from the input": skip_from_the_input,
    "crossing skips": crossing_skips,
    "residual cnn": residual_cnn,
    "sequence": sequence,
}


def network_of(name: str) -> Case:
    """The case of MAKERS, the same each time, in float64."""
    torch.manual_seed(1)
    made = MAKERS[name]()
    return made._replace(model=made.model.to(F64))


def samples(shape: tuple[int, ...], n: int = 20) -> Dataset:
    """Gaussian samples with labels 0, 1, 2."""
    split = Split(randn(n, *shape, seed=2), torch.arange(n) % 3)
    return Dataset(split, split, 3, "gaussian")


def problem_of(made: Case, recipe=l0, n: int = 20, **settings: object) -> Problem:
    """The problem of a case; by default half of every weight but the last is kept."""
    return problem(samples(made.shape, n), made.model, recipe, **(settings or {"keep": 0.5}))


def objective(made: Case, P: Blocks, *, tau: float, gamma: float, rho: float) -> Tensor:
    """L(P) by its definition, every layer computed by the network's own module."""
    total = (P.V[P.last] - P.Y).square().sum() / 2
    for i, part in enumerate(made.parts, 1):
        sigma = P.U[i] if i == P.last else functional.leaky_relu(P.U[i], part.slope)
        sigma = sigma if part.outer is None else sigma + P.V[part.outer]
        linear = made.linear(i, P.W[i], P.b[i], P.V[i - 1])
        linear = linear if part.inner is None else linear + P.V[part.inner]
        total = total + gamma / 2 * (P.V[i] - sigma).square().sum() + rho / 2 * (P.U[i] - linear).square().sum()
        W, T, lam = P.W[i], P.T[i], P.lam[i]
        total = total if T is None else total + tau / 2 * (W - T).square().sum()
        total = total if lam is None else total - (lam * (W - T)).sum()
    return total


def toy(recipe=tt, bias: bool = False, n: int = 120, **settings: object) -> Problem:
    """The rate toy: 12-16-16-3 on Gaussian samples, the middle layer compressed."""
    data = gaussian(n=n)
    settings = settings or {"rank": 4, "modes": [4, 4, 4, 4]}
    return problem(data, problems.mlp(data, bias=bias), recipe, layers=["fc2"], **settings)


CARD = NNBCD(tau=5.0, alpha=1.0, gamma=0.5, rho=0.5, initial="kaiming_normal", initial_scale=1.0)


def observations(p: Problem, solver: NNBCD, sweeps: int) -> list[dict[str, float]]:
    """The records of a run."""
    return [iterate.observation.terms for iterate in solver.run(p, sweeps)]


def slacks(terms: list[dict[str, float]]) -> Iterator[float]:
    """By how much the objective falls more than is guaranteed, sweep by sweep."""
    for before, after in itertools.pairwise(terms):
        yield before["objective"] - after["objective"] - guaranteed(before, after)


def guaranteed(before: dict[str, float], after: dict[str, float]) -> float:
    """The decrease that is guaranteed in the sweep between two records."""
    return after["decrease/guaranteed"] - before.get("decrease/guaranteed", 0.0)
