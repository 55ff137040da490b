"""Writes the table of docs/scale.md: computation, memory and time of every ImageNet recipe. Takes half a minute.

`python tools/scale_table.py` writes the table, `python tools/scale_table.py vmamba_tiny --mixed` prints the row of that model
instead, with activations in mixed precision, which takes as long as the model needs for five images.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

import visionssm
from visionssm.models import count_gmacs, count_parameters
from visionssm.recipes import list_recipes, recipe_file

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
START, END = "<!-- made by tools/scale_table.py: start -->", "<!-- end -->"
IMAGENET = 1_281_167  # training images
FLOPS_PER_GPU = 17e12  # what VMamba-T reaches in training on an A100 by its authors' measurement, see docs/scale.md
OPTIMIZER_BYTES = 8  # per parameter: two moments in float32, of AdamW and of LAMB


@dataclass(frozen=True)
class Cost:
    """Of one recipe."""

    recipe: str
    gmacs: float  # of one image, forward
    images: float  # of the whole run
    flops: float  # of the whole run
    gpus: int
    state_gib: float  # per process: weights, gradients, optimizer, average, and teacher
    activation_gib: float  # per process: what backward needs, in float32 or mixed precision

    @property
    def gpu_hours(self) -> float:
        """At the rate of `FLOPS_PER_GPU`."""
        return self.flops / FLOPS_PER_GPU / 3600

    def row(self) -> str:
        """One line of the table."""
        cells = (
            f"`{self.recipe}`",
            f"{self.gmacs:.2f}",
            f"{self.images / 1e6:.0f} M",
            f"{self.flops / 1e18:.1f}",
            f"{self.gpus}",
            f"{self.gpu_hours:.0f}",
            f"{self.gpu_hours / self.gpus:.0f}",
            f"{self.state_gib:.1f}",
            f"{self.activation_gib:.1f}",
        )
        return f"| {' | '.join(cells)} |"


COLUMNS = (
    "recipe",
    "10^9 multiply-adds per image",
    "images",
    "10^18 FLOP",
    "GPUs",
    "GPU hours",
    "hours",
    "state, GiB",
    "float32 activations, GiB",
)


def cost(recipe: str, mixed: bool = False) -> Cost:
    """Count one recipe.

    FLOP: two per multiply-add; forward, and twice as much backward; and one forward pass of the teacher, or of the
    averaged weights for the epochs in which MESA asks them.
    """
    settings = yaml.safe_load(recipe_file(recipe).read_text())
    with torch.device("meta"):
        model: Any = visionssm.create_model(settings["model"], **settings["model_kwargs"])
    size = model.pretrained_cfg["input_size"][1:]
    gmacs = count_gmacs(model, size)
    parameters = count_parameters(model)
    per_parameter = 4 + 4 + OPTIMIZER_BYTES + (4 if settings["ema_decay"] else 0)
    asked, teacher_parameters = 0.0, 0
    if "teacher" in settings:
        with torch.device("meta"):
            teacher = visionssm.create_model(settings["teacher"])
        asked, teacher_parameters = count_gmacs(teacher, size), count_parameters(teacher)
    elif "mesa" in settings:
        schedule = settings["epochs"] - settings["cooldown_epochs"]
        asked = gmacs * (1 - settings["mesa_start"] * schedule / settings["epochs"])
    images = settings["epochs"] * IMAGENET
    return Cost(
        recipe=recipe,
        gmacs=gmacs,
        images=images,
        flops=2e9 * images * (3 * gmacs + asked),
        gpus=settings["lr_batch"] // settings["batch_size"],
        state_gib=(parameters * per_parameter + 4 * teacher_parameters) / 2**30,
        activation_gib=settings["batch_size"]
        * activation_bytes(settings["model"], settings["model_kwargs"], size, mixed)
        / 2**30,
    )


def activation_bytes(name: str, options: dict[str, Any], size: tuple[int, int], mixed: bool) -> float:
    """What autograd keeps for backward of one more image in a batch: distinct storages, parameters left out.

    In float32 on the meta device, where nothing is computed; in mixed precision on the CPU with bfloat16, whose width is
    that of float16.
    """
    device = "cpu" if mixed else "meta"
    with torch.device(device):
        model = visionssm.create_model(name, **options).train()
    more, fewer = (_saved_bytes(model, torch.empty(batch, 3, *size, device=device).fill_(0), mixed) for batch in (3, 2))
    return more - fewer


def _saved_bytes(model: nn.Module, images: torch.Tensor, mixed: bool) -> int:
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other storage takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            outputs = model(images)
        # Kept alive until the count is done.
        both = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum(logits.float().logsumexp(1).sum() for logits in both)
    assert isinstance(loss, torch.Tensor)
    return sum(storage.nbytes() for storage in kept.values())


def table(recipes: list[str], mixed: bool = False) -> str:
    """The rows of some recipes, under their names."""
    names = [name.replace("float32", "mixed-precision") if mixed else name for name in COLUMNS]
    lines = [f"| {' | '.join(names)} |", f"|---|{'---:|' * (len(names) - 1)}"]
    return "\n".join([*lines, *(cost(recipe, mixed).row() for recipe in recipes)])


def main() -> None:
    """Write the table, or print rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="print the rows of these models instead")
    parser.add_argument("--mixed", action="store_true", help="count activations in mixed precision")
    args = parser.parse_args()
    if args.models:
        print(table([recipe for model in args.models for recipe in list_recipes(f"{model}_in1k")], args.mixed))
        return
    rows = table(list_recipes("*_in1k"))
    before, _, rest = PAGE.read_text().partition(START)
    after = rest.partition(END)[2]
    unfinished = PAGE.with_suffix(".unfinished")
    unfinished.write_text(f"{before}{START}\n\n{rows}\n\n{END}{after}")
    os.replace(unfinished, PAGE)
    print(f"wrote the table of {PAGE}")


if __name__ == "__main__":
    main()
