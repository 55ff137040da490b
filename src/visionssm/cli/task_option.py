"""`--task` of the commands that use a trained model: given, or as the checkpoint says."""

import argparse

TASKS = ("classification", "detection", "segmentation")


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """`--task`, and the options that only some tasks have."""
    parser.add_argument("--task", choices=TASKS, help="what the checkpoint was trained for [as it says itself]")
    parser.add_argument(
        "--multi-scale", action="store_true", help="segmentation: average over six sizes, each mirrored too"
    )


def dense_task(args: argparse.Namespace) -> str | None:
    """Detection or segmentation, if the arguments or the checkpoint that they name say so; None for classification.

    Raises:
        ValueError: --multi-scale for another task than segmentation.
        FileNotFoundError: there is no such checkpoint.
    """
    task = args.task or _task_of_checkpoint(args)
    if args.multi_scale and task != "segmentation":
        raise ValueError("--multi-scale is for segmentation")
    return None if task == "classification" else task


def _task_of_checkpoint(args: argparse.Namespace) -> str:
    named = args.checkpoint[0] if isinstance(args.checkpoint, list) and args.checkpoint else args.checkpoint
    return "classification" if args.model else checkpoint_task(named)


def checkpoint_task(named: str | None) -> str:
    """What a run, or a checkpoint of one, was trained for; classification if it is none."""
    from visionssm.tasks.checkpoint import CARD, ModelCard, find_checkpoint, is_run, read_checkpoint

    if not named or not is_run(named):
        return "classification"
    return ModelCard(**read_checkpoint(find_checkpoint(named))[CARD]).task
