"""What every test shares."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> None:
    """Each test draws the same random numbers, whichever tests ran before it."""
    torch.manual_seed(0)
