"""NN-BCD on convolutions, pooling and skips: objective, subgradient and every block against their definitions."""

import dataclasses
import itertools

import pytest
import torch
from cases import case
from nnbcd_cases import CARD, MAKERS, Case, guaranteed, network_of, objective, observations, problem_of, slacks, toy
from problems import F64, gaussian, mlp, problem, small_digits
from torch import nn

from nncompress.compressions.decomposition.low_rank import low_rank
from nncompress.compressions.decomposition.tensor_train import tt
from nncompress.compressions.sparsity.magnitude import l0
from nncompress.metrics import effective_sparsity
from nncompress.models.cnn import NNBCDCNN
from nncompress.problem import weights_of, with_weights
from nncompress.solvers.nnbcd import state as nnbcd_state
from nncompress.solvers.nnbcd.figures import figures
from nncompress.solvers.nnbcd.nnbcd import NNBCD
from nncompress.solvers.nnbcd.state import Blocks

RATES = {"tau": 2.0, "gamma": 0.6, "rho": 0.9}
SOLVER = NNBCD(**RATES, alpha=0.7, initial="model")
LAMBDA = 0.3  # min(alpha, gamma)/2


def swept(p, sweeps: int = 2):
    *_, last = SOLVER.run(p, sweeps, every=100)
    return last.state


def scattered(p, multipliers: bool) -> Blocks:
    """Blocks with random entries, none of them at a kink."""
    P = Blocks.of(p, dataclasses.replace(SOLVER, multipliers=multipliers).init(p))
    g = torch.Generator().manual_seed(5)
    for group in (P.W, P.b, P.U, P.V, P.lam):
        group[1:] = [None if x is None else torch.randn(x.shape, generator=g, dtype=F64) for x in group[1:]]
    P.products = [None] * len(P.products)
    return P


def test_objective_and_squared_subgradient_are_those_of_the_definition_away_from_kinks():
    for name, multipliers in itertools.product(MAKERS, (False, True)):
        made = network_of(name)
        P = scattered(problem_of(made), multipliers)
        found = figures(P, **RATES)
        leaves = [x.requires_grad_() for group in (P.W, P.b, P.U, P.V) for x in group[1:] if x is not None]
        expected = objective(made, P, **RATES)
        gradients = torch.autograd.grad(expected, leaves)
        with case(name=name, multipliers=multipliers):
            assert found["objective"] == pytest.approx(float(expected.detach()), rel=1e-12)
            assert found["grad_sq"] == pytest.approx(sum(float(g.square().sum()) for g in gradients), rel=1e-12)


def each_block(P: Blocks):
    """Update the blocks in the order of a sweep; after each: its letter, index, proximal weight and old value."""
    N, alpha = P.last, SOLVER.alpha
    V_old, U_old = P.V[N].clone(), P.U[N].clone()
    SOLVER._update_output(P, N, slice(None))
    U_new, P.U[N] = P.U[N], U_old
    yield "V", N, alpha, V_old
    P.U[N] = U_new
    yield "U", N, 0.0, U_old
    for i in range(N, 0, -1):
        if i < N:
            V_old, U_old = P.V[i].clone(), P.U[i].clone()
            SOLVER._update_activation(P, i, slice(None), SOLVER._activation_step(P, i))
            yield "V", i, 0.0, V_old
            SOLVER._update_preactivation(P, i, slice(None))
            P.refresh(i)  # the update has left its residual there
            yield "U", i, alpha, U_old
        joined = joint(P, i)
        SOLVER._update_layer(P, i, SOLVER.tau)
        P.refresh(i)
        yield "W", i, alpha, joined
        SOLVER._update_compressed(P, i, SOLVER.tau)


def joint(P: Blocks, i: int):
    b = P.b[i]
    return P.W[i] if b is None else torch.cat([P.W[i], b[:, None]], dim=1)


def cost(made: Case, P: Blocks, letter: str, i: int, weight: float, old):
    """The objective with the proximal term, as a function of one block."""

    def value(block):
        changed = {key: list(getattr(P, key)) for key in "WbUV"}
        if letter == "W" and P.b[i] is not None:
            changed["W"][i], changed["b"][i] = block[:, :-1], block[:, -1]
        else:
            changed[letter][i] = block
        near = weight / 2 * (block - old).square().sum()
        return objective(made, dataclasses.replace(P, **changed), **RATES) + near

    return value


