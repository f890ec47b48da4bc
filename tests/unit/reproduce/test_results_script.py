"""scripts/results.py: docs/results/ from the tables of `nncompress reproduce`."""

import csv
import sys
from pathlib import Path

from problems import ROOT

from nncompress.reproduce.protocol import read_protocol

sys.path.insert(0, str(ROOT))  # scripts/ is not installed
from scripts import results


def tables(folder: Path) -> Path:
    """The tables of two studies of lc, as `nncompress reproduce` writes them."""
    folder.mkdir()
    (folder / "published.csv").write_text(
        "row,setting,source,metric,published,note,ours,std,n,seeds,difference,tolerance,verdict,why,deviations,hardware,"
        "seconds,date,command\n"
        "storage/binary,LeNet300,computed,ratio of bits,30.54,,30.543892309,,1,0,-2.619e-06,5e-05,PASS,,,a CPU,0.0017,"
        "2026-12-01,nncompress train\n"
        "toolkit/low_rank,LeNet300,README,test error (%),,,2.5612345,0.125,2,0 1,,0.3,not comparable,,a | b,a CPU,"
        "12345,2026-12-01,nncompress train\n"
    )
    first = read_protocol("lc", "cpu").claims[0].says
    (folder / "claims.csv").write_text(
        "claim,published,figure,ours,std,against,against std,n,against n,verdict,why,deviations\n"
        f'"{first}",claims/1,accuracy/test,0.93888888,,0.275,,1,1,PASS,,\n'
        "Untested.,claims/9,,,,,,0,0,not measured,not among the experiments,\n"
    )
    (folder / "measured.csv").write_text(
        "study,setting,n,seeds,accuracy/test,accuracy/test std,ratio/params,seconds/total,rate/slope,rate/decrease_ok\n"
        "toolkit,all runs,2,0 1,0.965,0.00123,1.0,1117.3962,-1.0,True\n"
    )
    (folder / "studies.csv").write_text(
        "study,what,runs,done,hardware,seconds,date,total seconds,missing,deviations,command\n"
        "toolkit,LeNet,2,2,a CPU,1.5,2026-12-01,3.25,,,nncompress train -m seed=0\n"
    )
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_of_the_tables_is_in_the_csv_file_with_its_figures(tmp_path: Path) -> None:
    results.write_paper(tables(tmp_path / "tables"), read_protocol("lc", "cpu"), tmp_path)
    binary, low_rank, claim, untested, measured = read(tmp_path / "lc_cpu.csv")
    assert binary["study"] == "storage_formats"
    assert (binary["published"], binary["ours"], binary["difference"]) == ("30.54", "30.54", "-2.619e-06")
    assert (low_rank["published"], low_rank["ours"], low_rank["std"]) == ("not available", "2.561", "0.125")
    assert (low_rank["n"], low_rank["seeds"], low_rank["deviations"]) == ("2", "0 1", "a | b")
    assert (claim["table"], claim["row"], claim["ours"], claim["against"]) == ("claims", "claims/1", "0.9389", "0.275")
    assert (untested["claim"], untested["verdict"]) == ("Untested.", "not measured")
    assert (measured["test accuracy (%)"], measured["test accuracy (%) std"]) == ("96.50", "0.12")
    assert (measured["seconds"], measured["slope"], measured["decrease"]) == ("1117", "-1.000", "yes")
    assert "MACs left" not in measured  # of which nothing is known
    assert [study["total seconds"] for study in read(tmp_path / "lc_cpu_studies.csv")] == ["3.25"]


def test_the_page_has_a_line_for_each_published_row_and_claim(tmp_path: Path) -> None:
    results.write_paper(tables(tmp_path / "tables"), read_protocol("lc", "cpu"), tmp_path)
    page = results.index(tmp_path)
    assert "| [lc_cpu] toolkit | toolkit/low_rank: test error (%) | not available | 2.561 ± 0.125 | 2 |" in page
    assert "| [lc_cpu] | claims/9: Untested. | – | – | 0 | not measured: not among the experiments |" in page
    assert "1 PASS, 1 not comparable" in page


def test_the_page_that_is_stored_is_the_one_of_the_stored_figures() -> None:
    assert (ROOT / "docs/results/index.md").read_text(encoding="utf-8") == results.index(ROOT / "docs/results")
