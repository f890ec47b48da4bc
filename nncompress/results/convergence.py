"""How fast a solver converges, computed from its records. Imports no torch.

A block coordinate descent with sufficient decrease, L(P^{k-1}) - L(P^k) >= lambda ‖P^k - P^{k-1}‖², has
(1/K) sum_{k<=K} ‖P^k - P^{k-1}‖² <= (L(P^0) - L(P^K)) / (lambda K), and with a subgradient g^k bounded by the step,
(1/K) sum_{k<=K} ‖g^k‖² = O(1/K). These running means, and not L itself, are what decays like 1/K.
Source: the NN-BCD paper, arXiv 2303.06815, convergence analysis.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

TOLERANCE = 1e-9  # of |objective|: what rounding may take from an inequality that holds exactly
TINY = 1e-300
SWEEP = "step_sq/sweep/sum"
"""The sum over all steps of the squared moves of the sweeps alone, where each began at an extrapolated point."""
MIN_POINTS = 5


@dataclass(frozen=True)
class SlopeFit:
    """The least-squares line log y = slope log k + intercept over `n` points from k = first to k = last.

    Slope and intercept are NaN, first and last None, when there are too few points.
    """

    slope: float
    first: int | None
    last: int | None
    n: int
    intercept: float


def convergence(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the convergence figures of each record (arXiv 2303.06815, convergence analysis).

    Columns: step K; objective; step_sq ‖P^K - P^{K-1}‖²; step_sq_sum over all steps 1..K; step_sq_mean = sum / K;
    grad_sq ‖g^K‖²; grad_sq_mean over the records with step >= 1; slack, by how much the decrease since the record
    before exceeds the guaranteed one; worst_slack, the least so far; bound (L0 - LK)/(lambda K); grad_constant b², the
    largest ‖g‖²/‖step‖² measured up to K; grad_bound b² (L0 - LK)/(lambda K); bound_ok and grad_bound_ok, whether
    step_sq_mean and grad_sq_mean are at most theirs (nullable). With extrapolation bound_ok is of the mean squared move
    of the sweeps alone, and there is no grad_constant. What the solver does not record is NaN.
    """
    step, objective, lam = _column(rows, "step"), _column(rows, "objective"), decrease_constant(rows)
    table = pd.DataFrame({"step": step.astype(int), "objective": objective})
    after_start = step.where(step > 0)  # NaN at step 0, where no mean exists
    table["step_sq"] = _column(rows, "step_sq")
    table["step_sq_sum"] = _column(rows, "step_sq/sum").where(step > 0)
    table["step_sq_mean"] = table["step_sq_sum"] / after_start
    table["grad_sq"] = _column(rows, "grad_sq")
    table["grad_sq_mean"] = table["grad_sq"].where(step > 0).expanding().mean()
    table["slack"] = _column(rows, "decrease/slack")
    table["worst_slack"] = table["slack"].cummin()
    start = float(objective[step == 0].iloc[0]) if (step == 0).any() else np.nan
    table["bound"] = (start - objective) / (np.nan if lam is None else lam) / after_start
    rounding = TOLERANCE * max(abs(start), TINY) / (np.nan if lam is None else lam) / after_start
    extrapolated = SWEEP in rows  # then L falls by a sweep's own move, and no step bounds g
    bounded = _column(rows, SWEEP) / after_start if extrapolated else table["step_sq_mean"]
    # ‖g‖² <= b² ‖step‖², b measured: the largest quotient so far
    quotient = table["grad_sq"] / table["step_sq"]
    table["grad_constant"] = quotient.where((table["step_sq"] > 0) & (not extrapolated)).cummax().ffill()
    table["grad_bound"] = table["grad_constant"] * table["bound"]
    known = table["bound"].notna() & bounded.notna()
    grad_known = known & table["grad_bound"].notna() & table["grad_sq_mean"].notna()
    grad_ok = table["grad_sq_mean"] <= table["grad_bound"] + table["grad_constant"] * rounding
    table["grad_bound_ok"] = grad_ok.astype("boolean").where(grad_known)
    table["bound_ok"] = (bounded <= table["bound"] + rounding).astype("boolean").where(known)
    return table