def perturbations(shape, seed: int):
    """300 of them: of all entries and of a single one, tiny to large."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([1e-4, 1e-2, 1.0], dtype=F64).repeat_interleave(50).repeat(2)
    dense = torch.randn(150, *shape, generator=g, dtype=F64)
    entry = torch.randint(shape.numel(), (150,), generator=g)
    single = torch.randn(150, 1, generator=g, dtype=F64) * nn.functional.one_hot(entry, shape.numel())
    return sizes.view(-1, *[1] * len(shape)) * torch.cat([dense, 3 * single.view(150, *shape)])


def test_no_perturbation_of_any_block_improves_its_subproblem_and_smooth_ones_are_stationary():
    for name in MAKERS:
        made = network_of(name)
        p = problem_of(made, n=10)
        P = Blocks.of(p, swept(p))
        seen = set()
        for letter, i, weight, old in each_block(P):
            value = cost(made, P, letter, i, weight, old)
            new = joint(P, i) if letter == "W" else getattr(P, letter)[i].clone()
            best = value(new)
            with case(name=name, letter=letter, i=i):
                assert (torch.vmap(value)(new + perturbations(new.shape, i)) >= best - 1e-12).all()
                assert best <= value(old) + 1e-12
                if letter != "U" or i == P.last:
                    torch.testing.assert_close(torch.func.grad(value)(new), torch.zeros_like(new), atol=1e-10, rtol=0)
            seen.add((letter, i))
        assert seen == set(itertools.product("VUW", range(1, P.last + 1))), name


def test_the_decrease_inequality_holds_in_every_sweep():
    for name, alpha_theta in itertools.product(MAKERS, (0.0, 0.4)):
        terms = observations(problem_of(network_of(name)), dataclasses.replace(SOLVER, alpha_theta=alpha_theta), 10)
        strength = min(LAMBDA, alpha_theta / 2) if alpha_theta else LAMBDA
        with case(name=name, alpha_theta=alpha_theta):
            assert min(slacks(terms)) >= -1e-10
            for before, after in itertools.pairwise(terms):
                moved = after["step_sq"] + (after["step_sq/theta"] if alpha_theta else 0.0)
                assert guaranteed(before, after) >= strength * moved - 1e-10
                assert after["decrease/lambda"] == strength
            assert terms[-1]["objective"] < 0.8 * terms[0]["objective"]


def assert_same_iterates(first, second):
    for key in ("W", "b", "U", "V", "T"):
        for a, b in zip(getattr(first, key), getattr(second, key), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_the_number_of_samples_treated_at_once_changes_nothing(monkeypatch):
    for name in MAKERS:
        p = problem_of(network_of(name))
        whole = swept(p)
        with monkeypatch.context() as patch, case(name=name):
            patch.setattr(nnbcd_state, "CHUNK", 35)
            assert len(list(Blocks.of(p, whole).chunks(1))) > 2
            in_chunks = swept(p)
            assert_same_iterates(whole, in_chunks)
            for key in ("step_sq", "theta_sq", "guaranteed"):
                assert float(getattr(in_chunks, key)) == pytest.approx(float(getattr(whole, key)), rel=1e-10)
            assert SOLVER.observe(p, in_chunks).terms == pytest.approx(SOLVER.observe(p, whole).terms, rel=1e-10)


def test_the_weight_block_is_the_same_from_gram_matrices_and_from_the_side_of_the_samples(monkeypatch):
    for name in MAKERS:
        p = problem_of(network_of(name))
        states = []
        for few in (False, True):
            monkeypatch.setattr(Blocks, "few", lambda P, i, few=few: few)
            states.append(swept(p))
        with case(name=name):
            assert (states[0].input_gram is None, states[1].input_gram is None) == (False, True)
            assert_same_iterates(*states)


def test_fewer_samples_than_half_the_columns_take_the_side_of_the_samples():
    for n, few in ((5, True), (8, False)):
        data = gaussian(n=n)
        P = Blocks.of(problem(data, mlp(data)), NNBCD().init(problem(data, mlp(data))))
        with case(n=n):
            assert [P.few(i) for i in (1, 2, 3)] == [few, few, few]


def test_products_kept_from_the_activation_blocks_equal_fresh_ones():
    for name, sweeps in itertools.product(MAKERS, (0, 4)):
        made = network_of(name)
        p = problem_of(made)
        P = Blocks.of(p, swept(p, sweeps=sweeps))
        kept = [i for i in range(1, P.last + 1) if P.products[i] is not None]
        with case(name=name, sweeps=sweeps):
            assert kept
            for i in kept:
                fresh = made.linear(i, P.W[i], P.b[i], P.V[i - 1])
                torch.testing.assert_close(P.products[i], fresh, atol=1e-12, rtol=1e-12)


def test_convolutions_are_compressed_too():
    recipes = (
        (l0, {"keep": 0.3, "layers": "all"}),
        (l0, {"keep": 0.3, "joint": True}),
        (low_rank, {"rank": 1}),
        (low_rank, {"rank": 2, "scheme": 2}),
        (tt, {"rank": 2}),
    )
    for name, (recipe, settings) in itertools.product(("cnn", "two convolutions", "residual cnn"), recipes):
        p = problem_of(network_of(name), recipe, **settings)
        iterates = list(SOLVER.run(p, 3))
        objectives = [iterate.observation.terms["objective"] for iterate in iterates]
        state = iterates[-1].state
        deployed = p.plan.decompress(state.theta)
        with case(name=name, recipe=recipe, settings=settings):
            assert all(after <= before + 1e-12 for before, after in itertools.pairwise(objectives))
            assert any(len(weight.shape) == 4 for weight in deployed.values())
            for layer, T in zip(state.chain.layers, state.T, strict=True):
                if layer.weight in deployed:
                    torch.testing.assert_close(T, deployed[layer.weight].flatten(1))
            again = p.plan.decompress(p.plan.compress(deployed))
            for weight, dense in deployed.items():
                torch.testing.assert_close(again[weight], dense)


def digits_cnn():
    data = small_digits(200)
    torch.manual_seed(0)
    model = NNBCDCNN(data.input_shape, data.num_classes, filters=4, widths=(16, 16), bias=True).to(F64)
    return problem(data, model, tt, rank=4)


@pytest.mark.slow
def test_over_1000_sweeps_every_one_decreases_enough_and_subgradients_fade_like_one_over_k():
    for name, p in (("mlp", toy(n=400)), ("cnn", digits_cnn()), ("l0", toy(l0, n=400, keep=0.1))):
        start, *terms = observations(p, CARD, 1000)
        with case(name=name):
            assert min(slacks([start, *terms])) >= -1e-10
            for before, after in itertools.pairwise([start, *terms]):
                assert guaranteed(before, after) >= 0.25 * after["step_sq"] - 1e-10
            for k in (10, 100, 1000):
                bound = (start["objective"] - terms[k - 1]["objective"]) / 0.25
                assert terms[k - 1]["step_sq/sum"] <= bound
                assert sum(row["grad_sq"] for row in terms[:k]) <= bound


def test_effective_sparsity_counts_what_dead_units_leave_without_effect():
    """The case of the method card: 30 weights, 20 of them 0."""
    weights = [
        torch.tensor([[1.0, 0, 2], [0, 0, 0], [3, 0, 0], [0, 4, 0]]),
        torch.tensor([[0.0, 5, 0, 0], [6, 0, 0, 0], [0, 0, 0, 7]]),
        torch.tensor([[1.0, 2, 0], [0, 3, 0]]),
    ]
    kept = [w.clone() for w in weights]
    assert effective_sparsity(weights) == pytest.approx(25 / 30)
    assert effective_sparsity(weights, last=False) == pytest.approx(23 / 30)
    assert all(torch.equal(w, k) for w, k in zip(weights, kept, strict=True))
    assert effective_sparsity([torch.ones(2, 3), torch.ones(1, 2)]) == 0
    assert effective_sparsity([torch.ones(2, 3), torch.zeros(1, 2)]) == 1


def test_a_pruned_chain_has_an_effective_sparsity_unless_it_has_biases():
    data = gaussian(n=60)
    for bias in (False, True):
        p = problem(data, mlp(data, bias=bias), l0, layers=["fc1", "fc2"], keep=0.05)
        *_, last = NNBCD(seed=1).run(p, 2)
        terms = last.observation.terms
        if bias:
            assert "sparsity/effective" not in terms
            continue
        deployed = with_weights(last.observation.model, p.plan.decompress(last.observation.theta))
        weights = [w.detach() for w in weights_of(deployed).values()]
        assert terms["sparsity/effective"] == pytest.approx(effective_sparsity(weights))
        density = sum(int((w != 0).sum()) for w in weights) / sum(map(torch.numel, weights))
        assert terms["sparsity/effective"] > 1 - density
