"""Whatever a name holds, it is text: in LaTeX, Markdown, CSV, pictures and pages."""

import re
import sys
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from cases import case
from fake_runs import config, drawn, fake_run, undrawn

from nncompress.files import write_json
from nncompress.report import report
from nncompress.report.evaluation import evaluation_tables
from nncompress.report.latex import escape
from nncompress.report.run.panels import plain
from nncompress.report.run.plots import accuracy_plot, panels_plot
from nncompress.report.style import STYLE, new_figure, save_figure
from nncompress.report.tables import Table, csv, latex, markdown
from nncompress.report.text import clean, cut
from nncompress.results.records import read_run

HOSTILE = "$a_b$ \\input{x} [1] *x* =1+1\n| \x1b[31m \u202e é 你 <b> 'q' https://me:secret@host/x"


def table(*cells: str) -> Table:
    return Table("t", HOSTILE, pd.DataFrame({HOSTILE: cells}), pd.DataFrame({HOSTILE: cells}), [HOSTILE])


def test_latex_prints_every_character_in_ascii_and_without_a_command_of_its_own() -> None:
    every = "".join(map(chr, range(32, sys.maxunicode, 7))) + "".join(map(chr, range(32, 0x3000)))
    printed = escape("".join(a for a in every if a.isprintable()))
    assert printed.isascii()
    words = r"\\(?:textbackslash|textasciitilde|textasciicircum|char34|ldots|ss|[LlOo]|AE|ae|OE|oe)\{\}"
    own = rf"""{words}|\\[&%$#_{{}}]|\\[`'^~=."ruvcH](?={{)|\$[^$]*\$"""
    assert not re.search(r"[\\&%$#_~^<>|\"]", re.sub(own, "", printed))


def test_latex_writes_letters_of_mathematics_and_accents() -> None:
    assert escape("‖λ‖ − μ, L₀ é Ł 你") == r"$\|$$\lambda$$\|$ $-$ $\mu$, L$_{0}$ \'{e} \L{} U+4F60"
    assert escape("a--b ''c'' ?`") == "a-{}-b '{}'c'{}' ?{}`"


def test_a_row_of_latex_begins_with_no_argument_of_the_row_before() -> None:
    body = latex(table("[1cm]", "* x", " [y", "z")).splitlines()
    rows = [line for line in body if line.endswith(r"\\")]
    assert rows[1:] == [r"{}[1cm] \\", r"{}* x \\", r"{} [y \\", r"z \\"]


def test_a_table_has_a_row_a_line_whatever_its_cells_hold() -> None:
    shown = pd.DataFrame({"a": ["b", "c"]})
    hostile, plainer = table(HOSTILE, "b"), Table("t", "t", shown, shown, ["n"])
    for form in (csv, markdown, latex):
        with case(form=form.__name__):
            text = form(hostile)
            assert len(text.splitlines()) == len(form(plainer).splitlines())
            assert not set(text) & {"\x1b", "\u202e"}
            assert "secret" not in text


def test_no_text_of_a_csv_file_is_a_formula_and_numbers_stay_numbers() -> None:
    cells = ["=1+1", "+1", "-1", "@x", "\tx", -1, -0.5, True, None, "a=1"]
    raw = pd.DataFrame({"-k": pd.Series(cells, dtype=object), "n": -1.5})
    text = csv(Table("t", "t", raw, raw)).splitlines()
    assert [line.split(",")[0] for line in text] == [
        *("'-k", "'=1+1", "'+1", "'-1", "'@x", "\\tx", "-1", "-0.5", "True", "", "a=1")
    ]
    assert text[1].endswith(",-1.5")


def test_texts_on_record_are_cleaned_at_any_depth() -> None:
    assert clean({"a\n": ["ftp://u:p@h", {"b": "\x1b"}], "n": 1.5}) == {
        "a\\n": ["ftp://***@h", {"b": "\\x1b"}],
        "n": 1.5,
    }


def test_a_text_that_is_too_long_keeps_its_beginning_and_its_end() -> None:
    assert cut("abcdefghij", 10) == "abcdefghij"
    assert cut("abcdefghijk", 7) == "abcd…jk"
    assert len(cut("a" * 500, 90)) == 90


