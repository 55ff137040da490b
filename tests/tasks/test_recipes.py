"""Every recipe is built completely: settings, model, parameter groups, schedule, transforms, loss, and two steps."""

import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from training_runs import Recorded, fit_recorded

import visionssm
from visionssm.cli.main import main
from visionssm.data import Splits, load_digits
from visionssm.models import find_release
from visionssm.models._build import export_published
from visionssm.recipes import list_recipes, recipe_facts, recipe_file
from visionssm.tasks.classification_config import ClassificationConfig
from visionssm.tasks.initial import build_initial_model
from visionssm.tasks.optimizer import Schedule, exempt_from_decay, learning_rates, make_optimizer, parameter_groups

GOLDEN = Path(__file__).parent / "golden_losses.json"
RECIPES = list_recipes("*_in1k")

# What the papers and the released settings say: global batch, lr, lr at the start and at the end, epochs of the schedule
# and of the whole run, warm-up, weight decay, clipping, decay of the average, mixup.
PUBLISHED = {
    "vim_tiny": (1024, 1e-3, 1e-6, 1e-5, 300, 300, 5, 0.1, None, 0.99996, 0.8),
    "vim_small": (512, 1e-3, 1e-6, 1e-5, 300, 300, 5, 0.05, None, 0.99996, 0.8),
    "vim_tiny_plus": (1024, 1e-5, 1e-5, 1e-5, 30, 30, 5, 1e-8, None, 0.99996, 0.8),
    "vim_small_plus": (1024, 1e-5, 1e-5, 1e-5, 30, 30, 5, 1e-8, None, 0.99996, 0.8),
    **dict.fromkeys(
        ("vmamba_tiny", "vmamba_tiny_s2l5", "vmamba_small", "vmamba_small_s1l20", "vmamba_base", "vmamba_base_s1l20"),
        (1024, 1e-3, 1e-6, 1e-5, 300, 300, 20, 0.05, 5.0, 0.9999, 0.8),
    ),
    **dict.fromkeys(
        ("vanilla_vmamba_small", "vanilla_vmamba_base", "groupmamba_tiny", "groupmamba_small", "groupmamba_base"),
        (1024, 1e-3, 1e-6, 1e-5, 300, 300, 20, 0.05, 5.0, 0.9999, 0.8),
    ),
    "vanilla_vmamba_tiny": (1024, 1e-3, 1e-6, 1e-5, 300, 300, 20, 0.05, 5.0, 0, 0.8),
    **dict.fromkeys(
        ("mambavision_tiny", "mambavision_tiny2", "mambavision_small"),
        (4096, 5e-3, 1e-6, 5e-6, 310, 320, 20, 0.05, 5.0, 0.9998, 0.8),
    ),
    "mambavision_base": (4096, 5e-3, 1e-6, 5e-6, 310, 320, 35, 0.075, 5.0, 0.9998, 0.8),
    "mambavision_large": (4096, 5e-3, 1e-6, 5e-6, 310, 320, 20, 0.12, 5.0, 0.9998, 0.8),
    "mambavision_large2": (4096, 5e-3, 1e-6, 5e-6, 310, 320, 20, 0.12, 5.0, 0.9998, 0.8),
    **dict.fromkeys(
        ("local_vim_tiny", "local_vim_tiny_middle_cls_token", "local_vim_small"),
        (1024, 1e-3, 1e-7, 1e-6, 300, 300, 20, 0.04, None, 0.9999, 0.2),
    ),
    **dict.fromkeys(
        ("local_vmamba_tiny", "local_vmamba_small"), (1024, 1e-3, 1e-7, 1e-6, 300, 300, 20, 0.04, 1.0, 0.9999, 0.2)
    ),
    **dict.fromkeys(
        ("efficient_vmamba_tiny", "efficient_vmamba_small"),
        (2048, 2e-3, 1e-7, 1e-6, 300, 300, 20, 0.04, 1.0, 0.9999, 0.2),
    ),
    "efficient_vmamba_base": (1024, 2e-3, 1e-7, 1e-6, 300, 300, 20, 0.04, 1.0, 0.9999, 0.2),
    "simba_small": (1024, 2e-3, 1e-6, 1e-5, 310, 330, 5, 0.05, None, 0, 0.8),
    "simba_base": (1024, 2e-3, 1e-6, 1e-5, 310, 330, 5, 0.05, None, 0, 0.8),
    "simba_large": (1024, 2e-3, 1e-6, 1e-5, 310, 330, 5, 0.05, 1.0, 0, 0.8),
}
DROP_PATH = {
    "vim_tiny": 0.0, "vim_small": 0.05, "vim_tiny_plus": 0.0, "vim_small_plus": 0.0, "vmamba_tiny": 0.2, "vmamba_tiny_s2l5": 0.2,
    "vmamba_small": 0.3, "vmamba_small_s1l20": 0.3, "vmamba_base": 0.6, "vmamba_base_s1l20": 0.5, "vanilla_vmamba_tiny": 0.2,
    "vanilla_vmamba_small": 0.3, "vanilla_vmamba_base": 0.6, "mambavision_tiny": 0.2, "mambavision_tiny2": 0.2,
    "mambavision_small": 0.2, "mambavision_base": 0.3, "mambavision_large": 0.3, "mambavision_large2": 0.3,
    "groupmamba_tiny": 0.05, "groupmamba_small": 0.05, "groupmamba_base": 0.05, "local_vmamba_tiny": 0.2,
    "local_vmamba_small": 0.2, "simba_large": 0.3,
}  # fmt: skip
MESA = {
    "tiny": (0.5, 0.25),
    "tiny2": (0.75, 0.25),
    "small": (1.0, 0.25),
    "base": (1.0, 0.3),
    "large": (6.0, 0.25),
    "large2": (6.0, 0.25),
}


