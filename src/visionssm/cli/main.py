"""The entry point of the `visionssm` command."""

import argparse
import difflib
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import visionssm
from visionssm.cli import errors

# One module of visionssm.cli per command, in the order in which `visionssm --help` shows them.
COMMANDS = (
    "train",
    "eval",
    "predict",
    "data",
    "demo",
    "list",
    "info",
    "convert",
    "verify",
    "export",
    "publish",
    "bench",
    "erf",
    "attend",
    "cam",
    "paths",
    "serve",
    "doctor",
)


class CommandParser(argparse.ArgumentParser):
    """An argument parser that keeps the layout of examples, and answers a mistake with one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where the options are described, and leave with exit code 2."""
        self.exit(errors.USER_ERROR, f"{self.prog}: error: {message} (see: {self.prog} --help)\n")


def build_parser() -> tuple[CommandParser, dict[str, CommandParser]]:
    """The parser of the whole command line, and that of each command.

    >>> build_parser()[0].parse_args(["doctor", "--json"]).command
    'doctor'
    """
    parser = CommandParser(
        prog="visionssm",
        description="Vision state-space backbones: Vim, VMamba, MambaVision and their relatives.",
        epilog="example:\n  visionssm train --model vmamba_nano --epochs 10\n\n"
        "`visionssm COMMAND --help` describes a command and gives an example.",
    )
    parser.add_argument("--version", action="version", version=f"visionssm {visionssm.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"visionssm.cli.{name}").add_parser(subparsers)
    for command in subparsers.choices.values():
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser, subparsers.choices


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        print(_unknown_command(argv[0]), file=sys.stderr)
        return errors.USER_ERROR
    parser, commands = build_parser()
    args, unknown = parser.parse_known_args(argv)
    if hasattr(args, "overrides"):
        # argparse takes positional arguments in one place only; `name=value` may stand between options too.
        args.overrides += unknown
    elif unknown:
        commands[args.command].error(f"unknown argument {' '.join(unknown)}")
    # torchao, which transformers loads where it is installed, registers its enums in a way that torch complains of.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    try:
        code = importlib.import_module(f"visionssm.cli.{args.command}").run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("\nvisionssm: interrupted", file=sys.stderr)
        return errors.INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`visionssm list | head`). Python flushes stdout once more at exit: let it go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.BROKEN_PIPE
    except Exception as error:
        if args.debug:
            raise
        message, code = errors.explain(error)
        print(f"visionssm {args.command}: error: {message}", file=sys.stderr)
        return code


def _unknown_command(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(COMMANDS)}"
    return f"visionssm: error: there is no command '{name}', {hint}"