def decrease_constant(rows: pd.DataFrame) -> float | None:
    """Return the constant lambda of L(P^{k-1}) - L(P^k) >= lambda ‖P^k - P^{k-1}‖²; None without a positive one."""
    lam = _column(rows, "decrease/lambda").min()
    return float(lam) if lam > 0 else None


def fit_slope(k: ArrayLike, y: ArrayLike) -> SlopeFit:
    """Fit log y against log k by least squares over the last decade, k in [kmax/10, kmax].

    Only points with k > 0 and a finite y > 0 count; with fewer than 5 of them the slope is NaN.
    """
    points = np.stack([np.asarray(k, dtype=float), np.asarray(y, dtype=float)])
    points = points[:, np.isfinite(points).all(axis=0) & (points > 0).all(axis=0)]
    points = points[:, points[0] >= points[0].max(initial=0) / 10]
    at, n = np.unique(points[0]), points.shape[1]
    if len(at) < MIN_POINTS:
        return SlopeFit(np.nan, None, None, n, np.nan)
    x, log_y = np.log(points[0]), np.log(points[1])
    centred = x - x.mean()
    slope = float(centred @ log_y / (centred @ centred))
    return SlopeFit(slope, int(at[0]), int(at[-1]), n, float(log_y.mean() - slope * x.mean()))


def rate_summary(rows: pd.DataFrame) -> dict[str, float | int | bool | None]:
    """Return the summary keys on convergence; a figure that the records do not allow is None.

    `rate/slope` is of the running mean of step_sq, `rate/slope_grad` of that of grad_sq, and `objective/rises` counts
    the records whose objective exceeds that of the record before by more than rounding (1e-9 relative); not known where
    the objective itself changes from step to step (continuation in tau, multipliers).
    """
    table = convergence(rows)
    step_fit = fit_slope(table["step"], table["step_sq_mean"])
    grad_fit = fit_slope(table["step"], table["grad_sq_mean"])
    fit = step_fit if step_fit.first is not None else grad_fit
    slack = table["slack"].dropna()
    changes = "term/multipliers" in rows or ("tau" in rows and rows["tau"].nunique() > 1)  # the objective itself
    return {
        "rate/slope": _finite(step_fit.slope),
        "rate/slope_grad": _finite(grad_fit.slope),
        "rate/fit_from": fit.first,
        "rate/fit_to": fit.last,
        "rate/bound_ok": _all(table["bound_ok"]),
        "rate/grad_bound_ok": _all(table["grad_bound_ok"]),
        "rate/grad_constant": _finite(table["grad_constant"].max()),
        "rate/lambda": decrease_constant(rows),
        "rate/worst_slack": _finite(slack.min()),
        "rate/decrease_ok": bool((slack >= -_rounding(table["objective"])[slack.index]).all()) if len(slack) else None,
        "objective/rises": None if changes else _rises(table["objective"]),
    }


def _rounding(objective: "pd.Series[float]") -> "pd.Series[float]":
    return TOLERANCE * objective.abs().fillna(0.0) + TINY


def _rises(objective: "pd.Series[float]") -> int | None:
    known = objective.dropna()
    return int((known.diff() > _rounding(known)).sum()) if len(known) else None


def _all(checks: "pd.Series[bool]") -> bool | None:
    known = checks.dropna()
    return bool(known.all()) if len(known) else None


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _column(rows: pd.DataFrame, key: str) -> "pd.Series[float]":
    if key not in rows:
        return pd.Series(np.nan, index=rows.index, dtype=float)
    return pd.to_numeric(rows[key], errors="coerce").astype(float)
