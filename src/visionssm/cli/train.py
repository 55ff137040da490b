"""`visionssm train`: train a classifier on digits or on a folder of images, or continue a run that was interrupted."""

import argparse
import dataclasses
import difflib
from typing import Any

EXAMPLES = """\
examples:
  visionssm train                                          digits, the embedded data, with vmamba_nano
  visionssm train --model vim_tiny --data photos/          a folder with one sub-folder per class
  visionssm train --config run.yaml lr=5e-4 epochs=50      settings from a file, two of them changed

Every setting can be given as --name VALUE or as name=value; values are read as YAML, so null, true and [32, 64] work.
The same command again continues a run that was interrupted."""


def add_parser(subparsers: Any) -> None:
    """Describe the arguments: one option for every setting of `TrainConfig`."""
    from visionssm.tasks.config import TrainConfig

    parser = subparsers.add_parser("train", help="train a classifier", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="settings that override those of the file")
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings")
    parser.add_argument("--print-config", action="store_true", help="print all settings as YAML, and stop")
    parser.add_argument(
        "--force", action="store_true", help="continue a run although its settings or data have changed"
    )
    settings = parser.add_argument_group("settings")
    for setting in dataclasses.fields(TrainConfig):
        default = "" if setting.default in (dataclasses.MISSING, None) else f" [{setting.default}]"
        flag = {"nargs": "?", "const": "true"} if setting.type is bool else {}
        settings.add_argument(
            f"--{setting.name.replace('_', '-')}",
            dest=f"setting.{setting.name}",
            metavar="VALUE",
            help=setting.metadata["help"].replace("%", "%%") + default,
            **flag,
        )


def run(args: argparse.Namespace) -> int:
    """Train, and say how it went and where everything is."""
    from visionssm.tasks.config import TrainConfig, with_defaults

    config = TrainConfig.from_sources(args.config, setting_pairs(args))
    if args.print_config:
        print(with_defaults(config).to_yaml(), end="")
        return 0

    from visionssm.cli.report import print_evaluation
    from visionssm.tasks.train import train

    result = train(config, force=args.force)
    print()
    print_evaluation(result.final, f"best weights, {result.final_part} images")
    print(f"\nrun       {result.folder}")
    print(f"next      visionssm predict IMAGE... --checkpoint {result.folder}")
    return 0


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
