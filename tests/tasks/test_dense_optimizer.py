"""Which tensors decay, how fast each layer learns, and what the learning rate is at every step."""

import pytest
import torch

from visionssm.recipes import list_recipes, recipe_facts, recipe_file
from visionssm.tasks.config import read_yaml
from visionssm.tasks.dense_config import DenseConfig, DetectionConfig, SegmentationConfig
from visionssm.tasks.dense_model import build_dense_model
from visionssm.tasks.dense_optimizer import DenseSchedule, make_dense_optimizer, named_groups

SMALL = {"settings": {"channels": 16, "hidden": 16}}
RECIPES = list_recipes("*_coco") + list_recipes("*_ade20k*")


def _detector(model: str = "vim_nano", **settings) -> tuple[torch.nn.Module, DetectionConfig]:
    config = DetectionConfig(model=model, head_kwargs=SMALL, **settings).with_defaults()
    return build_dense_model(config, 3)[0], config


@pytest.mark.parametrize("no_decay", [None, ("norm",), ("pos_embed",)])
@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_every_parameter_is_in_one_group(no_decay: tuple[str, ...] | None, layer_decay: float | None) -> None:
    model, config = _detector(no_decay=no_decay, layer_decay=layer_decay)
    optimizer = make_dense_optimizer(model, config)
    inside = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(inside) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("no_decay", [None, ("pos_embed",)])
def test_layer_decay_reaches_the_blocks(no_decay: tuple[str, ...] | None) -> None:
    model, config = _detector(no_decay=no_decay, layer_decay=0.5, schedule="linear", lr=1.0, min_lr=0.0, warmup_steps=0)
    optimizer = make_dense_optimizer(model, config)
    DenseSchedule(optimizer, config, steps_per_epoch=10).set(0, 0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    of = {name: rates[id(p)] for name, p in model.named_parameters()}
    body = "backbone.body.model."
    # vim_nano has four blocks: 0 the patches, 1 to 4 the blocks, 5 everything else.
    assert {rate for name, rate in of.items() if name.startswith(f"{body}stem.")} == {0.5**5}
    for block in range(4):
        assert {rate for name, rate in of.items() if name.startswith(f"{body}blocks.{block}.")} == {0.5 ** (4 - block)}
    assert {rate for name, rate in of.items() if not name.startswith(body)} == {1.0}


def test_only_what_is_called_so_in_the_published_code_is_spared() -> None:
    model, _ = _detector("vmamba_nano")
    groups = named_groups(model, 0.05, None, ("norm",))
    spared = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in spared}
    assert names and all(name.startswith("backbone.body.model.") for name in names)
    # The stem's norms are known by a number in the published code, so they decay; those of blocks and outputs don't.
    assert not any(".stem." in name for name in names)
    assert any("out_norm" in name for name in names) and any("blocks" in name for name in names)
    biases = [name for name, p in model.named_parameters() if name.endswith(".bias") and id(p) not in spared]
    assert biases, "biases decay"


@pytest.mark.parametrize("kind", ["cosine", "linear", "steps"])
def test_the_rate_warms_up_and_falls_as_published(kind: str) -> None:
    milestones = (8.0, 11.0) if kind == "steps" else ()
    config = DenseConfig(
        lr=1e-4, min_lr=0.0, epochs=12, schedule=kind, milestones=milestones, warmup_steps=1000, warmup_lr=1e-7
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = DenseSchedule(optimizer, config, steps_per_epoch=7330)
    # Linear from a thousandth, on top of the schedule.
    assert schedule.rate(0) == pytest.approx(1e-7)
    assert schedule.rate(500) == pytest.approx(1e-4 * (0.001 + 0.999 / 2), rel=0.01)
    end = 12 * 7330
    if kind == "steps":
        assert [schedule.rate(step) for step in (1000, 8 * 7330 - 1, 8 * 7330, 11 * 7330, end - 1)] == pytest.approx(
            [1e-4, 1e-4, 1e-5, 1e-6, 1e-6]
        )
    elif kind == "linear":
        assert [schedule.rate(step) for step in (end // 4, end // 2, end)] == pytest.approx([7.5e-5, 5e-5, 0.0])
    else:
        assert [schedule.rate(step) for step in (end // 2, end)] == pytest.approx([5e-5, 0.0])


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_complete(recipe: str) -> None:
    from visionssm.models import find_release

    values = read_yaml(recipe_file(recipe))
    kind = {"detection": DetectionConfig, "segmentation": SegmentationConfig}[values["task"]]
    config = kind.from_sources(recipe=recipe).with_defaults()
    assert recipe.startswith(config.model)
    release = find_release(config.model)
    assert release is not None and release.has_weights == config.pretrained
    facts = recipe_facts(recipe)
    assert all(facts[key] for key in ("title", "source", "hardware", "published"))
    assert "Not run here" in recipe_file(recipe).read_text()
    assert config.lr_batch == (64 if "lsj" in recipe else 32 if recipe.startswith("vim_") else 16)
    if kind is SegmentationConfig:
        assert config.epochs * config.epoch_batches == (60_000 if "_60k_" in recipe else 160_000)
        assert (config.schedule, config.warmup_steps, config.min_lr) == ("linear", 1500, 0.0)
        assert config.long_side == 4 * config.short_side and config.crop_size == (config.short_side,) * 2
    else:
        epochs = 100 if "lsj" in recipe else 12 if "1x" in recipe else 36
        assert (config.epochs, config.schedule) == (epochs, "steps")
        assert config.resize == ("lsj" if "lsj" in recipe else "fixed" if epochs == 12 else "multiscale")
        assert 0 < config.milestones[0] < config.milestones[1] < epochs


def test_there_is_a_recipe_for_every_published_run() -> None:
    families = {"vmamba": 12, "mambavision": 3, "groupmamba": 1, "local": 5, "efficient": 9, "simba": 2, "vim": 1}
    assert len(list_recipes("*_coco")) == sum(families.values())
    assert len(list_recipes("*_ade20k*")) == 24
