"""The report: its figures are those of the rows, it needs nothing else, nothing of the data acts in it."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_dataset, load_from_disk

from pipeline.cli.command import main
from pipeline.config import PrepareConfig
from pipeline.job.prepare import prepare
from pipeline.sets.figures import SetFigures
from pipeline.sets.load import load, read_manifest
from pipeline.sets.meanings import FLAG_MEANINGS, REJECT_REMEDIES
from pipeline.types import FLAGS, REJECT_CODES
from pipeline.view.report import load_builder, read_rejects, write_report
from tests.conftest import write_lines

HOSTILE = (
    "<script>document.title='owned'</script>",
    "</script><img src=x onerror=alert(1)>",
    "\"'`&amp; {{ 7 * 7 }} {% raw %}",
    "\x1b[31mred\x1b[0m",
    "a\u202eevil\u2066",
    "one \\ lone \\u0041 backslash\\",
    "null \x00 and \x7f",
)


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self._caption: list[str] = []
        self._into: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "caption":
            self._caption = self._into = [""]
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
            self._into = self._rows[-1]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("caption", "td", "th"):
            self._into = None
        elif tag == "table":
            self.tables[self._caption[0]] = self._rows
            self._rows = []

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into[-1] += data


def write_page(folder: Path, target: Path) -> str:
    manifest = read_manifest(folder)
    write_report(folder, manifest, target, load_builder(manifest))
    return target.read_text("utf-8")


@pytest.fixture(scope="module")
def page(quickstart_set: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of the quickstart's set."""
    return write_page(quickstart_set, tmp_path_factory.mktemp("report") / "report.html")


# ---- what it says


def test_counts_add_up_and_say_so(page: str, quickstart_set: Path) -> None:
    counts = read_manifest(quickstart_set)["counts"]
    assert f"{counts['lines']:,} lines = {counts['rows']:,} rows + {counts['rejects']:,}" in page
    tokens = counts["tokens"]
    assert f"{tokens['context']:,} context + {tokens['continuation']:,} continuation" in page
    assert page.count("adds up") == 5
    assert "does not add up" not in page