def read(recipe: str, **pairs: Any) -> ClassificationConfig:
    texts = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in pairs.items()]
    return ClassificationConfig.from_sources(pairs=texts, recipe=recipe)


def nano(model: str) -> str:
    """The small model of a family."""
    families = ("vim", "mambavision", "groupmamba", "local_vim", "local_vmamba", "efficient_vmamba", "simba")
    return next((f"{family}_nano" for family in families if model.startswith(f"{family}_")), "vmamba_nano")


def test_there_is_a_recipe_for_every_published_run() -> None:
    assert {f"{model}_in1k" for model in PUBLISHED} == set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_settings_are_those_that_were_published(recipe: str) -> None:
    config = read(recipe)
    batch, lr, start, end, schedule, epochs, warmup, decay, clip, average, mixup = PUBLISHED[config.model]
    assert config.lr_batch == batch
    assert (config.lr, config.warmup_lr, config.min_lr) == (lr, start, end)
    assert (config.epochs - config.cooldown_epochs, config.epochs, config.warmup_epochs) == (schedule, epochs, warmup)
    assert (config.weight_decay, config.clip_grad, config.ema_decay, config.mixup) == (decay, clip, average, mixup)
    assert not (average and config.ema_warmup)
    assert config.model_kwargs["drop_path_rate"] == DROP_PATH.get(config.model, 0.1)
    assert config.decay_rule == "published"
    assert (config.cutmix, config.label_smoothing, config.random_erasing, config.hflip) == (1.0, 0.1, 0.25, 0.5)
    family = config.model.partition("_")[0]
    assert config.repeated_augmentation == (3 if family in ("vim", "simba") else 1)
    assert config.precision == ("float32" if family == "vim" or "local_vim" in recipe else "float16")
    assert config.distillation == ("hard" if family == "groupmamba" else "none")
    assert (config.mesa, config.mesa_start) == (
        MESA[config.model.partition("_")[2]] if family == "mambavision" else (0.0, 0.25)
    )
    assert config.optimizer == ("lamb" if family == "mambavision" else "adamw")


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_comments_give_source_hardware_score_and_that_it_was_not_run(recipe: str) -> None:
    text, facts = recipe_file(recipe).read_text(), recipe_facts(recipe)
    release = find_release(read(recipe).model)
    assert f"arXiv:{release.paper}" in facts["source"]
    assert re.search(r"hours? ?not stated|about \d+ hours", facts["hardware"])
    assert f"{release.top1:.1f} %" in facts["published"]
    assert "Not run here" in text
    assert text.isascii() and max(map(len, text.splitlines())) <= 132


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_real_model_gets_its_groups_and_optimizer(recipe: str) -> None:
    config = read(recipe).with_defaults()
    with torch.device("meta"):
        model = visionssm.create_model(config.model, **config.model_kwargs)
    optimizer = make_optimizer(model, config)
    assert type(optimizer).__name__.lower() == config.optimizer
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {named[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    spared = {named[id(p)] for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    assert decayed | spared == set(named.values()) and not decayed & spared
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, config.weight_decay}
    # Marks that these tensors aren't to be decayed were in the published code, and not read by it.
    assert any(name.endswith("A_log") for name in decayed) and not any(name.endswith("A_log") for name in spared)
    for ending in (".D", "norm.weight", "head.bias", "conv.bias", "pos_embed", "cls_token", "skip_scale"):
        assert not any(name.endswith(ending) for name in decayed), ending
    assert {name for name in named.values() if name.endswith("proj.weight")} <= decayed
    # The bias of dt is a bias by name where a linear layer holds it, and a nameless matrix in VMamba and its heirs.
    matrix = config.model.startswith(("vmamba", "vanilla", "groupmamba", "local_vmamba", "efficient"))
    biases = {name for name in named.values() if name.endswith("dt_bias")}
    assert biases <= (decayed if matrix else spared) and biases


@pytest.mark.parametrize("model", ["vim_tiny", "vmamba_tiny", "groupmamba_tiny", "mambavision_tiny", "local_vim_tiny"])
def test_vectors_are_those_of_the_published_tensors(model: str) -> None:
    """Against the published state dict: a tensor decays as one where all that is published of it are matrices."""
    with torch.device("meta"):
        own = visionssm.create_model(model)
    published = export_published(own)
    spared = {key for key, value in published.items() if value.ndim <= 1 or key.endswith(".bias")}
    spared |= {"pos_embed", "cls_token"} & set(published)
    exempt = exempt_from_decay(own, "published")
    parameters = [name for name, _ in own.named_parameters()]
    assert {key for name in exempt for key in own.key_table.published_names(name)} == spared & {
        key for name in parameters for key in own.key_table.published_names(name)
    }


@pytest.mark.parametrize(
    ("model", "first", "last"),
    [
        ("vim_tiny", "blocks.0.", "blocks.23."),
        ("vmamba_tiny", "stages.0.blocks.0.", "stages.3.blocks.1."),
        ("mambavision_tiny", "stages.0.blocks.0.", "stages.3.blocks.3."),
        ("groupmamba_tiny", "stages.0.blocks.0.", "stages.3.blocks.2."),
        ("local_vim_tiny", "blocks.0.", "blocks.19."),
        ("local_vmamba_tiny", "stages.0.blocks.0.", "stages.3.blocks.1."),
        ("efficient_vmamba_tiny", "stages.0.blocks.0.", "stages.3.blocks.1."),
        ("simba_small", "stages.0.blocks.0.", "stages.3.blocks.2."),
    ],
)
def test_layer_decay_reaches_every_block(model: str, first: str, last: str) -> None:
    with torch.device("meta"):
        own = visionssm.create_model(model)
    groups = parameter_groups(own, 0.05, layer_decay=0.5)
    named = {id(parameter): name for name, parameter in own.named_parameters()}
    depth = {named[id(p)]: math.log(group["lr_scale"], 0.5) for group in groups for p in group["params"]}
    assert len(depth) == len(named)
    below_head = {round(d) for name, d in depth.items() if not name.startswith(("head", "norm"))}
    assert depth["head.weight"] == pytest.approx(0)
    blocks = {
        re.match(r"(stages\.\d+\.)?blocks\.\d+\.", n)[0]: d
        for n, d in depth.items()
        if re.match(r"(stages\.\d+\.)?blocks", n)
    }
    order = list(blocks)
    assert (order[0], order[-1]) == (first, last)
    assert all(blocks[a] == pytest.approx(blocks[b] + 1) for a, b in pairwise(order))
    assert max(below_head) == round(blocks[first]) + 1  # the stem
    # Stacked biases are no matrices here either.
    exempt = exempt_from_decay(own)
    for group in groups:
        assert {named[id(p)] in exempt for p in group["params"]} == {group["weight_decay"] == 0}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_schedule_is_the_published_one(recipe: str) -> None:
    config = read(recipe).with_defaults()
    top, start, end = learning_rates(config)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=top)
    schedule = Schedule(optimizer, config, steps_per_epoch=10)
    length = config.epochs - config.cooldown_epochs

    def expected(epoch: float) -> float:
        if config.schedule_by_epoch:
            epoch = math.floor(epoch)
        if epoch < config.warmup_epochs:
            return start + (top - start) * epoch / config.warmup_epochs
        begin = config.warmup_epochs if config.warmup_first else 0
        share = min(1.0, (epoch - begin) / (length - begin))
        return end + (top - end) * (1 + math.cos(math.pi * share)) / 2

    for epoch in (0, 0.1, 1, 4.9, 5, 19.9, 20, 25.5, config.epochs / 2, length - 0.1, config.epochs - 0.1):
        schedule.set(int(epoch), round(epoch * 10))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected(epoch), rel=1e-9), epoch


