"""What a trainer of others gets: the saved folder and a tiny model, nothing of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_from_disk
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pipeline.config import PrepareConfig
from pipeline.job.prepare import prepare


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_torch_thread: None) -> None:
    """Every test here trains a tiny model."""


@pytest.fixture(scope="session")
def train_columns_set(
    tmp_path_factory: pytest.TempPathFactory, bundled_tokenizer: Path, bundled_examples: Path
) -> Path:
    """The quickstart's rows with ``columns: train``, in two splits."""
    output = tmp_path_factory.mktemp("numeric") / "set"
    config = PrepareConfig(
        input=(str(bundled_examples),),
        tokenizer=str(bundled_tokenizer),
        output=str(output),
        max_len=768,
        columns="train",
        validation_fraction=0.2,
        num_proc=1,
    )
    return prepare(config).output


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, bundled_tokenizer: Path) -> Path:
    """A tiny random Llama and its tokenizer, as a folder that every trainer loads."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(bundled_tokenizer)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bundled_tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def model(model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_folder)


@pytest.fixture(scope="session")
def tokenizer(bundled_tokenizer: Path) -> Any:
    return AutoTokenizer.from_pretrained(bundled_tokenizer)


@pytest.fixture
def rows(quickstart_set: Path) -> Dataset:
    """The train split, opened as a user without this package does."""
    return load_from_disk(str(quickstart_set))["train"]  # type: ignore[return-value]
