"""What reports show of the records of the learning-compression algorithm and of its baselines."""

from nncompress.solvers.base import Column, Panel, Plot

WEIGHTS_LOSS = Column("loss/w", "training loss of the weights w", table="objective")

COLUMNS = (
    Column("mu", "μ"),
    Column("gap", "gap"),
    Column("loss/w", "loss of w"),
    Column("lam/norm", "‖λ‖"),
    Column("kkt/cosine", "cosine of λ and ∇L(w)"),
    Column("kkt/distance"),
    Column("c_step/error"),
    WEIGHTS_LOSS,
)

PLOTS = (
    Plot(
        "constraint",
        "Constraint w = Δ(Θ)",
        (
            Panel(
                "relative distance",
                {"gap": "gap ‖w − Δ(Θ)‖ / ‖w‖", "c_step/error": "C step ‖v − Δ(Θ)‖ / ‖v‖, v = w − λ/μ"},
            ),
            Panel("value", {"mu": "μ", "lam/norm": "‖λ‖", "grad/norm": "‖∇L(w)‖"}),
            Panel(
                "value",
                {"kkt/cosine": "cosine of λ and ∇L(w)", "kkt/distance": "‖λ − ∇L(w)‖ / ‖∇L(w)‖"},
                log=False,
            ),
        ),
        first=1,
    ),
)
