"""The `visionssm` command: `main.py` finds the command that was asked for, and each command has a file of its own.

A command's module has `add_parser(subparsers)`, which describes its arguments and gives an example, and `run(args)`,
which does the work and returns the exit code. Heavy libraries are imported inside `run`, so that `--help` is quick.
"""