def test_a_manifest_that_is_not_of_its_rows_does_not_add_up(
    quickstart_set: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(quickstart_set)
    counts = manifest["counts"]
    counts |= {"lines": counts["lines"] + 1, "points": counts["points"] + 1}
    counts["rows"] += 1
    counts["rows_as_served"] += 1
    target = tmp_path / "report.html"
    write_report(quickstart_set, manifest, target, None)
    verdicts = re.findall(r'<li class="(\w+)">.*?</span> (.*?)</li>', target.read_text("utf-8"))
    assert [words.split(" = ")[0] for verdict, words in verdicts if verdict == "fails"] == [
        f"{counts['rows']:,} rows"
    ]


def test_every_part_of_the_issue_is_there(page: str, quickstart_set: Path) -> None:
    tables = Page(page).tables
    assert set(tables) == {
        "Tokens of each part",
        "What each max_len would cost",
        "Share of padding",
        "Shared contexts",
        "Rows by flag",
        "Rows by file",
        "Rows by memory",
        "Tokenizer and template",
        "Seal",
    }
    assert page.count("<svg ") == 6
    facts = {row[0]: row[1] for row in tables["Tokenizer and template"][1:]}
    assert facts["end_of_turn"] == "<|im_end|>"
    seal = {row[0]: row[1] for row in tables["Seal"][1:]}
    manifest = read_manifest(quickstart_set)
    assert seal["settings.max_len"] == str(manifest["seal"]["settings"]["max_len"])
    assert seal["key"] == manifest["seal"]["key"]
    assert manifest["digest"] in page
    assert "context-frozen prepare --input" in page
    assert page.count('<details class="row"') == min(30, manifest["counts"]["rows"])


def test_tables_hold_the_figures_of_the_rows(page: str, quickstart_set: Path) -> None:
    rows = load(quickstart_set)["train"]
    tables = Page(page).tables
    memories: dict[str, int] = {}
    for names in rows["memories"]:
        for name in names:
            memories[name] = memories.get(name, 0) + 1
    found = {row[0]: int(row[1].replace(",", "")) for row in tables["Rows by memory"][1:]}
    assert found == memories
    by_flag = {row[0]: int(row[1]) for row in tables["Rows by flag"][1:]}
    assert by_flag == read_manifest(quickstart_set)["counts"]["by_flag"]
    sharing = {row[0]: (int(row[1]), int(row[2])) for row in tables["Shared contexts"][1:]}
    assert sum(contexts for contexts, _ in sharing.values()) == len(set(rows["context_hash"]))
    assert sum(number for _, number in sharing.values()) == len(rows)
    continuations = np.subtract(rows["total_len"], rows["context_len"])
    parts = {row[0]: row[1:] for row in tables["Tokens of each part"][1:]}
    assert parts["continuation"][0] == str(continuations.min())
    assert parts["continuation"][3] == str(continuations.max())


def test_what_datasets_keeps_beside_the_rows_is_no_part_of_the_figures(
    quickstart_set: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(quickstart_set, folder)
    rows = load_from_disk(str(folder))["train"]
    rows.map(lambda row: {"twice": 2 * row["total_len"]}, remove_columns=rows.column_names)
    assert list((folder / "train").glob("cache-*.arrow"))
    found, expected = SetFigures(folder), SetFigures(quickstart_set)
    assert found.table.equals(expected.table)
    read = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert len(read["train"]) == len(rows)


def test_padding_is_what_batches_would_have(quickstart_set: Path) -> None:
    lengths = sorted(load(quickstart_set)["train"]["total_len"])
    costs = {cost.batch_size: cost for cost in SetFigures(quickstart_set).padding()}
    cells = sum(
        len(batch) * max(batch)
        for batch in (lengths[at : at + 4] for at in range(0, len(lengths), 4))
    )
    assert costs[4].of_like_length == pytest.approx(1 - sum(lengths) / cells)
    assert costs[2].random > costs[2].of_like_length


def test_the_curve_says_what_each_max_len_cuts(quickstart_set: Path) -> None:
    figures = SetFigures(quickstart_set)
    curve = figures.cut_curve()
    for max_len, rows, tokens in zip(*curve, strict=True):
        excess = np.clip(figures.total - max_len, 0, None)
        assert rows == pytest.approx((excess > 0).mean())
        assert tokens == pytest.approx(excess.sum() / figures.total.sum())
    assert curve.rows[-1] == 0


def test_each_flag_and_code_has_its_meaning() -> None:
    assert set(FLAG_MEANINGS) == FLAGS
    assert set(REJECT_REMEDIES) == REJECT_CODES


# ---- the file


def test_the_page_needs_nothing_else(page: str) -> None:
    for tag, attributes in Page(page).elements:
        for name in ("src", "href", "action", "srcset", "xlink:href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:,")), (tag, value)
    assert not re.search(r"@import|url\((?!#)|https?://", page)


def test_the_same_set_gives_the_same_bytes(page: str, quickstart_set: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(quickstart_set, tmp_path / "moved" / "away")
    assert write_page(elsewhere, tmp_path / "again.html") == page


def test_the_manifest_needs_not_be_there_yet(
    page: str, quickstart_set: Path, tmp_path: Path
) -> None:
    staging = shutil.copytree(quickstart_set, tmp_path / "staging")
    manifest = read_manifest(staging)
    (staging / "manifest.json").unlink()
    del manifest["files"]
    write_report(staging, manifest, tmp_path / "page.html", load_builder(manifest))
    assert (tmp_path / "page.html").read_text("utf-8") == page


def test_ids_in_pictures_are_not_shared(page: str) -> None:
    ids = [attributes["id"] for _, attributes in Page(page).elements if "id" in attributes]
    assert len(ids) == len(set(ids))


# ---- data that would act


@pytest.fixture(scope="module")
def hostile_set(tmp_path_factory: pytest.TempPathFactory, bundled_tokenizer: Path) -> Path:
    """A set whose texts, ids, memories, reasons, file name and rejects are all markup."""
    folder = tmp_path_factory.mktemp("hostile")
    rows: list[dict[str, Any] | str] = [
        {
            "id": f"{number}{text}",
            "messages": [{"role": "user", "content": f"hello {text}"}],
            "continuation": f"answer {text}",
            "memories": [text],
            "reason": text,
        }
        for number, text in enumerate(HOSTILE)
    ]
    rejects = [json.dumps({"id": f"bad{text}", "messages": text}) for text in HOSTILE]
    rejects += [
        "<b>not json</b>",
        '{"id": "half \\ud800", "context": "x\\ud800", "continuation": "y"}',
    ]
    name = """<b onclick="x">'&.jsonl"""
    config = PrepareConfig(
        input=(str(write_lines(folder / name, [*rows, *rejects])),),
        tokenizer=str(bundled_tokenizer),
        output=str(folder / "<i>set"),
        max_reject_rate=1.0,
        num_proc=1,
    )
    return prepare(config).output


def test_nothing_of_the_data_is_an_element(hostile_set: Path, tmp_path: Path) -> None:
    text = write_page(hostile_set, tmp_path / "report.html")
    elements = Page(text).elements
    names = [tag for tag, _ in elements]
    assert names.count("script") == 1
    assert "img" not in names
    assert not any(name.startswith("on") for _, attributes in elements for name in attributes)
    assert all(char.isprintable() or char in "\n\t" for char in text)
    shown = html.unescape(re.sub(r"<[^>]*>", "", text))
    for words in (
        HOSTILE[0],
        HOSTILE[1],
        HOSTILE[2],
        "\\x1b[31mred\\x1b[0m",
        "a\\u202eevil\\u2066",
        "one \\ lone \\u0041 backslash\\",
    ):
        # In tokens, in memories and reasons, in ids.
        assert shown.count(words) >= 4, words


def test_rejects_are_shown_with_their_first_examples(hostile_set: Path, tmp_path: Path) -> None:
    tables = Page(write_page(hostile_set, tmp_path / "report.html")).tables
    counts = read_manifest(hostile_set)["counts"]
    found = {row[0]: int(row[1]) for row in tables["Rejects by code"][1:]}
    assert found == counts["by_code"]
    shown = [row[0] for row in tables["First rejects of each code"][1:]]
    assert {code: shown.count(code) for code in found} == {
        code: min(3, number) for code, number in found.items()
    }


def test_a_set_without_its_rejects_has_a_report(hostile_set: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(hostile_set, tmp_path / "set")
    (folder / "rejects.jsonl").unlink()
    tables = Page(write_page(folder, tmp_path / "report.html")).tables
    assert len(tables["Rejects by code"]) > 1
    assert len(tables["First rejects of each code"]) == 1


def test_a_report_for_others_has_figures_and_nothing_that_somebody_said(
    hostile_set: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(hostile_set)
    target = tmp_path / "report.html"
    write_report(hostile_set, manifest, target, load_builder(manifest), with_provenance=False)
    text = target.read_text("utf-8")
    body = text[text.index("<main>") : text.index("</main>")]
    shown = html.unescape(re.sub(r"<[^>]*>", "", body))
    for words in (*HOSTILE[:3], "answer <", "not json", ".jsonl:"):
        assert words not in shown, words
    tables = Page(text).tables
    assert {"Rejects by code", "Tokens of each part", "Tokenizer and template"} <= set(tables)
    assert not {"Rows by file", "Rows by memory", "First rejects of each code"} & set(tables)


# ---- other sets


def test_a_set_for_training_has_a_report(
    make_config: Callable[..., PrepareConfig], bundled_examples: Path, tmp_path: Path
) -> None:
    folder = prepare(make_config(bundled_examples, columns="train", max_reject_rate=1.0)).output
    text = write_page(folder, tmp_path / "report.html")
    tables = Page(text).tables
    assert "Rows by file" not in tables
    assert "Shared contexts" not in tables
    assert "keep no flags" in text
    assert text.count('<details class="row"') == 30
    assert "does not add up" not in text


def test_a_set_of_no_rows_has_a_report(
    make_config: Callable[..., PrepareConfig], tmp_path: Path
) -> None:
    lines = write_lines(tmp_path / "bad.jsonl", ["nonsense"])
    folder = prepare(make_config(lines, max_reject_rate=1.0)).output
    text = write_page(folder, tmp_path / "report.html")
    assert "No rows, so there are no lengths" in text
    assert "<svg" not in text
    assert "bad.jsonl:1" in text


def test_a_set_of_one_row_has_a_report(
    make_config: Callable[..., PrepareConfig], tmp_path: Path
) -> None:
    example = {"id": "a", "context": "2+2=", "continuation": "4"}
    folder = prepare(make_config(write_lines(tmp_path / "one.jsonl", [example]))).output
    text = write_page(folder, tmp_path / "report.html")
    assert text.count("<svg ") == 5
    assert text.count('<details class="row"') == 1


def test_splits_are_counted_apart(
    make_config: Callable[..., PrepareConfig], bundled_examples: Path, tmp_path: Path
) -> None:
    config = make_config(bundled_examples, validation_fraction=0.3, max_reject_rate=1.0)
    folder = prepare(config).output
    text = write_page(folder, tmp_path / "report.html")
    splits = read_manifest(folder)["counts"]["rows_by_split"]
    assert f"{splits['train']} train + {splits['validation']} validation" in text
    assert "validation row " in text


# ---- the command


def test_the_command_writes_the_page_beside_its_tables(
    page: str, quickstart_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "r.html"
    assert main(["report", str(quickstart_set), "--html", str(target)]) == 0
    shown = capsys.readouterr().out
    assert "median" in shown
    assert str(target) in shown.replace("\n", "")
    assert target.read_text("utf-8") == page


def test_json_stays_json_where_a_page_is_written(
    quickstart_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "r.html"
    assert main(["report", str(quickstart_set), "--json", "--html", str(target)]) == 0
    assert json.loads(capsys.readouterr().out)["set"] == str(quickstart_set)
    assert target.exists()


def test_a_tokenizer_that_is_gone_leaves_a_page_without_text(
    quickstart_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(quickstart_set, tmp_path / "set")
    manifest = read_manifest(folder)
    manifest["config"]["tokenizer"] = "/no/such/<tokenizer>"
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    target = tmp_path / "r.html"
    assert main(["report", str(folder), "--html", str(target)]) == 0
    text = target.read_text("utf-8")
    assert "/no/such/&lt;tokenizer&gt;" in text
    assert '<details class="row"' not in text
    again = ["report", str(folder), "--html", str(target), "--tokenizer", "/not/here"]
    assert main(again) == 2
    assert "/not/here" in capsys.readouterr().err


def test_where_the_tokenizer_lies_now_can_be_said(
    quickstart_set: Path, bundled_tokenizer: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(quickstart_set, tmp_path / "set")
    manifest = read_manifest(folder)
    manifest["config"]["tokenizer"] = "/no/such/tokenizer"
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    target = tmp_path / "r.html"
    args = ["report", str(folder), "--html", str(target), "--tokenizer", str(bundled_tokenizer)]
    assert main(args) == 0
    assert '<details class="row"' in target.read_text("utf-8")


def test_code_that_comes_with_a_tokenizer_is_never_run(quickstart_set: Path) -> None:
    manifest = read_manifest(quickstart_set)
    manifest["config"]["trust_remote_code"] = True
    seen: list[bool] = []

    class Stop(Exception):
        pass

    def note(config: PrepareConfig) -> None:
        seen.append(config.trust_remote_code)
        raise Stop

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipeline.rows.builder.RowBuilder", note)
        with pytest.raises(Stop):
            load_builder(manifest)
    assert seen == [False]


def test_lines_of_others_that_are_no_rejects_are_left_out_of_the_page(tmp_path: Path) -> None:
    path = tmp_path / "rejects.jsonl"
    good = b'{"file": "a.jsonl", "line": 1, "code": "bad_json", "reason": "r"}\n'
    mark = b'"code": "bad_json"'
    broken = [b"{" + mark + b", cut\n", b"[" * 100_000 + mark + b"\n", b"\xff{" + mark + b"}\n"]
    path.write_bytes(b"".join([*broken, b"[" + mark[8:] + b"]\n", b"x" * 2**21, b"\n", good]))
    found = read_rejects({"bad_json": 1}, path, 3)
    assert [each["reason"] for each in found["bad_json"]] == ["r"]
