"""What every task shares: optimizer, schedule, averaged weights, steps that go wrong, history, and exact resumption.

A task says what its loss is and how it is validated (see the hooks of `Task`), and which loaders it reads (`TaskData`).
"""

import math
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from visionssm.data.loader import ResumableLoader, seed_everything
from visionssm.tasks.checkpoint import CARD, ModelCard
from visionssm.tasks.config import TrainConfig
from visionssm.tasks.health import first_nonfinite_module
from visionssm.tasks.optimizer import Schedule, make_optimizer
from visionssm.tasks.parallel import (
    freeze_groups,
    has_unsynchronized_batchnorm,
    restore,
    running_statistics,
    shard,
    share_statistics,
)
from visionssm.tasks.processes import all_values

HISTORY = "history"


class Task(LightningModule):
    """Trains a model.

    Every step is a function of the weights, the optimizer's state, the batch, the seed and the position in training:
    the random generators are set anew for each step, and the learning rate is computed from the step's number. That is
    what lets a run continue bit by bit.

    A batch is a dictionary with `images`, a tensor or a list of tensors, one for each image that could be read, and
    `unreadable`, a list of `Unreadable`.

    Args:
        model: what is trained; called once in every `loss`.
        config: settings with nothing left open (see `with_defaults`).
        card: what is written into every checkpoint.
        batches_per_epoch: of each process.
    """

    score = "val_top1"  # the column by which the best weights are chosen: a share, the higher the better
    score_name = "val top-1"
    schedule: Any  # sets the learning rates of a step: set(epoch, step)

    def __init__(self, model: nn.Module, config: TrainConfig, card: ModelCard, batches_per_epoch: int):
        super().__init__()
        self.model = model
        self.config = config
        self.card = card
        self.batches_per_epoch = batches_per_epoch
        self.steps_per_epoch = math.ceil(batches_per_epoch / config.accumulate)
        freeze_groups(model, config.freeze)
        if config.grad_checkpointing:
            if not hasattr(model, "set_grad_checkpointing"):
                raise ValueError(f"grad_checkpointing: {config.model} can't compute activations again; set it to false")
            model.set_grad_checkpointing(True)  # type: ignore[operator]
        if config.channels_last:
            model.to(memory_format=torch.channels_last)
        self.ema = None
        if config.ema_decay:
            self.ema = ModelEmaV3(model, decay=config.ema_decay, use_warmup=config.ema_warmup, foreach=False)
            self.ema.requires_grad_(False)
        # One row per epoch, and the sums of the epoch that is under way: both travel in checkpoints.
        self.history: list[dict[str, Any]] = []
        self.train_sums = {"loss": 0.0, "images": 0, "grad_norm": 0.0, "steps": 0, "skipped": 0}
        self.skipped_in_a_row = 0
        self.step_log: dict[str, float] = {}  # what the last step came to, for the TensorBoard log
        self.batch: tuple[Any, int] = ({}, 0)
        self.good_statistics: list[Tensor] = []
        self.shares_statistics = False
        self.validated: dict[str, float | None] = {}

    # What a task says.

    def loss(self, batch: Any) -> Tensor:
        """Mean loss over the images of a batch, which are at least one; calls `self.model` once."""
        raise NotImplementedError

    def start_validation(self) -> None:
        """Forget earlier sums."""
        raise NotImplementedError

    def validate(self, batch: Any) -> None:
        """Judge `self.judged_model` on a batch, and add to the sums. There may be no image in the batch."""
        raise NotImplementedError

    def validation_row(self) -> dict[str, float | None]:
        """The columns of validation, over all processes: `val_loss` (None if there is none), `self.score`, and others."""
        raise NotImplementedError

    def blank_batch(self) -> Any:
        """A batch of one black image. Of several processes, one that could read no image computes it, with weight zero:
        the others wait for its part.
        """
        raise NotImplementedError

    # What the engine does.

    @property
    def judged_model(self) -> nn.Module:
        """The model that is validated: the averaged one if there is one."""
        return self.model if self.ema is None else self.ema.module

    def ends_step(self, batch_idx: int) -> bool:
        """Whether the optimizer steps after this batch; between steps, gradients are held that no checkpoint keeps."""
        return (batch_idx + 1) % self.config.accumulate == 0 or batch_idx + 1 == self.batches_per_epoch

    def configure_model(self) -> None:
        """Synchronize BatchNorm, share the model out over the processes (fsdp), and compile it."""
        if self.config.processes > 1:
            if self.config.sync_batchnorm and self.trainer.strategy.root_device.type == "cuda":
                self.model = convert_sync_batchnorm(self.model)
            self.shares_statistics = has_unsynchronized_batchnorm(self.model)
            if self.shares_statistics:
                self.print(
                    "BatchNorm takes its statistics in each process by itself (torch synchronizes them on GPUs only)"
                )
        if self.config.strategy == "fsdp" and self.config.processes > 1:
            mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
            for model in [self.model] if self.ema is None else [self.model, self.ema.module]:
                shard(model, mesh)
        if self.config.compile:
            self.model.compile()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Optimizer and schedule of the settings."""
        optimizer = make_optimizer(self.model, self.config)
        self.schedule = Schedule(optimizer, self.config, self.steps_per_epoch)
        return optimizer

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set everything that a step depends on from its position."""
        self._seed(batch_idx)
        step = self.current_epoch * self.steps_per_epoch + batch_idx // self.config.accumulate
        self.schedule.set(self.current_epoch, step)
        # The last epoch is always validated.
        last = self.current_epoch + 1 == self.config.epochs
        self.trainer.check_val_every_n_epoch = 1 if last else self.config.validate_every
        if batch_idx % self.config.accumulate == 0:
            self.good_statistics = running_statistics(self.model)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """The loss of a batch; None if there is one process and not one of the images could be read."""
        self.batch = (batch, batch_idx)
        images = len(batch["images"])
        if not images:
            return self.loss(self.blank_batch()) * 0 if self.trainer.world_size > 1 else None
        self.step_log = {}
        loss = self.loss(batch)
        value = loss.item()
        if math.isfinite(value):
            self.train_sums["loss"] += value * images
            self.train_sums["images"] += images
        self.step_log["loss"] = value
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients, or drop them if they aren't finite: parameters without gradients stay as they are."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(parameter.grad for parameter in parameters if parameter.grad is not None)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.step_log |= {"grad_norm": float(norm), "lr": self._lr(), **self._loss_scale()}
        if torch.isfinite(norm):
            if self.config.clip_grad is not None:
                nn.utils.clip_grads_with_norm_(parameters, self.config.clip_grad, norm)
            self.train_sums["grad_norm"] += float(norm)
            self.train_sums["steps"] += 1
            self.skipped_in_a_row = 0
            return
        self._skip_step(optimizer)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Average the weights right after every step of the optimizer, before a checkpoint can be taken."""
        super().optimizer_step(*args, **kwargs)
        if self.shares_statistics:
            share_statistics(self.model)
        if self.ema is not None and not self.skipped_in_a_row:
            self.ema.update(self.model, step=self.global_step)

    def is_healthy(self) -> bool:
        """Whether the weights are finite and the last step was good."""
        return not self.skipped_in_a_row and all(
            bool(torch.isfinite(getattr(p, "_local_tensor", p)).all()) for p in self.model.parameters()
        )

    def on_validation_epoch_start(self) -> None:
        """Forget earlier sums."""
        self.start_validation()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Judge a batch."""
        self.validate(batch)

    def on_validation_epoch_end(self) -> None:
        """Keep what validation found for the row of the epoch."""
        self.validated = self.validation_row()

    def on_train_epoch_end(self) -> None:
        """Close the row of the epoch."""
        epoch = self.current_epoch + 1
        if self.history and self.history[-1]["epoch"] >= epoch:
            return  # validated again after a restart at the end of an epoch
        parts = all_values(self.trainer, self.train_sums)
        sums = {name: sum(part[name] for part in parts) for name in self.train_sums}
        row = {
            "epoch": epoch,
            "step": self.global_step,
            "lr": self._lr(),
            "train_loss": sums["loss"] / sums["images"] if sums["images"] else None,
            "grad_norm": sums["grad_norm"] / sums["steps"] if sums["steps"] else None,
            "skipped_steps": self.train_sums["skipped"],
            **self._loss_scale(),
            **self.validated,
        }
        self.history.append(row)
        self.train_sums = dict.fromkeys(self.train_sums, 0)
        self.validated = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what describes the model, and the history."""
        checkpoint[CARD] = asdict(self.card)
        checkpoint[HISTORY] = {
            "epochs": self.history,
            "train_sums": all_values(self.trainer, self.train_sums),
            "in_a_row": self.skipped_in_a_row,
            "batches": self.batches_per_epoch,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the history up again."""
        self.history = checkpoint[HISTORY]["epochs"]
        sums = checkpoint[HISTORY]["train_sums"]
        self.train_sums = sums[self.trainer.global_rank % len(sums)]
        self.skipped_in_a_row = checkpoint[HISTORY]["in_a_row"]
        if checkpoint[HISTORY]["batches"] != self.batches_per_epoch:
            self._begin_epoch_anew(checkpoint)

    def _begin_epoch_anew(self, checkpoint: dict[str, Any]) -> None:
        """A place in the middle of an epoch means nothing when epochs have another number of batches now (--force)."""
        loop = checkpoint["loops"]["fit_loop"]
        batches = loop["epoch_loop.batch_progress"]
        places = [value for value in checkpoint.values() if isinstance(value, dict) and "batches_done" in value]
        for place in places + loop["state_dict"].get("combined_loader", []):
            place |= {"epoch": place["epoch"] + batches["is_last_batch"], "batches_done": 0}
        if batches["is_last_batch"]:
            return
        self.print("an epoch has another number of batches than before: the one that was interrupted starts anew")
        batches["current"] = dict.fromkeys(batches["current"], 0)
        for count in loop["epoch_progress"].values():
            count |= {"ready": count["completed"], "started": count["completed"]}
        self.train_sums = dict.fromkeys(self.train_sums, 0)

    def _seed(self, batch_idx: int) -> None:
        seed_everything(self.config.seed, self.current_epoch, batch_idx, self.global_rank)

    def _skip_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop gradients that aren't finite, in all processes alike, and say where they come from."""
        self.train_sums["skipped"] += 1
        self.skipped_in_a_row += 1
        batch, batch_idx = self.batch
        batch = batch if len(batch["images"]) else self.blank_batch()
        self._seed(batch_idx)
        with self.trainer.precision_plugin.forward_context():
            found = first_nonfinite_module(self.model, batch["images"], lambda: self.loss(batch))
        # The process whose own batch went wrong knows the module; the others only see its gradients.
        places = all_values(self.trainer, found)
        where = next((place for place in places if "gradient" not in place), places[0])
        optimizer.zero_grad(set_to_none=True)
        restore(self.model, self.good_statistics)
        message = f"step {self.global_step}: the gradients aren't finite, first seen in {where}; step skipped"
        self.print(message)
        if self.skipped_in_a_row >= self.config.max_skipped:
            raise ValueError(
                f"{message}, {self.skipped_in_a_row} in a row (max_skipped): training stopped; the last good weights are "
                "in last.ckpt. Lower lr, raise warmup_epochs, or use float32"
            )

    def _lr(self) -> float:
        return max(group["lr"] for group in self.trainer.optimizers[0].param_groups)

    def _loss_scale(self) -> dict[str, float]:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return {} if scaler is None else {"loss_scale": scaler.get_scale()}


