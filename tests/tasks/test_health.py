from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from visionssm.data import Splits, load_digits
from visionssm.data.transforms import Preprocessing
from visionssm.tasks.checkpoint import ModelCard, read_checkpoint
from visionssm.tasks.classification import ClassificationTask
from visionssm.tasks.classification_config import ClassificationConfig
from visionssm.tasks.classification_data import ClassificationData
from visionssm.tasks.engine import fit
from visionssm.tasks.health import first_nonfinite_module
from visionssm.tasks.run import open_run


class Hungry(nn.Linear):
    """A classifier that asks for a petabyte."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flatten(1)) + torch.empty(2**48)[0]


class Fragile(nn.Module):
    """A linear classifier whose hidden layer overflows at chosen training steps."""

    def __init__(self, bad_steps: set[int]):
        super().__init__()
        self.hidden = nn.Linear(64, 32)
        self.overflow = nn.Identity()
        self.head = nn.Linear(32, 10)
        self.bad_steps = bad_steps
        self.step = -1

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.step += torch.is_grad_enabled()
        hidden = self.hidden(images.flatten(1))
        if self.training and self.step in self.bad_steps:
            hidden = hidden * float("inf")
        return self.head(self.overflow(hidden))


def _fit(
    folder: Path, model: nn.Module | None = None, bad_steps: Iterable[int] = (), **settings: Any
) -> ClassificationTask:
    config = ClassificationConfig(epochs=2, batch_size=64, device="cpu", out=str(folder), **settings).with_defaults()
    preprocessing = Preprocessing((1, 8, 8), "bicubic", (0.5,), (0.5,), 1.0, "center")
    digits = load_digits()
    splits = Splits("few", digits.train.subset(list(range(320))), digits.val, digits.test)  # five steps in an epoch
    card = ModelCard("fragile", {}, splits.class_names, preprocessing.to_dict(), config.to_dict(), "", "")
    data = ClassificationData(splits, preprocessing, config)
    torch.manual_seed(0)
    model = Fragile(set(bad_steps)) if model is None else model
    task = ClassificationTask(model, config, card, data.batches_per_epoch())
    fit(task, data, open_run(config, ""), "cpu")
    return task


def test_a_step_that_is_not_finite_is_skipped_counted_and_located(tmp_path: Path, capsys) -> None:
    task = _fit(tmp_path, bad_steps={3, 4, 7}, ema_decay=0.9)
    assert [row["skipped_steps"] for row in task.history] == [2, 1]
    assert all(torch.isfinite(value).all() for value in task.state_dict().values())
    assert all(row["train_loss"] < 3 and row["val_loss"] < 3 for row in task.history)
    output = capsys.readouterr().out
    assert (
        "step 3: the gradients aren't finite, first seen in the output of overflow (Identity); step skipped" in output
    )


class FragileNormalization(Fragile):
    """The same behind a BatchNorm, whose running statistics an overflow reaches before anyone sees it."""

    def __init__(self, bad_steps: set[int]):
        super().__init__(bad_steps)
        self.overflow = nn.BatchNorm1d(32)


def test_a_skipped_step_leaves_no_trace_in_running_statistics(tmp_path: Path) -> None:
    task = _fit(tmp_path, FragileNormalization({3, 4}))
    assert [row["skipped_steps"] for row in task.history] == [2, 0]
    assert all(torch.isfinite(value).all() for value in task.state_dict().values())
    assert all(row["val_loss"] < 3 for row in task.history)


def test_float16_lowers_its_loss_scale_when_gradients_overflow(tmp_path: Path) -> None:
    task = _fit(tmp_path, bad_steps={3, 4, 7}, precision="float16")
    # torch begins with 65536 and halves it at every overflow.
    assert [row["skipped_steps"] for row in task.history] == [2, 1]
    assert [row["loss_scale"] for row in task.history] == [65536 / 4, 65536 / 8]
    assert all(row["val_loss"] < 3 for row in task.history)


def test_weights_stay_as_they_were_when_every_step_is_skipped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = Fragile(set()).state_dict()
    task = _fit(tmp_path, bad_steps=set(range(100)), max_skipped=100, weight_decay=0.5)
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())


def test_too_many_bad_steps_in_a_row_stop_the_run_and_keep_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"3 in a row \(max_skipped\): training stopped; the last good weights are in last"
    ):
        _fit(tmp_path, bad_steps=set(range(7, 100)), max_skipped=3, checkpoint_steps=1)
    content = read_checkpoint(tmp_path / "last.ckpt")
    assert content["global_step"] == 7
    assert all(torch.isfinite(value).all() for value in content["state_dict"].values())


def test_out_of_memory_says_which_sizes_to_lower(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"out of memory on cpu with batch_size=64 images of 8 x 8, when 1048576.00 GiB more were asked for. "
        r"Try batch_size=32 accumulate=2 .*; grad_checkpointing=true .*; a smaller input, such as 6 x 6",
    ):
        _fit(tmp_path, Hungry(64, 10))


@pytest.mark.parametrize("place", ["input", "weight", "output", "gradient"])
def test_the_first_place_that_is_not_finite_is_named(place: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    images = torch.ones(2, 4)
    expected = {
        "input": "the input images",
        "weight": "the weight 1.weight",
        "output": "the output of 1 (Linear)",
        "gradient": "the gradient of 1.bias",
    }[place]
    if place == "input":
        images[0, 0] = float("nan")
    elif place == "weight":
        model[1].weight.data[0, 0] = float("inf")
    elif place == "output":
        model[1].weight.data.fill_(3e38)
        model[0].bias.data.fill_(1e3)
    else:
        model(images).sum().backward()
        for layer in (model[0], model[1]):
            layer.bias.grad.fill_(float("nan"))
    assert first_nonfinite_module(model, images) == expected
