"""What reports show of the records of Frank-Wolfe."""

from nncompress.solvers.base import Column, Panel, Plot

COLUMNS = (
    Column(
        "fw_gap",
        "Frank-Wolfe gap",
        note="Frank-Wolfe gap: ⟨∇L(w), w − LMO(∇L(w))⟩ over the constrained parameters, L in evaluation mode on "
        "solver.gap_samples of the training samples, drawn once; 0 exactly where w is stationary for these within the "
        "sets. η: the step size, its mean over the sets and the minibatches of an epoch; clipped: the part of them in "
        "which it was cut down to 1. Gauge / radius: of the set in which the weights lie furthest out; at most 1, up "
        "to rounding.",
    ),
    Column("eta", "η"),
    Column("eta/clipped", "η clipped"),
    Column("gauge", "gauge / radius"),
)

PLOTS = (
    Plot(
        "sets",
        "Constraint sets",
        (
            Panel("Frank-Wolfe gap ⟨∇L(w), w − LMO(∇L(w))⟩", {"fw_gap": "all sets together"}),
            Panel("step size η, mean of the epoch", {"eta": "mean over the sets"}, parts=("eta/", "sets")),
            Panel("gauge of the weights / radius of their set", {"gauge": "largest"}, parts=("gauge/", "sets")),
        ),
    ),
)
