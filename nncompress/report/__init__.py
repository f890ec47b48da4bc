"""Tables and plots from run folders alone. Imports no torch."""

from nncompress.report.write import SweepReport, report, write_run_report, write_sweep_report

__all__ = ["SweepReport", "report", "write_run_report", "write_sweep_report"]