def test_names_are_drawn_as_they_are_and_fit(tmp_path: Path) -> None:
    hostile = clean(HOSTILE) + "x" * 5000
    rows = read_run(fake_run(tmp_path / "run", n=3)).rows
    panel = {"label": hostile, "lines": {"gap": hostile, "objective": "$"}, "log": True, "parts": None}
    plot = {"name": "x", "title": hostile, "panels": [panel], "first": 0}
    with matplotlib.rc_context(STYLE):
        own, other = panels_plot(rows, hostile, plot), new_figure(6, 4, hostile)
        axes = other.add_subplot(xlabel=hostile, title=hostile)
        axes.plot([0, 1], [0, 1], label=hostile)
        other.legend(loc="outside lower center")
    assert own is not None
    for figure in (own, other):
        (png, svg) = save_figure(figure, tmp_path, "x")
        assert "$a_b$ \\input{x}" in svg.read_text()
        assert "x" * 100 not in svg.read_text()
        assert png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_picture_is_a_whole_png_of_its_pixels(tmp_path: Path) -> None:
    from PIL import Image

    figure = accuracy_plot(read_run(fake_run(tmp_path / "run", n=3)).rows, "Accuracy")
    assert figure is not None
    with Image.open(save_figure(figure, tmp_path, "x")[0]) as image:
        image.load()
        assert (image.size, image.mode) == ((1650, 690), "RGBA")
        assert len(image.getcolors(100_000) or ()) > 50


def test_the_panels_of_a_run_stand_apart_and_within_the_figure(tmp_path: Path) -> None:
    figure = accuracy_plot(read_run(fake_run(tmp_path / "run", n=3)).rows, "Accuracy")
    assert figure is not None
    drawn(figure)
    left, right = (axes.get_position() for axes in figure.axes)
    assert 0.03 < left.x0 < left.x1 < right.x0 < right.x1 <= 1
    assert 0.1 < left.y0 < left.y1 < 0.95
    assert left.width == pytest.approx(right.width)


def test_ticks_are_labelled_with_the_decimals_they_need() -> None:
    assert plain([0.0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert plain([-10.0, 0.0, 10.0]) == ["−10", "0", "10"]
    assert plain([0.0, 2e-7]) == ["0", "2×10⁻⁷"]
    assert plain([]) == []


def test_a_hostile_run_is_reported_without_anything_to_obey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undrawn(monkeypatch)
    folder = fake_run(tmp_path / "s" / "\x1b[31m$x\n[", config(dataset=HOSTILE), n=2)
    fake_run(tmp_path / "s" / "1", config(dataset="=cmd()"), n=2, status="failed", reason=HOSTILE)
    assert report([folder, tmp_path / "s"], html=True)[1] == []
    for path in (tmp_path / "s").rglob("*.*"):
        if path.suffix in (".md", ".tex", ".csv", ".html"):
            text = path.read_text()
            assert not set(text) & {"\x1b", "\u202e"}
            assert "secret" not in text
            assert "<b>" not in text or path.suffix in (".md", ".csv")


def test_what_a_page_shows_is_what_was_drawn_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undrawn(monkeypatch)
    folder = fake_run(tmp_path / "run", n=2)
    report([folder])
    (folder / "plots/rate.svg").write_text("<svg onload='alert(1)'>")
    (folder / "plots/more.svg").write_text("<svg onload='alert(1)'>")
    write_json(folder / "report.json", {"digest": "x", "files": {"plots/rate.svg": 23, "report.html": 1}})
    report([folder], html=True)
    page = (folder / "report.html").read_text()
    assert page.count("<img") == 4
    assert "<svg" not in page
    assert "PHN2ZyBvbmxvYWQ" not in page


def test_the_tables_of_an_evaluation_are_cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr("nncompress.report.evaluation.evaluation_table", seen.append)
    evaluation_tables({"artefact": "a\n", "latency": [], "ways": []})
    assert seen == [{"artefact": "a\\n", "latency": [], "ways": []}]
