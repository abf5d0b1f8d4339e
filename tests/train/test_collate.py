"""The collator: three layouts from three kinds of rows, and what it refuses."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pipeline.errors import BadRow, UsageError
from pipeline.train.collate import ContextFrozenCollator
from pipeline.train.token_rows import rows_as_id_pairs
from pipeline.types import row_features

# (context, continuation): the first has an empty frozen part, the last two share a context.
EXAMPLES = (([11], [12, 13]), ([21, 22, 23, 24], [25]), ([31, 32], [33, 34, 35]), ([31, 32], [36]))
PAD = 9


def make_row(context: list[int], continuation: list[int], **changes: Any) -> dict[str, Any]:
    ids = context + continuation
    row = {
        "input_ids": ids,
        "labels": [-100] * len(context) + continuation,
        "attention_mask": [1] * len(ids),
        "context_len": len(context),
        "total_len": len(ids),
        "context_hash": str(context),
        "dropped_tokens": 0,
        "dropped_messages": 0,
        "flags": ["truncated"],
        "id": f"example-{ids[0]}",
        "conversation": "talk",
        "source": "logs/a.jsonl:7",
        "decision_idx": 1,
        "preference": "",
        "reason": "shorter",
        "memories": ["m"],
        "weight": 0.5,
    }
    return row | changes


def make_rows() -> list[dict[str, Any]]:
    return [make_row(*example) for example in EXAMPLES]


def make_dataset() -> Dataset:
    return Dataset.from_list(make_rows(), features=row_features())


def collate(rows: Any, layout: str, **settings: Any) -> dict[str, Any]:
    settings.setdefault("pad_token_id", PAD)
    return dict(ContextFrozenCollator(layout, **settings)(rows))  # type: ignore[arg-type]


def as_lists(batch: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.tolist() if torch.is_tensor(value) else value for key, value in batch.items()
    }


def test_joined_rows_are_right_padded_with_labels_on_the_continuation() -> None:
    assert as_lists(collate(make_rows(), "joined")) == {
        "input_ids": [
            [11, 12, 13, PAD, PAD],
            [21, 22, 23, 24, 25],
            [31, 32, 33, 34, 35],
            [31, 32, 36, PAD, PAD],
        ],
        "attention_mask": [[1, 1, 1, 0, 0], [1] * 5, [1] * 5, [1, 1, 1, 0, 0]],
        "labels": [
            [-100, 12, 13, -100, -100],
            [-100, -100, -100, -100, 25],
            [-100, -100, 33, 34, 35],
            [-100, -100, 36, -100, -100],
        ],
        "position_ids": [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 0, 0]],
    }


def test_split_rows_start_their_gradient_phase_on_the_last_context_token() -> None:
    assert as_lists(collate(make_rows(), "split")) == {
        "context_input_ids": [[PAD] * 3, [21, 22, 23], [PAD, PAD, 31], [PAD, PAD, 31]],
        "context_attention_mask": [[0, 0, 0], [1, 1, 1], [0, 0, 1], [0, 0, 1]],
        "context_position_ids": [[0, 0, 0], [0, 1, 2], [0, 0, 0], [0, 0, 0]],
        "input_ids": [[11, 12, 13, PAD], [24, 25, PAD, PAD], [32, 33, 34, 35], [32, 36, PAD, PAD]],
        "attention_mask": [
            [0, 0, 0, 1, 1, 1, 0],
            [1, 1, 1, 1, 1, 0, 0],
            [0, 0, 1, 1, 1, 1, 1],
            [0, 0, 1, 1, 1, 0, 0],
        ],
        "labels": [
            [-100, 12, 13, -100],
            [-100, 25, -100, -100],
            [-100, 33, 34, 35],
            [-100, 36, -100, -100],
        ],
        "position_ids": [[0, 1, 2, 0], [3, 4, 0, 0], [1, 2, 3, 4], [1, 2, 0, 0]],
        "num_continuation_tokens": 7,
        "weights": [0.5] * 4,
    }


def test_grouped_rows_share_equal_frozen_parts() -> None:
    grouped, split = (as_lists(collate(make_rows(), layout)) for layout in ("grouped", "split"))
    assert grouped["context_index"] == [0, 1, 2, 2]
    assert grouped["context_input_ids"] == [[PAD] * 3, [21, 22, 23], [PAD, PAD, 31]]
    assert grouped["context_position_ids"] == [[0, 0, 0], [0, 1, 2], [0, 0, 0]]
    per_row = {"input_ids", "labels", "position_ids", "attention_mask", "weights"}
    assert {key: grouped[key] for key in per_row} == {key: split[key] for key in per_row}


def test_contexts_that_differ_only_in_their_last_token_share_a_frozen_part() -> None:
    batch = collate([make_row([1, 2, 3], [4]), make_row([1, 2, 5], [4])], "grouped")
    assert batch["context_input_ids"].tolist() == [[1, 2]]
    assert batch["input_ids"].tolist() == [[3, 4], [5, 4]]


def test_a_batch_of_one_token_contexts_has_an_empty_frozen_part() -> None:
    batch = collate([make_row([7], [8]), make_row([5], [6])], "split")
    assert batch["context_input_ids"].shape == (2, 0)
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("layout", ["joined", "split", "grouped"])
def test_tensors_are_int64_on_the_cpu_but_for_the_weights(layout: str) -> None:
    kinds = {
        key: (value.dtype, value.device.type)
        for key, value in collate(make_rows(), layout).items()
        if torch.is_tensor(value)
    }
    assert kinds.pop("weights", None) == (None if layout == "joined" else (torch.float32, "cpu"))
    assert set(kinds.values()) == {(torch.int64, "cpu")}


@pytest.mark.parametrize("layout", ["joined", "split", "grouped"])
def test_every_format_of_a_loaded_set_gives_the_same_batch(layout: str) -> None:
    expected = as_lists(collate(make_rows(), layout))
    rows = make_dataset()
    indices = [0, 1, 2, 3]
    for source in (
        rows.with_format("arrow")[indices],
        rows.with_format("numpy")[indices],
        rows.with_format("numpy").__getitems__(indices),
        rows.with_format("torch").__getitems__(indices),
        rows[indices],
        rows.__getitems__(indices),
    ):
        assert as_lists(collate(source, layout)) == expected


def test_rows_of_a_shuffled_and_concatenated_set_keep_their_tokens() -> None:
    from datasets import concatenate_datasets

    rows = concatenate_datasets([make_dataset(), make_dataset()]).select([6, 1, 4])
    batch = collate(rows.with_format("arrow")[[0, 1, 2]], "joined")
    assert batch["input_ids"][:, 0].tolist() == [31, 21, 11]


def test_a_loader_with_workers_gives_the_batch_of_one_without() -> None:
    settings: Any = {"batch_size": 4, "collate_fn": ContextFrozenCollator("split", PAD)}
    rows = make_dataset().with_format("numpy")
    alone, helped = (next(iter(DataLoader(rows, num_workers=n, **settings))) for n in (0, 1))
    assert as_lists(alone) == as_lists(helped)


@pytest.mark.parametrize("drop", ["context_len", "labels", "attention_mask", "total_len", "weight"])
def test_a_row_may_lack_any_one_column_that_others_imply(drop: str) -> None:
    rows = [{key: value for key, value in row.items() if key != drop} for row in make_rows()]
    expected = as_lists(collate(make_rows(), "split"))
    if drop == "weight":
        expected["weights"] = [1.0] * 4
    assert as_lists(collate(rows, "split")) == expected


def test_labels_may_leave_out_part_of_the_continuation() -> None:
    row = make_row([1, 2], [3, 4, 5], labels=[-100, -100, -100, 4, 5])
    batch = collate([row], "split")
    assert batch["labels"].tolist() == [[-100, -100, 4, 5]]
    assert batch["num_continuation_tokens"] == 2


@given(
    contexts=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    continuations=st.lists(st.integers(1, 8), min_size=6, max_size=6),
    multiple=st.integers(1, 8),
)
def test_no_token_is_lost_and_padding_is_never_trained(
    contexts: list[int], continuations: list[int], multiple: int
) -> None:
    # Every token is the pad token: only masks and lengths may tell them apart.
    rows = [
        {"input_ids": [PAD] * (context + extra), "context_len": context}
        for context, extra in zip(contexts, continuations, strict=False)
    ]
    split = collate(rows, "split", pad_to_multiple_of=multiple)
    joined = collate(rows, "joined", pad_to_multiple_of=multiple)
    assert joined["input_ids"].shape[1] % multiple == split["input_ids"].shape[1] % multiple == 0
    assert split["context_input_ids"].shape[1] % multiple == 0
    for place, row in enumerate(rows):
        total = len(row["input_ids"])
        assert joined["attention_mask"][place].sum() == total
        assert split["attention_mask"][place].sum() == total
        for batch in (joined, split):
            assert (batch["labels"][place] == PAD).sum() == total - row["context_len"]
        real = split["attention_mask"][place].bool()
        positions = torch.cat([split["context_position_ids"][place], split["position_ids"][place]])
        assert positions[real].tolist() == list(range(total))


def test_pad_id_comes_from_the_tokenizer_else_zero_and_an_own_one_wins() -> None:
    tokenizer = SimpleNamespace(pad_token_id=4)
    assert ContextFrozenCollator(tokenizer=tokenizer).pad_token_id == 4
    assert ContextFrozenCollator(pad_token_id=5, tokenizer=tokenizer).pad_token_id == 5
    assert ContextFrozenCollator(tokenizer=SimpleNamespace(pad_token_id=None)).pad_token_id == 0
    assert ContextFrozenCollator().pad_token_id == 0


def test_no_other_label_than_the_one_that_losses_leave_out_can_be_padded_with() -> None:
    with pytest.raises(TypeError, match="label_pad"):
        collate(make_rows(), "split", label_pad=0)


@pytest.mark.parametrize("layout", ["joined", "split", "grouped"])
def test_the_worse_continuation_of_a_pair_is_refused_unless_it_is_asked_for(layout: str) -> None:
    rows = [make_row([5, 6], [7], preference="chosen"), make_row([5, 6], [8])]
    rows[1]["preference"] = "rejected"
    for source in (rows, {key: [row[key] for row in rows] for key in rows[0]}):
        with pytest.raises(BadRow, match=r"row 1 .*example-5.*preference is rejected.*leave the"):
            collate(source, layout)
    with pytest.raises(BadRow, match="preference is rejected"):
        collate([make_row([5, 6], [7]), rows[1]], layout)
    assert len(collate(rows, layout, with_rejected=True)["input_ids"]) == 2
    with pytest.raises(BadRow, match="preference is rejected"):
        list(rows_as_id_pairs(rows))
    assert len(list(rows_as_id_pairs(rows, with_rejected=True))) == 2


def test_a_collator_survives_pickling_and_gives_the_same_batch() -> None:
    collator = ContextFrozenCollator("split", pad_to_multiple_of=4, tokenizer=SimpleNamespace())
    again = pickle.loads(pickle.dumps(collator))  # noqa: S301
    assert again == collator
    assert as_lists(again(make_rows())) == as_lists(collator(make_rows()))


def test_collating_leaves_the_rows_as_they_were() -> None:
    rows = make_dataset().with_format("numpy").__getitems__([0, 1, 2, 3])
    before = [row["input_ids"].copy() for row in rows]
    batch = collate(rows, "split")
    batch["input_ids"].fill_(0)
    assert all(np.array_equal(row["input_ids"], ids) for row, ids in zip(rows, before, strict=True))


def test_device_moves_the_batch_in_the_main_process() -> None:
    assert collate(make_rows(), "split", device="meta")["input_ids"].device.type == "meta"


def test_device_in_a_loader_worker_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: SimpleNamespace(id=0))
    with pytest.raises(
        UsageError, match=r"runs in a DataLoader worker.*the loader in DeviceFeeder"
    ):
        collate(make_rows(), "split", device="cpu")


BAD_ROWS = {
    "no boundary": ({"context_len": None, "labels": None}, "neither context_len nor labels"),
    "nothing trained": ({"context_len": None, "labels": [-100] * 3}, "every label is -100"),
    "all trained": ({"context_len": None, "labels": [1, 2, 3]}, "context_len is 0 for 3 tokens"),
    "empty context": ({"context_len": 0}, "context_len is 0 for 3 tokens; expected 1 to 2"),
    "empty continuation": ({"context_len": 3}, "context_len is 3 for 3 tokens; expected 1 to 2"),
    "other total": ({"total_len": 4}, "total_len is 4, but input_ids has 3 tokens"),
    "padded": ({"attention_mask": [0, 1, 1]}, "attention_mask is not 3 ones"),
    "short mask": ({"attention_mask": [1, 1]}, "attention_mask is not 3 ones"),
    "short labels": ({"labels": [-100, 3]}, "2 labels for 3 input_ids"),
    "trained context": ({"labels": [-100, 2, 3]}, "label 2 at token 1, inside the context of 2"),
    "shifted labels": ({"labels": [-100, -100, 7]}, "label 7 at token 2, whose id is 3.*unshifted"),
    "no tokens": ({"input_ids": []}, "expected a list of token ids"),
    "nested": ({"input_ids": [[1, 2, 3]]}, "expected a list of token ids"),
    "floats": ({"input_ids": [1.0, 2.0, 3.0]}, "input_ids holds float64; expected whole numbers"),
    "negative id": ({"input_ids": [1, -2, 3]}, "input_ids holds -2; expected token ids"),
    "negative weight": ({"weight": -1.0}, "weight is -1.0; expected a finite number, 0 or more"),
    "half a boundary": ({"context_len": 1.5}, "context_len is 1.5; expected a whole number"),
    "a boundary as float": ({"context_len": 2.0}, "context_len is 2.0; expected a whole number"),
    "a boundary as bool": ({"context_len": True}, "context_len is True; expected a whole number"),
    "a total as text": ({"total_len": "3"}, "total_len is 3; expected a whole number"),
    "a weight as text": ({"weight": "much"}, "weight is much; expected a finite number"),
    "no number": ({"weight": float("nan")}, "weight is nan"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_an_impossible_row_is_refused_by_its_id(changes: dict[str, Any], message: str) -> None:
    rows = [make_row([5, 6], [7]), make_row([1, 2], [3], **changes)]
    where = r"^row 1 of the batch \(id example-1, source logs/a.jsonl:7\): .*"
    with pytest.raises(BadRow, match=where + message):
        collate(rows, "split")


def test_a_row_over_max_len_is_refused_and_never_cut() -> None:
    collate(make_rows(), "joined", max_len=5)
    with pytest.raises(BadRow, match=r"row 1 .*example-21.*: 5 tokens; expected at most max_len=4"):
        collate(make_rows(), "joined", max_len=4)


def test_rows_without_tokens_or_no_rows_at_all_are_refused() -> None:
    with pytest.raises(BadRow, match=r"no input_ids column \(found \['id'\]\)"):
        collate([{"id": "a"}], "split")
    for nothing in ([], make_dataset().with_format("arrow")[[]], {"input_ids": []}):
        with pytest.raises(BadRow, match="no rows to collate"):
            collate(nothing, "split")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "packed"}, "layout is packed; expected joined, split, grouped"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of is 0; expected 1 or more tokens"),
        ({"max_len": -1}, "max_len is -1; expected 1 or more tokens"),
        ({"max_len": 8.5}, "max_len is 8.5; expected 1 or more tokens"),
        ({"pad_token_id": -100}, "pad_token_id is -100; expected a token id, 0 or more"),
        ({"pad_token_id": 1.0}, "pad_token_id is 1.0; expected a token id, 0 or more"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ContextFrozenCollator(**settings)


def test_id_pairs_are_those_of_the_rows_in_order() -> None:
    expected = [
        {"context_ids": context, "continuation_ids": continuation}
        for context, continuation in EXAMPLES
    ]
    assert list(rows_as_id_pairs(make_dataset())) == expected
    assert list(rows_as_id_pairs(make_rows())) == expected
    bare = make_dataset().select_columns(["input_ids", "labels"])
    assert list(rows_as_id_pairs(bare)) == expected
