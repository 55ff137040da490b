"""`visionssm train`: train a model on embedded data or on your own, or continue a run that was interrupted."""

import argparse
import dataclasses
import difflib
import importlib
from typing import Any

from visionssm.cli.errors import USER_ERROR

EXAMPLES = """\
examples:
  visionssm train                                          digits, the embedded data, with vmamba_nano
  visionssm train --model vim_tiny --data photos/          a folder with one sub-folder per class
  visionssm train --task detection --data scenes/          COCO's layout, or scenes of `visionssm data make-scenes`
  visionssm train --config run.yaml lr=5e-4 epochs=50      settings from a file, two of them changed
  visionssm train --recipe vmamba_tiny_in1k --data DIR     the settings of a published run, see visionssm list --recipes
  visionssm train --data photos/ --devices 8               a process for each of 8 GPUs
  torchrun --nproc-per-node 8 -m visionssm train ...       the same; with srun on a cluster: srun visionssm train ...

Every setting can be given as --name VALUE or as name=value; values are read as YAML, so null, true and [32, 64] work.
The same command again continues a run that was interrupted."""

# For each task: its settings, the function that trains, and the one that prints what came out.
TASKS = {
    "classification": (
        "visionssm.tasks.classification_config:ClassificationConfig",
        "visionssm.tasks.train:train",
        "visionssm.cli.report:print_training",
    ),
    "detection": (
        "visionssm.tasks.dense_config:DetectionConfig",
        "visionssm.tasks.dense_train:train_detector",
        "visionssm.cli.dense:print_training",
    ),
    "segmentation": (
        "visionssm.tasks.dense_config:SegmentationConfig",
        "visionssm.tasks.dense_train:train_segmenter",
        "visionssm.cli.dense:print_training",
    ),
}


def add_parser(subparsers: Any) -> None:
    """Describe the arguments: one option for every setting of every task."""
    parser = subparsers.add_parser("train", help="train a model", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="settings that override those of the file")
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings")
    parser.add_argument("--recipe", metavar="NAME", help="settings of a published run, see `visionssm list --recipes`")
    parser.add_argument("--task", choices=TASKS, help="what to train for [that of the file, else classification]")
    parser.add_argument(
        "--print-config", "--print_config", action="store_true", help="print all settings as YAML, and stop"
    )
    parser.add_argument(
        "--force", action="store_true", help="continue a run although its settings or data have changed"
    )
    shown: set[str] = set()
    for task, (config, _, _) in TASKS.items():
        group = parser.add_argument_group(f"settings of {task}" if shown else "settings")
        for item in dataclasses.fields(_load(config)):
            if item.name not in shown:
                _add_setting(group, item)
                shown.add(item.name)


def run(args: argparse.Namespace) -> int:
    """Train, and say how it went and where everything is."""
    from visionssm.recipes import recipe_file
    from visionssm.tasks.config import read_yaml

    files = [args.config, args.recipe and recipe_file(args.recipe)]
    named = (read_yaml(file).get("task") for file in files if file)
    task = args.task or next(filter(None, named), "classification")
    if task not in TASKS:
        raise ValueError(f"task {task}: choose from {', '.join(TASKS)}")
    config_type, train, report = TASKS[task]
    config = _load(config_type).from_sources(args.config, setting_pairs(args), args.recipe)
    if args.print_config:
        print(config.with_defaults().to_yaml(), end="")
        return 0
    try:
        result = _load(train)(config, force=args.force)
    except (ValueError, TypeError, OSError):
        from visionssm.tasks.processes import is_first_process, wait_for_first_process

        if is_first_process():
            raise
        wait_for_first_process()
        return USER_ERROR
    if result is not None:  # of several processes, the first one reports
        _load(report)(result)
    return 0


def _load(path: str) -> Any:
    """What "module:name" names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _add_setting(group: Any, item: dataclasses.Field) -> None:
    default = "" if item.default in (dataclasses.MISSING, None) else f" [{item.default}]"
    flag = {"nargs": "?", "const": "true"} if item.type in (bool, bool | None) else {}
    group.add_argument(
        f"--{item.name.replace('_', '-')}",
        dest=f"setting.{item.name}",
        metavar="VALUE",
        help=item.metadata["help"].replace("%", "%%") + default,
        **flag,
    )


def setting_pairs(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Names and texts of all settings on the command line: options first, then `name=value`.

    Raises:
        ValueError: there is no such option, or an argument isn't of the form `name=value`.
    """
    options = {name.removeprefix("setting."): text for name, text in vars(args).items() if name.startswith("setting.")}
    pairs = [(name, text) for name, text in options.items() if text is not None]
    mistyped = next((argument.partition("=")[0] for argument in args.overrides if argument.startswith("-")), None)
    if mistyped:
        near = difflib.get_close_matches(mistyped, [f"--{name.replace('_', '-')}" for name in options], n=1)
        raise ValueError(f"there is no option {mistyped}" + (f"; did you mean {near[0]}?" if near else ""))
    for argument in args.overrides:
        name, equals, text = argument.partition("=")
        if not equals:
            raise ValueError(f"'{argument}': settings are given as name=value, such as epochs=10")
        pairs.append((name.replace("-", "_"), text))
    return pairs
