"""The picture of the README: throughput and memory of Vim-Ti and DeiT-Ti against the size of the image, on one thread.

    python benchmarks/picture.py

Writes results/sizes_cpu.json and docs/images/throughput-and-memory.png. Times are those of one thread's computing, so that other
users of the machine do not show.
"""

import sys
import time
from pathlib import Path

import torch

from visionssm.bench import Setting, plot, write_json
from visionssm.bench.measure import take_turns

FOLDER = Path(__file__).parent
MODELS = ("vim_tiny", "deit_tiny_patch16_224")


def main() -> None:
    """Measures small images first, and draws what there is."""
    torch.set_num_threads(1)
    results = []
    for side in (224, 336, 512, 768, 1120):
        setting = Setting(size=(side, side), batch=1, equal=True)
        results += take_turns(
            [(name, setting) for name in MODELS],
            seconds=1,
            rounds=2,
            clock=time.process_time,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
        write_json(results, FOLDER / "results" / "sizes_cpu.json")
        plot(results, FOLDER.parent / "docs" / "images" / "throughput-and-memory.png")


if __name__ == "__main__":
    main()