@pytest.mark.parametrize(
    ("recipe", "rule"),
    [
        ("vmamba_tiny_in1k", lambda batch: (5e-4 * batch / 512, 5e-7 * batch / 512, 5e-6 * batch / 512)),
        ("groupmamba_base_in1k", lambda batch: (5e-4 * batch / 512, 5e-7 * batch / 512, 5e-6 * batch / 512)),
        ("vim_tiny_in1k", lambda batch: (5e-4 * batch / 512, 1e-6, 1e-5)),
        ("vim_small_in1k", lambda batch: (1e-3 * batch / 512, 1e-6, 1e-5)),
        ("vim_tiny_plus_in1k", lambda batch: (5e-6 * batch / 512,) * 3),
        ("simba_small_in1k", lambda batch: (1e-3 * batch / 512, 1e-6, 1e-5)),
        ("mambavision_tiny_in1k", lambda batch: (5e-3 * math.sqrt(batch / 4096), 1e-6, 5e-6)),
    ],
)
@pytest.mark.parametrize("processes", [1, 2, 8, 32])
def test_the_learning_rate_follows_the_batch_by_the_recipes_rule(recipe: str, rule, processes: int) -> None:
    config = read(recipe, devices=processes, accumulate=2)
    assert learning_rates(config) == pytest.approx(rule(config.batch_size * processes * 2), rel=1e-9)


