"""The report in a real browser: layout, keyboard, light and dark, print, size; skipped without Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from pipeline.cli.command import main
from pipeline.config import PrepareConfig
from pipeline.job.prepare import prepare
from pipeline.sets.load import open_splits, read_manifest
from pipeline.types import ROW_SCHEMA, row_features
from pipeline.view.report import load_builder, write_report
from tests.chromium import Browser, open_browser
from tests.conftest import write_lines

MARKUP = "<script>document.title='owned'</script>"
LONG = "x" * 400
MANY_ROWS = 100_000


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(
    tmp_path_factory: pytest.TempPathFactory, bundled_examples: Path, bundled_tokenizer: Path
) -> Path:
    """A report with everything in it: flags, rejects, shared contexts, markup and endless words."""
    folder = tmp_path_factory.mktemp("page")
    rows: list[dict[str, Any] | str] = [
        {
            "id": f"{number}-{LONG}",
            "context": f"<|im_start|>user\n{MARKUP} {LONG * 8}<|im_end|>\n<|im_start|>assistant\n",
            "continuation": f"answer {number} {MARKUP} {LONG}",
            "memories": [MARKUP, LONG, f"memory {number:02}"],
            "reason": f"{MARKUP} {LONG}",
        }
        for number in range(12)
    ]
    rejects = ["{", '{"id": "no context"}', f'{{"id": "{LONG}", "context": 5, "continuation": 5}}']
    written = write_lines(folder / f"{MARKUP.replace('/', '')}.jsonl", [*rows, *rejects])
    config = PrepareConfig(
        input=(str(written), str(bundled_examples)),
        tokenizer=str(bundled_tokenizer),
        output=str(folder / "set"),
        max_len=1000,
        max_reject_rate=1.0,
        num_proc=1,
    )
    return write_page(prepare(config).output)


def write_page(folder: Path) -> Path:
    manifest = read_manifest(folder)
    target = folder.with_suffix(".html")
    write_report(folder, manifest, target, load_builder(manifest))
    return target


def tab_to(browser: Browser, selector: str) -> None:
    """Go on with the tabulator until an element of ``selector`` has the focus."""
    for _ in range(200):
        browser.press("Tab")
        if browser.evaluate(f"document.activeElement.matches({selector!r})"):
            return
    pytest.fail(f"no tabulator reaches {selector}")


COLUMN = """(place) => [...document.activeElement.closest('table').tBodies[0].rows]
    .map(row => row.cells[document.activeElement.closest('th').cellIndex].textContent)"""


def test_the_page_opens_without_complaint_and_asks_for_nothing(
    browser: Browser, page: Path
) -> None:
    browser.open(page)
    assert browser.complaints == []
    assert browser.requested == [page.resolve().as_uri()]


def test_text_of_the_data_is_text(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.evaluate("document.title") == "set: report"
    assert browser.evaluate("document.scripts.length") == 1
    assert browser.evaluate("document.body.textContent").count(MARKUP) > 12


def test_a_script_that_got_into_the_page_would_not_run(
    browser: Browser, page: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text("utf-8").replace("<main>", f"<main>{MARKUP}"), "utf-8")
    browser.open(broken)
    assert browser.evaluate("document.title") == "set: report"
    assert "Content Security Policy" in browser.complaints[0]


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_the_page_is_never_wider_than_the_window(browser: Browser, page: Path, width: int) -> None:
    browser.resize(width)
    browser.open(page)
    browser.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    # What is wider than the window scrolls in a frame of its own.
    outside = browser.evaluate(
        f"""[...document.querySelectorAll('body *')].filter(each =>
            each.getBoundingClientRect().right > {width} && !each.closest('.wide'))
            .map(each => each.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    browser.resize(1280)


def test_a_table_is_sorted_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.evaluate("document.querySelector('#sources').scrollIntoView()")
    browser.evaluate("document.querySelector('#sources th button').focus()")
    browser.press("Tab")
    for order in ("descending", "ascending", "descending"):
        browser.press("Enter")
        header = "document.activeElement.closest('th').getAttribute('aria-sort')"
        assert browser.evaluate(header) == order
        numbers = [int(text.replace(",", "")) for text in browser.evaluate(f"({COLUMN})()")]
        assert len(set(numbers)) > 1
        assert numbers == sorted(numbers, reverse=order == "descending")


def test_words_are_sorted_as_words_and_one_column_at_a_time(browser: Browser, page: Path) -> None:
    browser.open(page)
    tab_to(browser, "#template th button")
    browser.press(" ")
    names = browser.evaluate(f"({COLUMN})()")
    assert len(names) > 10
    assert names == sorted(names)
    browser.press("Tab")
    browser.press("Enter")
    assert browser.evaluate("document.querySelectorAll('#template th[aria-sort]').length") == 1


def test_a_table_is_filtered_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    tab_to(browser, "#template input[type=search]")
    browser.type("end_of_turn stops")
    shown = browser.evaluate(
        "[...document.querySelectorAll('#template tbody tr')].filter(row => !row.hidden)"
        ".map(row => row.cells[0].textContent)"
    )
    assert "end_of_turn_stops" in shown
    assert 0 < len(shown) < 5
    status = browser.evaluate("document.querySelector('#template [role=status]').textContent")
    assert status.startswith(f"{len(shown)} of ")
    for _ in range(len("end_of_turn stops")):
        browser.press("Backspace")
    hidden = "document.querySelectorAll('#template tr[hidden]').length"
    assert browser.evaluate(hidden) == 0


def test_rows_are_filtered_opened_and_their_white_space_shown_by_keyboard(
    browser: Browser, page: Path
) -> None:
    browser.open(page)
    before = browser.evaluate("document.querySelector('.row .tokens').textContent")
    tab_to(browser, "#rows input[type=search]")
    browser.type("raw_cut")
    shown = "[...document.querySelectorAll('#rows details')].filter(row => !row.hidden).length"
    assert 0 < browser.evaluate(shown) < 30
    tab_to(browser, "#rows .tools button")
    browser.press("Enter")
    marked = browser.evaluate("document.querySelector('.row .tokens').textContent")
    assert "·" in marked
    assert "⏎\n" in marked
    browser.press("Enter")
    assert browser.evaluate("document.querySelector('.row .tokens').textContent") == before
    browser.press("Tab")
    browser.press(" ")
    assert browser.evaluate("document.querySelectorAll('#rows details:not([open])').length") == 0


def test_a_row_opens_where_its_continuation_begins(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.evaluate("document.querySelector('.row').open = true")
    inside = browser.evaluate(
        """(() => { const tokens = document.querySelector('.row .tokens').getBoundingClientRect();
            const mark = document.querySelector('.row mark').getBoundingClientRect();
            return mark.top >= tokens.top && mark.bottom <= tokens.bottom; })()"""
    )
    assert inside


CONTRAST = """(selector) => {
    const light = (colour) => {
        const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map((part) => {
            const share = part / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    };
    const element = document.querySelector(selector);
    let behind = element;
    while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
    const shades = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(light);
    return (Math.max(...shades) + 0.05) / (Math.min(...shades) + 0.05);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(browser: Browser, page: Path, scheme: str) -> None:
    browser.prefer(scheme)
    browser.open(page)
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    for selector in (
        "h1",
        "p",
        ".kind",
        "nav a",
        "caption",
        ".verdict",
        ".why",
        ".flag",
        ".context i",
        ".context i:nth-child(even)",
        ".answer i",
        ".answer i:nth-child(even)",
        ".tokens b",
        ".tokens u",
    ):
        # WCAG 2.2, 1.4.3: at least 4.5 to 1.
        assert browser.evaluate(f"({CONTRAST})({selector!r})") >= 4.5, (selector, scheme)
    # Pictures take the colour of the page's text.
    assert browser.evaluate(
        "getComputedStyle(document.querySelector('svg text')).fill"
        " === getComputedStyle(document.body).color"
    )
    browser.prefer("light")


def test_paper_shows_all_rows_and_no_controls(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.prefer("dark")
    browser.open(page)
    assert browser.print(tmp_path / "page.pdf").stat().st_size > 10_000
    assert browser.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    browser.call("Emulation.setEmulatedMedia", media="print")
    style = "getComputedStyle(document.{}).{}"
    assert browser.evaluate(style.format("querySelector('.tools')", "display")) == "none"
    assert browser.evaluate(style.format("body", "backgroundColor")) == "rgb(255, 255, 255)"
    browser.call("Emulation.setEmulatedMedia", media="")
    browser.prefer("light")


def test_rows_on_a_page_of_their_own_show_their_white_space(
    browser: Browser, quickstart_set: Path, tmp_path: Path
) -> None:
    target = tmp_path / "rows.html"
    assert main(["inspect", str(quickstart_set), "--whitespace", "--html", str(target)]) == 0
    browser.resize(320)
    browser.open(target)
    assert browser.complaints == []
    assert "⏎\n" in browser.evaluate("document.querySelector('.row .tokens').textContent")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 320
    browser.resize(1280)


def test_the_report_of_a_large_set_is_small_and_opens_at_once(
    browser: Browser, quickstart_set: Path, tmp_path: Path
) -> None:
    target = write_page(write_large_set(quickstart_set, tmp_path / "large"))
    assert target.stat().st_size < 5_000_000
    assert browser.open(target) < 2
    assert browser.complaints == []


def write_large_set(small: Path, folder: Path) -> Path:
    """Write a set of `MANY_ROWS` rows, each with a source and memories of its own."""
    table: pa.Table = open_splits(small)["train"].with_format("arrow")[:]
    times = -(-MANY_ROWS // table.num_rows)
    rows = pa.concat_tables([table] * times).slice(0, MANY_ROWS)
    names = {
        "source": [f"file-{number}.jsonl:1" for number in range(MANY_ROWS)],
        "memories": [[f"memory {number} {LONG}"] for number in range(MANY_ROWS)],
    }
    for name, values in names.items():
        place = rows.column_names.index(name)
        rows = rows.set_column(place, name, pa.array(values, ROW_SCHEMA.field(name).type))
    split = datasets.Dataset(rows).cast(row_features())
    datasets.DatasetDict({"train": split}).save_to_disk(str(folder))
    (folder / "manifest.json").write_bytes((small / "manifest.json").read_bytes())
    return folder
