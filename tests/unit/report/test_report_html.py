"""The page of a report: all in one file, nothing fetched, everything escaped, tables that a browser sorts."""

import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cases import case
from fake_runs import config, fake_run, undrawn

from nncompress.cli.main import main
from nncompress.files import write_json
from nncompress.report import report
from nncompress.report.html.page import _table, size_of
from nncompress.report.tables import Table

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
)  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ranks 4, 8 and 16 with two seeds each, one that failed at once, a killed one; the page, no plots of jobs."""
    folder = tmp_path_factory.mktemp("sweep")
    said = {"said": EVIL}
    for job, (rank, seed) in enumerate(product((8, 4, 16), (10, 20))):
        fake_run(folder / str(job), config(seed, rank) | said, n=8)
    fake_run(folder / "6", config(10, 32) | said, n=2, status="failed")
    ended = {"status": "failed", "reason": f"no memory {EVIL}", "traceback": f"MemoryError: {EVIL}", "step": 2}
    write_json(folder / "6/status.json", ended)
    (folder / "6/records.jsonl").unlink()
    fake_run(folder / "7", config(20, 32) | said, n=2, status="running")
    with pytest.MonkeyPatch.context() as patch:
        undrawn(patch)
        patch.setattr("nncompress.report.write.run_plots", lambda run, folder: [])
        assert folder / "report.html" in report([folder], html=True)[0]
    return folder


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of plots are there, and empty."""
    undrawn(monkeypatch)


class Reader(HTMLParser):
    """Every tag with its attributes, and the text outside script and style."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", [""]
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self.open[-1] not in ("script", "style"):
            self.text += data


def found(reader: Reader, tag: str) -> list[dict[str, str | None]]:
    return [attributes for name, attributes in reader.tags if name == tag]


def test_the_page_of_a_sweep_has_its_tables_plots_jobs_failures_and_settings(sweep: Path) -> None:
    page = Reader(sweep / "report.html")
    ids = [tag["id"] for tag in [*found(page, "section"), *found(page, "details")]]
    assert ids == ["summary", "plots", "failures", "jobs", "settings"]
    assert "6 done1 failed1 killed" in page.text
    assert "All 8 jobs" in page.text
    assert "Not done: 2 of 8 jobs" in page.text
    assert "no memory <script>document.title" in page.text
    assert "MemoryError: <script>" in page.text
    assert "the process ended before it could tell why" in page.text
    assert "Not done: job" not in page.text
    plots = len(list((sweep / "plots").glob("*.svg")))
    assert len(found(page, "img")) == plots < 8


def test_everything_is_within_the_page_and_escaped(sweep: Path) -> None:
    page = Reader(sweep / "report.html")
    assert len(found(page, "script")) == 1
    assert all(str(image["src"]).startswith("data:image/") for image in found(page, "img"))
    assert all(image["alt"] for image in found(page, "img"))
    assert all(str(link["href"]).startswith("#") for link in found(page, "a"))
    assert [link["href"] for link in found(page, "link")] == ["data:,"]
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not re.search(r"https?://|url\(|@import", re.sub(r"base64,[^\"]*", "", (sweep / "report.html").read_text()))
    (policy,) = (tag["content"] for tag in found(page, "meta") if "http-equiv" in tag)
    assert "default-src 'none'" in str(policy)
    assert re.search(r"script-src 'sha256-[\w+/]+='$", str(policy))


def test_the_page_is_the_same_each_time_and_jobs_get_none(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nncompress.report.write.run_plots", lambda run, folder: [])
    first = (sweep / "report.html").read_bytes()
    (sweep / "report.json").unlink()
    assert report([sweep], html=True)[0][-1] == sweep / "report.html"
    assert (sweep / "report.html").read_bytes() == first
    assert not list(sweep.glob("*/report.html"))


def test_a_run_has_a_page_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fake_run(tmp_path / "run", n=8)
    write_json(folder / "environment.json", {"command": ["nncompress", "train", "a b"], "packages": {"torch": "2"}})
    assert main(["report", str(folder)]) == 0
    assert not (folder / "report.html").exists()
    assert main(["report", "--html", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "report.html")
    page = Reader(folder / "report.html")
    ids = [tag["id"] for tag in [*found(page, "section"), *found(page, "details")]]
    assert ids == ["accuracy", "plots", "compression", "convergence", "settings", "environment"]
    for words in ("nnbcd-tt_mlp-digits-tt", "nncompress train 'a b'", "packages.torch", "compression.rank"):
        assert words in page.text
    assert len(found(page, "img")) == 4


def test_a_run_that_ended_before_its_first_record_has_a_page_with_the_reason(tmp_path: Path) -> None:
    ends = [
        ("failed", f"bad {EVIL}", f"ValueError: bad {EVIL}", "bad <script"),
        ("unsupported", "no", "nncompress.errors.Unsupported: no", "no"),
        ("failed", None, None, "no reason is on record"),
        ("running", None, None, "killed, or the machine stopped"),
    ]
    for number, (status, reason, traceback, said) in enumerate(ends):
        with case(status=status, reason=reason):
            folder = tmp_path / str(number)
            folder.mkdir()
            ended = {"status": status, "reason": reason, "traceback": traceback, "step": None}
            write_json(folder / "status.json", ended)
            assert report([folder], html=True) == ([folder / "report.html"], [])
            page = Reader(folder / "report.html")
            assert said in page.text
            assert ("ValueError" in page.text) == str(traceback).startswith("ValueError")
            assert "nncompress.errors" not in page.text
            assert len(found(page, "script")) == 1


def test_a_large_plot_is_embedded_as_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nncompress.report.html.page.LARGEST_SVG", 10)
    folder = fake_run(tmp_path / "run", n=3)
    report([folder], html=True)
    sources = [str(image["src"]) for image in found(Reader(folder / "report.html"), "img")]
    assert sources
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in sources)


def test_what_a_cell_is_sorted_by() -> None:
    known = [
        ("1,234,567", 1234567.0), ("96.94 ± 0.21", 96.94), ("6.25×", 6.25), ("97.1 (step 3)", 97.1), ("−0.843", -0.843),
        ("-1", -1.0), ("1e-07", 1e-7), ("+3 %", None), ("12%", 12.0), ("–", None), ("", None), ("2 failed", None),
        ("2026-11-28", None), ("64-512-10", None), ("[512]", None), ("done", None), ("1 (8 failed)", 1.0),
    ]  # fmt: skip
    for text, size in known:
        with case(text=text):
            assert size_of(text) == size


def test_columns_of_numbers_are_known_as_such() -> None:
    shown = pd.DataFrame({"n": ["1,000", "–", "auto"], "text": ["b", "", "1"], "more": ["1", "2 failed", "3"]})
    html = _table(Table("t", "T", shown, shown))
    heads = re.findall(r'<th scope="col"( class="n")?>', html)
    assert heads == [' class="n"', ' class="n"', ' class="n"']
    assert '<td class="n" data-v="1000.0">1,000</td>' in html
    assert '<td class="n" data-v="">auto</td>' in html
    assert '<td class="n" data-v="">2 failed</td>' in html


def test_a_long_table_can_be_filtered_and_an_empty_one_is_said() -> None:
    long, empty = pd.DataFrame({"a": map(str, range(31))}), pd.DataFrame()
    assert 'type="search"' in _table(Table("t", "T", long, long))
    assert 'type="search"' not in _table(Table("t", "T", long, long.iloc[:30]))
    assert "Nothing to show." in _table(Table("t", "T", empty, empty))


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a screen, its home and profile in a temporary folder."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra [dev]")
    if CHROMIUM is None:
        pytest.skip("needs chromium or google-chrome on the path")
    own = str(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
            patch.setenv(name, own)
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS), env=dict(os.environ))
            yield browser
            browser.close()


@pytest.fixture
def page(browser: Any, sweep: Path) -> Iterator[Any]:
    """The sweep's page, opened; it must ask for nothing but itself, and complain of nothing."""
    asked: list[str] = []
    complaints: list[str] = []
    context = browser.new_context()
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    address = (sweep / "report.html").as_uri()
    page.goto(address)
    yield page
    context.close()
    assert [url for url in asked if not url.startswith("data:")] == [address]
    assert complaints == []


