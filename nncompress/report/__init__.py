"""Tables and plots from run folders alone. Imports no torch, and pandas and matplotlib once something is asked for."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nncompress.report.write import SweepReport as SweepReport
    from nncompress.report.write import is_reported as is_reported
    from nncompress.report.write import report as report
    from nncompress.report.write import write_run_report as write_run_report
    from nncompress.report.write import write_sweep_report as write_sweep_report

__all__ = ["SweepReport", "is_reported", "report", "write_run_report", "write_sweep_report"]


def __getattr__(name: str) -> Any:
    """Return what `report.write` offers."""
    if name in __all__:
        from nncompress.report import write

        return getattr(write, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
