"""Object detection and instance segmentation: losses, and average precision by COCO's protocol."""

from typing import Any

import torch
from torch import Tensor

from visionssm.data.coco import CocoImages
from visionssm.data.dense_loader import DenseBatch
from visionssm.tasks.dense import DenseTask
from visionssm.tasks.dense_config import DetectionConfig
from visionssm.tasks.detection_metrics import coco_metrics, coco_results
from visionssm.tasks.processes import all_values

BLANK_SIDE = 64


class DetectionTask(DenseTask):
    """Trains a detector.

    Args:
        val_images: judged on, with their crowds.
        others: see `DenseTask`.
    """

    score, score_name = "val_box_ap", "val box AP"
    config: DetectionConfig

    def __init__(self, *others: Any, val_images: CocoImages):
        super().__init__(*others)
        self.val_images = val_images
        self.results: list[dict[str, Any]] = []
        self.judged: list[int] = []

    def loss(self, batch: DenseBatch) -> Tensor:
        """The sum of the detector's losses."""
        self.note_problems(batch)
        return self.total(self.model(batch["images"], batch["targets"]))

    def start_validation(self) -> None:
        """Forget earlier results."""
        self.results, self.judged = [], []

    def validate(self, batch: DenseBatch) -> None:
        """Keep what is found in a batch."""
        self.note_problems(batch)
        found = self.judged_model(batch["images"] or self.blank_batch()["images"])
        for index, prediction in zip(batch["indices"].tolist(), found, strict=False):
            image_id = self.val_images.images[index]["id"]
            self.results += coco_results(image_id, prediction, self.val_images.category_ids)
            self.judged.append(index)

    def validation_row(self) -> dict[str, float | None]:
        """Average precision of boxes and masks over the images that could be read."""
        self.write_problems()
        results = [entry for part in all_values(self.trainer, self.results) for entry in part]
        judged = sorted(index for part in all_values(self.trainer, self.judged) for index in part)
        metrics = detection_metrics(self.val_images.subset(judged), results, masks_of(self.config))
        row: dict[str, float | None] = {"val_loss": None}
        for kind, values in metrics.items():
            row |= {f"val_{kind}_{name.lower()}": values[name] for name in ("AP", "AP50", "AP75")}
        return row | {self.score: row[self.score] or 0.0}

    def blank_batch(self) -> Any:
        """One black image with one object."""
        masks = torch.zeros(1, BLANK_SIDE, BLANK_SIDE, dtype=torch.uint8, device=self.device)
        masks[0, 8:40, 8:40] = 1
        target = {
            "boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]], device=self.device),
            "labels": torch.ones(1, dtype=torch.int64, device=self.device),
            "masks": masks,
        }
        images = [torch.zeros(3, BLANK_SIDE, BLANK_SIDE, device=self.device)]
        return DenseBatch(
            images=images, targets=[target], indices=torch.zeros(1, dtype=torch.int64), unreadable=[], problems=[]
        )


def masks_of(config: DetectionConfig) -> bool:
    """Whether the detector of the settings finds masks, and not only boxes."""
    return config.head != "retinanet"


def detection_metrics(
    images: CocoImages, results: list[dict[str, Any]], masks: bool
) -> dict[str, dict[str, float | None]]:
    """COCO's numbers for boxes ("box") and, if there are any, for masks ("mask")."""
    truth = images.ground_truth()
    kinds = {"box": "bbox", "mask": "segm"} if masks else {"box": "bbox"}
    return {name: coco_metrics(truth, results, kind) for name, kind in kinds.items()}