def _splits(images: int) -> Splits:
    digits = load_digits()
    few = digits.train.subset(list(range(images)))
    return Splits("few digits", few, digits.val.subset(list(range(8))), None)


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small network of timm for ten classes."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save(timm.create_model("test_convnext", num_classes=10).state_dict(), file)
    return file


def _two_steps(recipe: str, model: str, size: int, folder: Path, teacher_file: Path, **pairs: Any) -> Recorded:
    """Two epochs of one step, so that MESA is on in the second; everything else as in the recipe."""
    teacher = {"teacher": "test_convnext", "teacher_checkpoint": str(teacher_file)} if "groupmamba" in recipe else {}
    config = read(
        recipe, model=model, data="digits", img_size=[size, size], epochs=2, warmup_epochs=0, cooldown_epochs=0, batch_size=6,
        mesa_start=0, pretrained=False, weights_of=None, device="cpu", workers=0, out=str(folder), **teacher, **pairs,
    )  # fmt: skip
    return fit_recorded(config, _splits(6))


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_steps_of_the_familys_small_model(recipe: str, tmp_path: Path, teacher_file: Path) -> None:
    config = read(recipe)
    task = _two_steps(recipe, nano(config.model), 32, tmp_path, teacher_file, ema_decay=config.ema_decay)
    assert len(task.losses) == 2 and all(math.isfinite(loss) and loss > 0 for loss in task.losses)
    scale = 65536.0
    for (
        row
    ) in task.history:  # float16: gradients that overflow at the first loss scales are dropped, and the scale halved
        scale /= 2 ** row["skipped_steps"]
        assert row.get("loss_scale", 65536.0) == scale
    assert (task.teacher is not None) == ("groupmamba" in recipe)
    assert (task.ema is None) == (config.ema_decay == 0)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [r for r in RECIPES if find_release(r.removesuffix("_in1k")).params < 60e6])
def test_two_steps_of_the_real_model(recipe: str, tmp_path: Path, teacher_file: Path) -> None:
    task = _two_steps(recipe, recipe.removesuffix("_in1k"), 64, tmp_path, teacher_file)
    assert len(task.losses) == 2 and all(math.isfinite(loss) and loss > 0 for loss in task.losses)


GOLDEN_RECIPES = {
    "vmamba": "vmamba_tiny_in1k", "vim": "vim_tiny_in1k", "mambavision": "mambavision_tiny_in1k",
    "groupmamba": "groupmamba_tiny_in1k", "local_vim": "local_vim_tiny_in1k", "local_vmamba": "local_vmamba_tiny_in1k",
    "efficient_vmamba": "efficient_vmamba_tiny_in1k", "simba": "simba_small_in1k",
}  # fmt: skip


