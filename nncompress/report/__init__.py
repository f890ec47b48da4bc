"""Tables and plots from run folders alone. Imports no torch, and pandas and matplotlib once something is drawn."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nncompress.report.fresh import is_reported as is_reported
    from nncompress.report.rebuild import report as report
    from nncompress.report.write import SweepReport as SweepReport
    from nncompress.report.write import write_run_report as write_run_report
    from nncompress.report.write import write_sweep_report as write_sweep_report

__all__ = ["SweepReport", "is_reported", "report", "write_run_report", "write_sweep_report"]


def __getattr__(name: str) -> Any:
    """Return what `fresh`, `rebuild` and `write` offer."""
    if name == "is_reported":
        from nncompress.report.fresh import is_reported

        return is_reported
    if name == "report":
        from nncompress.report.rebuild import report

        return report
    if name in __all__:
        from nncompress.report import write

        return getattr(write, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
