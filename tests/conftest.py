"""What every test shares."""

import os

# The Triton kernels run in Triton's interpreter. It replaces the language when Triton is imported, so before torch is.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    """Each test draws the same random numbers, whichever tests ran before it."""
    torch.manual_seed(0)