def golden_losses(family: str, folder: Path, teacher_file: Path) -> list[float]:
    """Five steps of a family's small model by the settings of its recipe, in float32."""
    recipe = GOLDEN_RECIPES[family]
    teacher = {"teacher": "test_convnext", "teacher_checkpoint": str(teacher_file)} if family == "groupmamba" else {}
    config = read(
        recipe, model=f"{family}_nano", data="digits", epochs=5, warmup_epochs=1, cooldown_epochs=0, batch_size=16,
        mesa_start=0.3, precision="float32", lr_batch=16, device="cpu", workers=0, out=str(folder), **teacher,
    )  # fmt: skip
    return fit_recorded(config, _splits(16)).losses


@pytest.mark.parametrize("family", GOLDEN_RECIPES)
def test_the_first_five_losses_stay(family: str, tmp_path: Path, teacher_file: Path) -> None:
    """Stored numbers: a change of model, initialisation, data order, augmentation, loss, optimizer or schedule shows."""
    assert golden_losses(family, tmp_path, teacher_file) == pytest.approx(
        json.loads(GOLDEN.read_text())[family], rel=1e-4
    )


def test_the_command_lists_and_resolves_recipes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["list", "vim*", "--recipes"]) == 0
    assert "Vim-Ti, ImageNet-1K from scratch, 224 x 224.  Published: 76.1 % top-1." in capsys.readouterr().out
    assert main(["list", "--recipes", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list_recipes()
    assert main(["train", "--recipe", "mambavision_base_in1k", "--print_config", "batch_size=64"]) == 0
    file = tmp_path / "resolved.yaml"
    file.write_text(capsys.readouterr().out)
    resolved = ClassificationConfig.from_sources(file)
    assert resolved == read("mambavision_base_in1k", batch_size=64).with_defaults()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "vmamba_tinny_in1k"], "there is no recipe 'vmamba_tinny_in1k'; did you mean vmamba_tiny_in1k"),
        (["--recipe", "resnet"], "there is no recipe 'resnet'; `visionssm list --recipes` lists them all"),
        (
            ["--recipe", "vim_tiny_in1k", "epochs=5"],
            "epochs=5: the warm-up (5 epochs) and the cool-down (0) leave nothing",
        ),
        (["--recipe", "vim_tiny_in1k", "epoch=5"], "there is no setting 'epoch'; did you mean epochs?"),
        (["--recipe", "vim_tiny_in1k"], "imagenet"),  # there is no such folder
        (["--recipe", "mambavision_tiny_in1k", "ema_decay=0"], "mesa=0.5: needs averaged weights; set ema_decay"),
        (["--recipe", "vim_tiny_in1k", "lr_scaling=cubic"], "lr_scaling=cubic: must be one of none, sqrt, linear"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, message, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments, "device=cpu"]) == 2
    assert message in capsys.readouterr().err


def test_the_scaled_learning_rate_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["model=vmamba_nano", "data=digits", "epochs=21", "batch_size=64", "accumulate=2", "img_size=[32, 32]"]
    stop = ["max_unreadable=0", f"out={tmp_path}", "device=cpu", "--print-config"]
    assert main(["train", "--recipe", "vmamba_tiny_in1k", *arguments, *stop]) == 0
    from visionssm.tasks.optimizer import scaling_in_words

    config = read("vmamba_tiny_in1k", batch_size=64, accumulate=2)
    assert (
        scaling_in_words(config)
        == "lr 0.001 is for a global batch of 1024; this one has 128: scaled (linear) to 0.000125"
    )
    assert scaling_in_words(read("vmamba_tiny_in1k", batch_size=64, accumulate=16)) is None


def test_vims_fine_tuning_starts_from_the_weights_at_the_other_stride(tmp_path: Path) -> None:
    start = visionssm.create_model("vim_tiny")
    file = tmp_path / "vim_tiny.safetensors"
    visionssm.models.save_checkpoint(start.state_dict(), file)
    config = read("vim_tiny_plus_in1k", checkpoint=str(file))
    assert config.checkpoint and not config.pretrained
    model = build_initial_model(config, [str(label) for label in range(1000)]).model
    assert model.pos_embed.shape == (1, 27 * 27 + 1, 192)
    assert torch.equal(model.stem.proj.weight, start.stem.proj.weight)
    assert torch.equal(model.head.weight, start.head.weight)
