"""Convergence figures against hand numbers and known curves."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cases import case

from nncompress.results.convergence import convergence, decrease_constant, fit_slope, rate_summary


def descent_rows(objectives: list[float], lam: float = 0.25, **columns: list[Any]) -> pd.DataFrame:
    """Rows of a solver whose every step uses half of its decrease: step_sq = decrease / (2 lam)."""
    rows = pd.DataFrame({"step": range(len(objectives)), "objective": objectives})
    decrease = -rows["objective"].diff()
    rows["step_sq"] = decrease / (2 * lam)
    rows["step_sq/sum"] = rows["step_sq"].cumsum()
    rows["grad_sq"] = 3 * rows["step_sq"]
    rows["decrease/slack"] = decrease - lam * rows["step_sq"]
    rows["decrease/lambda"] = lam
    return rows.assign(**columns)


def test_convergence_table_matches_hand_numbers() -> None:
    table = convergence(descent_rows([10.0, 6.0, 4.0]))
    assert list(table["step_sq_sum"])[1:] == [8.0, 12.0]
    assert list(table["step_sq_mean"])[1:] == [8.0, 6.0]
    assert list(table["grad_sq_mean"])[1:] == [24.0, 18.0]
    assert list(table["slack"])[1:] == [2.0, 1.0]
    assert list(table["worst_slack"])[1:] == [2.0, 1.0]
    assert list(table["bound"])[1:] == [16.0, 12.0]  # (10 - 6)/(0.25 * 1), (10 - 4)/(0.25 * 2)
    assert list(table["bound_ok"])[1:] == [True, True]
    assert list(table["grad_bound"])[1:] == [48.0, 36.0]  # ‖g‖² = 3 ‖step‖²
    assert list(table["grad_bound_ok"])[1:] == [True, True]
    assert table.loc[0, ["step_sq_mean", "grad_sq_mean", "bound"]].isna().all()
    assert table["bound_ok"].isna()[0]


def test_the_mean_divides_by_the_step_when_steps_are_skipped() -> None:
    rows = pd.DataFrame({"step": [0, 10, 20], "objective": [9.0, 5.0, 4.0], "step_sq/sum": [None, 5.0, 6.0]})
    assert list(convergence(rows)["step_sq_mean"])[1:] == [0.5, 0.3]


def test_a_step_sum_or_a_mean_subgradient_above_its_bound_is_reported() -> None:
    rows = descent_rows([10.0, 6.0, 4.0])
    rows["step_sq/sum"] *= 3
    assert rate_summary(rows)["rate/bound_ok"] is False
    rows = descent_rows([10.0, 6.0, 4.0])
    rows["step_sq/sum"] /= 100
    rows["step_sq"] *= 100  # the quotient, and the bound with it, fall
    assert rate_summary(rows)["rate/grad_constant"] == pytest.approx(0.03)
    assert rate_summary(rows)["rate/grad_bound_ok"] is False


def test_the_bound_met_with_equality_holds_despite_rounding() -> None:
    rows = descent_rows([0.3, 0.2, 0.1], lam=1 / 3)
    rows["step_sq/sum"] = 2 * rows["step_sq/sum"] * (1 + 1e-12)
    assert rate_summary(rows)["rate/bound_ok"] is True


def test_slope_of_a_power_law_is_its_exponent() -> None:
    k = np.arange(1, 1001)
    for power in (-1.0, -2.5, 0.0):
        with case(power=power):
            fit = fit_slope(k, 7.0 * k**power)
            assert fit.slope == pytest.approx(power, abs=1e-10)
            assert math.exp(fit.intercept) == pytest.approx(7.0)
            assert (fit.first, fit.last, fit.n) == (100, 1000, 901)


def test_only_the_last_decade_is_fitted() -> None:
    k = np.arange(1, 101)
    y = np.where(k < 10, 1e6, 1.0 / k)
    assert fit_slope(k, y).slope == pytest.approx(-1.0)


def test_slope_agrees_with_numpy_on_noisy_points() -> None:
    k = np.arange(10, 101)
    y = np.exp(np.random.default_rng(0).standard_normal(91)) / k
    slope, intercept = np.polyfit(np.log(k), np.log(y), 1)
    fit = fit_slope(k, y)
    assert (fit.slope, fit.intercept) == (pytest.approx(slope), pytest.approx(intercept))


def test_fewer_than_five_points_give_no_slope() -> None:
    few = [
        ([], []),
        ([0], [1.0]),
        ([1, 2, 3, 4], [1, 1, 1, 1]),
        ([1, 2, 3, 4, 5], [1, 1, 0, 1, 1]),
        ([1, 2, 3, 4, 5], [1, 1, np.nan, np.inf, 1]),
        ([5] * 6, [1.0] * 6),
    ]
    for k, y in few:
        with case(k=k, y=y):
            fit = fit_slope(k, y)
            assert math.isnan(fit.slope)
            assert fit.first is None


def test_summary_of_a_sublinear_descent() -> None:
    k = np.arange(201.0)
    summary = rate_summary(descent_rows(list(1 + 1 / (k + 1))))
    assert summary["rate/slope"] == pytest.approx(-1.0, abs=0.05)
    assert summary["rate/slope_grad"] == pytest.approx(-1.0, abs=0.05)
    assert (summary["rate/fit_from"], summary["rate/fit_to"]) == (20, 200)
    assert summary["rate/lambda"] == 0.25
    assert summary["rate/bound_ok"] is True
    assert summary["rate/decrease_ok"] is True
    assert summary["objective/rises"] == 0
    assert summary["rate/worst_slack"] == pytest.approx(0.5 * (1 / 200 - 1 / 201))


def test_a_violated_decrease_and_a_rise_are_counted() -> None:
    rows = descent_rows([10.0, 6.0, 6.5, 4.0, 4.0 * (1 + 1e-12)])
    summary = rate_summary(rows)
    assert summary["rate/decrease_ok"] is False
    assert summary["objective/rises"] == 1
    assert summary["rate/worst_slack"] == -0.25


def test_absent_keys_and_single_rows_give_no_figures_rather_than_errors() -> None:
    little = [
        pd.DataFrame({"step": [0], "objective": [1.0]}),
        pd.DataFrame({"step": [0]}),
        pd.DataFrame({"step": [], "seconds": []}, dtype=float),
        pd.DataFrame({"step": [0, 1, 2], "loss/train": [3.0, 2.0, 1.0]}),
        pd.DataFrame({"step": [0, 1], "objective": [None, None], "step_sq": [None, None]}),
    ]
    for rows in little:
        with case(columns=list(rows), n=len(rows)):
            summary = rate_summary(rows)
            assert {key for key, value in summary.items() if value is not None} <= {"objective/rises"}
            assert len(convergence(rows)) == len(rows)


def test_no_bound_without_a_positive_constant_or_a_starting_point() -> None:
    assert decrease_constant(descent_rows([2.0, 1.0]).assign(**{"decrease/lambda": 0.0})) is None
    assert convergence(descent_rows([3.0, 2.0, 1.0]).iloc[1:])["bound"].isna().all()


def test_figures_at_the_ends_of_what_a_float_holds_are_no_error() -> None:
    rows = pd.DataFrame({"step": range(3), "objective": [1e308, -1e308, 0.0], "step_sq/sum": [0.0, 1e308, 1e308]})
    assert rate_summary(rows.assign(**{"decrease/lambda": 5e-324}))["rate/lambda"] == 5e-324