def column(page: Any, section: str, title: str) -> list[str]:
    """The cells under a heading, from top to bottom."""
    code = """([section, title]) => { const table = document.querySelector(section + " table");
      const at = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent === title);
      return [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[at].textContent); }"""
    return list(page.evaluate(code, [f"#{section}", title]))


def test_a_click_on_a_heading_sorts_up_then_down_with_the_empty_last(page: Any) -> None:
    head = page.locator("#summary th", has_text="rank")
    assert column(page, "summary", "rank") == ["8", "4", "16"]
    head.locator("button").click()
    assert column(page, "summary", "rank") == ["4", "8", "16"]
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    assert column(page, "summary", "rank") == ["16", "8", "4"]
    assert head.get_attribute("aria-sort") == "descending"
    accuracy = page.locator("#jobs th", has_text=re.compile("^test accuracy"))
    for up in (True, False):
        accuracy.locator("button").click()
        *values, last = column(page, "jobs", "test accuracy (%)")
        assert last == "–"
        assert len(set(values)) > 3
        assert [float(value) for value in values] == sorted(map(float, values), reverse=not up)
    assert page.locator("#summary th[aria-sort]").count() == 1


@pytest.mark.slow
def test_the_keyboard_sorts_as_the_mouse_does(page: Any) -> None:
    page.locator("#jobs th button", has_text="status").focus()
    page.keyboard.press("Enter")
    assert column(page, "jobs", "status") == ["done"] * 6 + ["failed", "killed"]
    page.keyboard.press("Space")
    assert column(page, "jobs", "status") == ["killed", "failed"] + ["done"] * 6
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "rank"


@pytest.mark.slow
def test_text_of_a_run_is_shown_and_not_run(page: Any) -> None:
    assert page.title().startswith("Sweep: nnbcd-tt_mlp-digits-tt")
    assert "<script>" in page.locator("#failures").inner_text()
    drawn = page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert drawn is True


@pytest.mark.slow
def test_settings_open_from_the_keyboard(page: Any) -> None:
    page.locator("#settings summary").focus()
    page.keyboard.press("Enter")
    assert page.locator("#settings td", has_text="compression.rank").is_visible()


@pytest.mark.slow
def test_a_page_of_many_jobs_is_filtered_dark_and_printed_light(browser: Any, tmp_path: Path) -> None:
    for job in range(40):
        status, reason = ("failed", "Out Of memory") if job == 13 else ("done", None)
        fake_run(tmp_path / "s" / str(job), config(job, 4), n=1, status=status, reason=reason)
    report([tmp_path / "s"], html=True)
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto((tmp_path / "s/report.html").as_uri())
    field = page.get_by_label("Filter: All 40 jobs")
    field.fill("FAILED 13")
    assert column(page, "jobs", "job") == ["13"]
    assert page.locator("#jobs output").inner_text() == "1 of 40 rows"
    field.fill("")
    assert len(column(page, "jobs", "job")) == 40
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 30)"
    page.emulate_media(media="print")
    assert page.locator("#jobs .tools").is_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    context.close()
