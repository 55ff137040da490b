"""Detectors and segmenters on the command line: `eval` and `predict` of runs of these tasks, and their results as text."""

import argparse
import json
from pathlib import Path

from visionssm.data.ade20k import load_ade20k
from visionssm.data.coco import load_coco
from visionssm.data.problems import problem_lines, summarize_problems
from visionssm.tasks.checkpoint import pick_device
from visionssm.tasks.dense_config import DetectionConfig
from visionssm.tasks.dense_evaluation import (
    DetectionEvaluation,
    SegmentationEvaluation,
    evaluate_detector,
    evaluate_segmenter,
)
from visionssm.tasks.dense_model import DenseModel, load_dense_model
from visionssm.tasks.dense_prediction import predict_labels, predict_objects
from visionssm.tasks.dense_train import DenseTrainResult
from visionssm.tasks.detection import masks_of
from visionssm.tasks.detection_metrics import metric_lines
from visionssm.tasks.run import write_text

MOST_CLASSES = 40
MOST_FOUND = 6


def run_eval(args: argparse.Namespace, task: str) -> int:
    """Evaluate runs, print, and write everything as JSON; of detectors also the COCO results file."""
    _refuse(args, ("model", "img_size"), task)
    files = [Path(name) for name in args.out]
    wrong = next((file for file in files if file.suffix != ".json"), None)
    if wrong is not None:
        raise ValueError(f"{wrong}: results of {task} are written as .json; choose this ending")
    rows = []
    for path in args.checkpoint:
        trained = load_dense_model(path, pick_device(args.device), not args.trained_weights, task)
        evaluation = _evaluate(trained, args)
        print(f"{trained.source}: {trained.config.model}, {trained.weights} weights")
        print_dense_evaluation(evaluation, f"{args.data or trained.config.data}, {args.part or 'val'} images")
        for line in summarize_problems(evaluation.problems):
            print(f"warning: {line}")
        rows.append({"checkpoint": str(trained.source), **evaluation.to_dict()})
        if isinstance(evaluation, DetectionEvaluation):
            for file in files:
                results = file.with_name(f"{file.stem}_results{'' if len(rows) == 1 else f'_{len(rows)}'}.json")
                write_text(results, json.dumps(evaluation.results))
                print(f"written to {results}, in COCO's results format")
        for file in files:
            if evaluation.problems:
                listed = file.with_name(f"{file.stem}_problems.txt")
                write_text(listed, "".join(f"{line}\n" for line in problem_lines(evaluation.problems)))
                print(f"written to {listed}")
    for file in files:
        write_text(file, json.dumps(rows, indent=1))
        print(f"written to {file}")
    return 0


def run_predict(args: argparse.Namespace, task: str) -> int:
    """Predict, print, and write pictures and results into a folder."""
    from visionssm.data.folder import find_images

    _refuse(args, ("model", "img_size"), task)
    if len(args.out) != 1 or Path(args.out[0]).suffix:
        raise ValueError(f"{task} writes a picture for each image: give one folder, --out DIR")
    folder = Path(args.out[0]).expanduser()
    paths = find_images(args.images)
    trained = load_dense_model(args.checkpoint, pick_device(args.device), not args.trained_weights, task)
    if task == "detection":
        seen, unreadable = predict_objects(trained, paths, folder, args.score)
    else:
        seen, unreadable = predict_labels(trained, paths, folder, args.multi_scale)
    for image in seen[:MOST_CLASSES]:
        shown = "  ".join(f"{name} {100 * share:.0f} %" for name, share in image.found[:MOST_FOUND])
        more = f"  and {len(image.found) - MOST_FOUND} more" if len(image.found) > MOST_FOUND else ""
        print(f"{image.image}  {shown or 'nothing'}{more}")
    if len(seen) > MOST_CLASSES:
        print(f"... and {len(seen) - MOST_CLASSES} more")
    for item in unreadable:
        print(f"{item.name}  can't be read: {item.reason}")
    print(f"written to {folder}/")
    return 0


def print_training(result: DenseTrainResult) -> None:
    """What a training came to, where it is, and what to do with it."""
    print()
    print_dense_evaluation(result.final, "best weights, validation images")
    print(f"\nrun       {result.folder}")
    print(f"next      visionssm predict IMAGE... --checkpoint {result.folder} --out DIR")


def print_dense_evaluation(evaluation: DetectionEvaluation | SegmentationEvaluation, title: str) -> None:
    """The numbers of the task, and what was left out."""
    if isinstance(evaluation, DetectionEvaluation):
        print(*metric_lines(evaluation.metrics), sep="\n")
    else:
        _print_segmentation(evaluation)
    print(f"\n{title}: {evaluation.images} images, {evaluation.images_per_second:.1f} images/s with loading")
    if evaluation.unreadable:
        name, reason = evaluation.unreadable[0]
        print(f"{len(evaluation.unreadable)} images can't be read and were left out; the first: {name} ({reason})")


def _evaluate(trained: DenseModel, args: argparse.Namespace) -> DetectionEvaluation | SegmentationEvaluation:
    if args.part == "test":
        raise ValueError("--part test: these layouts have train and val; choose one of these")
    place = 0 if args.part == "train" else 1
    data = args.data or trained.config.data
    if isinstance(trained.config, DetectionConfig):
        if args.multi_scale:
            raise ValueError("--multi-scale is for segmentation")
        images = load_coco(data, with_masks=masks_of(trained.config), keep_empty=True)[place]
        return evaluate_detector(trained, images, workers=args.workers or 0)
    return evaluate_segmenter(trained, load_ade20k(data)[place], args.multi_scale, workers=args.workers or 0)


def _refuse(args: argparse.Namespace, names: tuple[str, ...], task: str) -> None:
    """Options of classification that mean nothing here aren't passed over in silence."""
    given = next((name for name in names if getattr(args, name, None)), None)
    if given is not None:
        raise ValueError(f"--{given.replace('_', '-')} is for classification, not for {task}")
    if not args.checkpoint:
        raise ValueError(f"{task} needs --checkpoint: the folder of a run, or a checkpoint file of one")


def _print_segmentation(evaluation: SegmentationEvaluation) -> None:
    """mIoU, mAcc and aAcc, and a table by class; of many classes only the worst are shown."""
    metrics = evaluation.metrics
    rows = list(zip(evaluation.class_names, metrics.class_iou, metrics.class_accuracy, strict=True))
    width = max(len("class"), *(len(name) for name in evaluation.class_names))
    if len(rows) > MOST_CLASSES:
        rows = sorted(rows, key=lambda row: 1.0 if row[1] is None else row[1])[:MOST_CLASSES]
        print(f"the {MOST_CLASSES} classes of {len(evaluation.class_names)} with the lowest IoU")
    print(f"{'class':<{width}}      IoU  accuracy")
    for name, iou, accuracy in rows:
        print(f"{name:<{width}}  {_percent(iou)}   {_percent(accuracy)}")
    print(f"\nmIoU {_percent(metrics.miou)}   mAcc {_percent(metrics.macc)}   aAcc {_percent(metrics.aacc)}")


def _percent(share: float | None) -> str:
    return "      -" if share is None else f"{100 * share:5.1f} %"
