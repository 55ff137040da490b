"""`visionssm serve`: a local page to look at images through a model."""

import argparse
from typing import Any

EXAMPLES = """\
examples:
  visionssm serve --model vmamba_tiny --pretrained
  visionssm serve --checkpoint runs/scenes-detection-vmamba_nano --port 8080"""


def add_parser(subparsers: Any) -> None:
    """Describe the arguments."""
    from visionssm.cli.looked_at import add_model_arguments

    parser = subparsers.add_parser("serve", help="open a page to try a model", description=__doc__, epilog=EXAMPLES)
    add_model_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="0.0.0.0 for the network [127.0.0.1]")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="[7860]")


def run(args: argparse.Namespace) -> int:
    """Load the model, and serve until Ctrl-C."""
    from visionssm.cli.looked_at import load_model
    from visionssm.cli.task_option import checkpoint_task
    from visionssm.serve.looking import Looker
    from visionssm.serve.page import serve
    from visionssm.tasks.dense_model import load_dense_model

    if not 1 <= args.port <= 65535:
        raise ValueError(f"--port: got {args.port}, need 1 to 65535")
    if checkpoint_task(args.checkpoint) == "classification":
        classifier = load_model(args)
        looker, name = Looker(classifier), classifier.name
    else:
        looker, name = Looker(load_dense_model(args.checkpoint)), str(args.checkpoint)
    print(f"serving {name} on http://{args.host}:{args.port} (Ctrl-C ends)", flush=True)
    serve(looker, f"visionssm: {name}", args.host, args.port)
    return 0
