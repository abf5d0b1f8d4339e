"""The saved folder opens in the readers of datasets, old and new, whole and streamed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import (
    Dataset,
    IterableDataset,
    List,
    Value,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

# The oldest release that a trainer pins (LLaMA-Factory of August 2026).
OLDEST = "4.0.0"
READ_WITH_OLDEST = """
import json, sys
import datasets
assert datasets.__version__ == sys.argv[3], datasets.__version__
opened = {
    "load_from_disk": datasets.load_from_disk(sys.argv[1]),
    "load_dataset": datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2]),
}
print(json.dumps({
    way: {
        split: [sorted(rows.column_names), rows["input_ids"][:], rows["labels"][:]]
        for split, rows in splits.items()
    }
    for way, splits in opened.items()
}))
"""


@pytest.mark.parametrize("folder", ["quickstart_set", "train_columns_set"])
def test_load_dataset_reads_what_load_from_disk_reads(
    folder: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = str(request.getfixturevalue(folder))
    mapped, copied = load_from_disk(path), load_dataset(path, cache_dir=str(tmp_path))
    assert set(copied) == set(mapped)
    for split, rows in mapped.items():
        assert copied[split].features == rows.features
        assert list(copied[split]) == list(rows)


def test_the_card_names_the_files_of_each_split(train_columns_set: Path) -> None:
    # Without it datasets 4.0.0 reads the state.json beside a single shard in the shard's place.
    builder = load_dataset_builder(str(train_columns_set))
    assert builder.config.data_files is not None
    assert {
        str(split): [Path(file).suffix for file in files]
        for split, files in builder.config.data_files.items()
    } == {"train": [".arrow"], "validation": [".arrow"]}
    card = (train_columns_set / "README.md").read_text()
    assert "\n  - split: validation\n    path: validation/data-*.arrow\n" in card


@pytest.mark.parametrize("folder", ["quickstart_set", "train_columns_set"])
def test_every_column_is_of_a_kind_that_the_oldest_reader_knows(
    folder: str, request: pytest.FixtureRequest
) -> None:
    for rows in load_from_disk(str(request.getfixturevalue(folder))).values():
        for feature in rows.features.values():
            inner = feature.feature if isinstance(feature, List) else feature
            assert isinstance(inner, Value)


def test_no_format_is_left_on_the_saved_rows(rows: Dataset) -> None:
    # A torch format would be remembered by load_from_disk and surprise collators.
    assert rows.format["type"] is None
    assert isinstance(rows[0]["input_ids"], list)


def test_streaming_over_ranks_and_workers_gives_each_row_once(rows: Dataset) -> None:
    stream = rows.to_iterable_dataset(num_shards=8)
    seen: list[str] = []
    for rank in range(2):
        share = split_dataset_by_node(stream, rank=rank, world_size=2)
        assert isinstance(share, IterableDataset)
        assert share.num_shards == 4
        seen += [row["id"] for row in DataLoader(share, batch_size=None, num_workers=2)]
    assert sorted(seen) == sorted(rows["id"][:])


def test_a_streamed_folder_has_the_saved_rows(
    quickstart_set: Path, rows: Dataset, tmp_path: Path
) -> None:
    stream = load_dataset(
        str(quickstart_set), split="train", streaming=True, cache_dir=str(tmp_path)
    )
    assert list(stream) == list(rows)


def test_a_stream_goes_on_where_its_state_was_taken(rows: Dataset) -> None:
    stream = rows.to_iterable_dataset(num_shards=4)
    iterator = iter(stream)
    head = [next(iterator)["id"] for _ in range(30)]
    state = stream.state_dict()
    again = rows.to_iterable_dataset(num_shards=4)
    again.load_state_dict(state)
    assert head + [row["id"] for row in again] == rows["id"][:]


@pytest.mark.nightly
def test_the_oldest_release_opens_the_set(
    quickstart_set: Path, train_columns_set: Path, tmp_path: Path
) -> None:
    """Installs that release into an environment of its own, unless DATASETS_OLDEST_PYTHON is one."""
    python = os.environ.get("DATASETS_OLDEST_PYTHON")
    if python is None:
        subprocess.run([sys.executable, "-m", "venv", tmp_path / "environment"], check=True)
        python = str(tmp_path / "environment" / "bin" / "python")
        install = [python, "-m", "pip", "install", "--quiet", f"datasets=={OLDEST}"]
        subprocess.run(install, check=True)
    for folder in (quickstart_set, train_columns_set):
        command = [python, "-c", READ_WITH_OLDEST, str(folder), str(tmp_path / "cache"), OLDEST]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        expected = {
            split: [sorted(rows.column_names), rows["input_ids"][:], rows["labels"][:]]
            for split, rows in load_from_disk(str(folder)).items()
        }
        assert found == {"load_from_disk": expected, "load_dataset": expected}
