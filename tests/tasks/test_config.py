from dataclasses import fields
from pathlib import Path

import pytest

from visionssm.tasks.classification_config import ClassificationConfig
from visionssm.tasks.config import changed_settings


def test_a_file_is_overridden_by_pairs_and_comes_back_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("epochs: 5\nlr: 1e-3\nscale: [0.5, 1.0]\nmodel_kwargs: {drop_path_rate: 0.1}\n")
    pairs = [("epochs", "7"), ("img_size", "[64, 96]"), ("clip_grad", "null"), ("pretrained", "true"), ("data", "123")]
    config = ClassificationConfig.from_sources(file, pairs)
    assert config == ClassificationConfig(
        epochs=7, lr=1e-3, scale=(0.5, 1.0), model_kwargs={"drop_path_rate": 0.1}, img_size=(64, 96), clip_grad=None,
        pretrained=True, data="123",
    )  # fmt: skip
    copy = tmp_path / "copy.yaml"
    copy.write_text(config.to_yaml())
    assert ClassificationConfig.from_sources(copy) == config


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("epoch", "3", "there is no setting 'epoch'; did you mean epochs"),
        ("quux", "3", "there is no setting 'quux'; `visionssm train --help` lists them"),
        ("epochs", "2.5", r"epochs=2.5: expected int \| None"),
        ("batch_size", "many", "batch_size=many: expected int"),
        ("img_size", "64", r"img_size=64: expected tuple\[int, int\]"),
        ("epochs", "0", "epochs=0: must be above 0"),
        ("hflip", "1.5", "hflip=1.5: must lie between 0 and 1"),
        ("scale", "[1.0, 0.5]", "the first number is the smaller one"),
        ("device", "gpu", "device=gpu: must be one of auto, cpu, cuda, mps"),
        ("precision", "fp8", "precision=fp8: must be one of float32, bfloat16, float16"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassificationConfig.from_sources(pairs=[(name, text)])


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1, 2", "isn't a YAML file"), ("- 1", "must hold lines of the form"), ("epochz: 1", "did you mean epochs")],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        ClassificationConfig.from_sources(tmp_path / "run.yaml")
    with pytest.raises(FileNotFoundError, match="no such configuration file"):
        ClassificationConfig.from_sources(tmp_path / "other.yaml")


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="mixup and cutmix need an even number"):
        ClassificationConfig(mixup=0.8, batch_size=33)
    with pytest.raises(ValueError, match=r"lr=1e-06: below min_lr=1e-05"):
        ClassificationConfig(lr=1e-6)
    with pytest.raises(ValueError, match="both name weights to start from"):
        ClassificationConfig(pretrained=True, checkpoint="file.pth")


def test_nothing_that_a_run_needs_is_left_open_and_nothing_chosen_is_changed() -> None:
    for config in (
        ClassificationConfig(),
        ClassificationConfig(data="photos"),
        ClassificationConfig(data="photos", pretrained=True),
    ):
        complete = config.with_defaults()
        for name in ("epochs", "lr", "warmup_epochs", "scale", "hflip", "ema_decay", "out"):
            assert getattr(complete, name) is not None, name
    chosen = ClassificationConfig(data="photos", epochs=3, lr=0.5, hflip=0.1, out="here", warmup_epochs=0.0)
    assert chosen.with_defaults() == ClassificationConfig(
        **{field.name: getattr(chosen, field.name) for field in fields(chosen)}
        | {"scale": (0.08, 1.0), "ema_decay": 0.0, "devices": 1, "nodes": 1}
    )


def test_only_what_changes_the_result_counts_as_a_change() -> None:
    before = ClassificationConfig(epochs=3).to_dict()
    assert changed_settings(before, ClassificationConfig(epochs=3, workers=2, out="there").to_dict()) == []
    assert changed_settings(before, ClassificationConfig(epochs=4, lr=0.1).to_dict()) == [
        "epochs: 3 -> 4",
        "lr: None -> 0.1",
    ]


def test_processes_that_a_launcher_started_are_those_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ClassificationConfig(data="photos").with_defaults().processes == 1
    with monkeypatch.context() as torchrun:
        for name, value in {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}.items():
            torchrun.setenv(name, value)
        config = ClassificationConfig(data="photos").with_defaults()
        assert (config.devices, config.nodes, config.processes) == (4, 2, 8)
    with monkeypatch.context() as slurm:
        for name, value in {"SLURM_NTASKS_PER_NODE": "8", "SLURM_NNODES": "3", "SLURM_PROCID": "5"}.items():
            slurm.setenv(name, value)
        assert ClassificationConfig(data="photos").with_defaults().processes == 24


def test_settings_of_another_task_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("task: detection\n")
    with pytest.raises(ValueError, match="holds settings of the task detection, not of classification"):
        ClassificationConfig.from_sources(tmp_path / "run.yaml")
