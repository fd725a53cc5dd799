"""What all tests share. The environment is set before anything imports torch or transformers."""

# ruff: noqa: E402

from __future__ import annotations

import os
from pathlib import Path

IN_WORKER = "PYTEST_XDIST_WORKER" in os.environ
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if IN_WORKER:  # before torch makes its thread pool: two workers on two cores, one thread each
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from transformers.utils import logging

ROOT = Path(__file__).resolve().parent.parent
logging.disable_progress_bar()
torch.set_num_threads(1 if IN_WORKER else 2)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """``../shared/data``: small public checkpoints, text and tables to check against. Not everyone has it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the repository")
    return folder


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The trained model that comes with the repository."""
    return ROOT / "examples" / "stdlib-llama-2.8m"