class TaskData(LightningDataModule):
    """The loaders of a run, for any number of processes; training data continues where a checkpoint was taken.

    Args:
        config: settings with nothing left open.
        sizes: images of the parts "train" and "val".
    """

    def __init__(self, config: TrainConfig, sizes: dict[str, int]):
        super().__init__()
        self.config = config
        self.sizes = sizes
        self.position: dict[str, int] | None = None

    def loader(self, training: bool, rank: int, world_size: int) -> ResumableLoader:
        """The training or the validation loader of one of several processes."""
        raise NotImplementedError

    def train_dataloader(self) -> ResumableLoader:
        """After a restart, it continues where the checkpoint was taken."""
        self.train_loader = self._own_loader(training=True)
        if self.position is not None:
            self.train_loader.load_state_dict(self.position)
        return self.train_loader

    def val_dataloader(self) -> ResumableLoader:
        """In order."""
        return self._own_loader(training=False)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Put the channels of the images last in memory, if asked for."""
        if self.config.channels_last and isinstance(batch["images"], Tensor) and batch["images"].ndim == 4:
            batch["images"] = batch["images"].to(memory_format=torch.channels_last)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position in the training data. Lightning keeps it too, but drops it at the end of an epoch."""
        return self.train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The position from which the next loader continues."""
        self.position = state_dict

    def batches_per_epoch(self) -> int:
        """Training batches of each process."""
        return len(self.loader(training=True, rank=0, world_size=self.config.processes))

    def _own_loader(self, training: bool) -> ResumableLoader:
        assert self.trainer is not None
        return self.loader(training, self.trainer.global_rank, self.trainer.world_size)
