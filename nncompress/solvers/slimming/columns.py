"""What reports show of the records of network slimming."""

from nncompress.solvers.base import Column

SIZES = (
    Column("channels/kept", "channels with a scaling factor", table="compression", dense="channels/total"),
    Column("ratio/channels", "ratio of channels", table="summary"),
)
TERMS = (Column("term/loss", "loss"), Column("term/penalty", "penalty C(ξ)"))
KEPT = Column("channels/kept", "channels kept")

NETWORK_SLIMMING = (*TERMS, KEPT, *SIZES)

PROXIMAL = (
    *TERMS,
    Column("term/coupling", "β/2 ‖γ − ξ‖²"),
    Column("step_sq/W", "‖ΔW‖²"),
    Column("step_sq/gamma", "‖Δγ‖²"),
    Column("step_sq/xi", "‖Δξ‖²"),
    Column("alpha", "α"),
    Column(
        "curvature",
        "curvature",
        note="Curvature: the largest |curvature| of the loss on solver.curvature_samples of the training samples, "
        "drawn once, by the power method: a lower estimate of the Lipschitz constant of its gradient on these "
        "samples. With full gradients the objective falls whenever α is above half of the constant of the whole loss; "
        "minibatches and momentum leave it a guide.",
    ),
    Column("channels/zero", "ξ = 0"),
    KEPT,
    Column("alpha", "α > curvature/2", above=(0.5, "curvature")),
    *SIZES,
)
