import shutil
from pathlib import Path

import pytest
import yaml

from visionssm.cli.main import main


def _message(capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says on standard error: one line about the mistake, without a traceback."""
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("visionssm train: error: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]


def test_training_on_a_folder_says_what_it_does_and_how_it_went(
    train_command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*train_command, "epochs=1", f"out={tmp_path / 'run'}"]) == 0
    output = capsys.readouterr().out
    assert "model     test_convnext, 207,323 parameters, on cpu" in output
    assert "data      photos: 3 classes, 96 training, 24 validation images" in output
    assert "epoch 1/1  train loss" in output
    assert "best weights, val images: 24 images" in output
    assert f"visionssm predict IMAGE... --checkpoint {tmp_path / 'run'}" in output


def test_print_config_shows_every_setting_and_trains_nothing(
    train_command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("lr: 3e-3\nepochs: 9\n")
    assert main([*train_command, "--config", str(file), "--print-config", f"out={tmp_path / 'run'}"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["lr"], printed["epochs"], printed["img_size"]) == (3e-3, 6, [32, 32])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoks", "3"], "there is no option --epoks; did you mean --epochs?"),
        (["epoks=3"], "there is no setting 'epoks'; did you mean epochs?"),
        (["3"], "'3': settings are given as name=value"),
        (["epochs=three"], "epochs=three: expected int | None"),
        (["--model", "vmamba_nanoo"], "did you mean vmamba_nano"),
        (["--data", "nowhere"], "nowhere: no such file or folder"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        (["--checkpoint", "nowhere.ckpt"], "nowhere.ckpt: no such checkpoint"),
        (["device=cuda"], "device cuda isn't available here; available: auto, cpu"),
        (["auto_augment=rand-m9", "in_chans=1"], "auto_augment=rand-m9 needs colour images"),
        (["model_kwargs={no_such_option: 1}"], "no_such_option"),
        (["optimizer=adamww"], "adamww"),
    ],
)
def test_a_mistake_on_the_command_line_gives_one_line_and_exit_code_2(
    train_command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    if arguments == ["device=cuda"] and _has_cuda():
        pytest.skip("this machine has CUDA")
    assert main([*train_command, f"out={tmp_path / 'run'}", *arguments]) == 2
    assert message in _message(capsys)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def test_images_that_cannot_be_read_are_listed_and_training_goes_on(
    train_command: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    (data / "one" / "00.png").write_bytes(b"")
    (data / "two" / "00.png").write_bytes(b"<html>404</html>")
    whole = (data / "zero" / "00.png").read_bytes()
    (data / "zero" / "00.png").write_bytes(whole[:100])
    assert main([*train_command, f"data={data}", "mixup=0.5", f"out={tmp_path / 'run'}"]) == 0
    lines = (tmp_path / "run" / "unreadable_images.txt").read_text().splitlines()
    reasons = dict(line.split("\t") for line in lines)
    assert set(reasons) == {str(data / name / "00.png") for name in ("one", "two", "zero")}
    assert reasons[str(data / "one" / "00.png")] == "the file is empty"
    assert reasons[str(data / "two" / "00.png")] == "not an image in a format that Pillow reads"
    assert reasons[str(data / "zero" / "00.png")].startswith("damaged image: ")
    assert capsys.readouterr().out.count("left out, can't be read") == 3


def test_too_many_images_that_cannot_be_read_stop_the_run(
    train_command: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    for number in range(20):
        (data / "one" / f"{number:02d}.png").write_bytes(b"broken")
    assert main([*train_command, f"data={data}", f"out={tmp_path / 'run'}"]) == 2
    message = _message(capsys)
    assert "more than 5 of the train images can't be read (max_unreadable)" in message
    assert str(tmp_path / "run" / "unreadable_images.txt") in message


@pytest.mark.parametrize("kind", ["empty folder", "class without images", "one class"])
def test_a_folder_that_cannot_be_used_is_refused(
    train_command: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    if kind == "empty folder":
        for name in ("one", "two", "zero"):
            shutil.rmtree(data / name)
        expected = "is empty: it has no class folders"
    elif kind == "class without images":
        shutil.rmtree(data / "one")
        (data / "one").mkdir()
        expected = "1 class folder (one) without images"
    else:
        shutil.rmtree(data / "one")
        shutil.rmtree(data / "two")
        expected = "one class only (zero)"
    assert main([*train_command, f"data={data}", f"out={tmp_path / 'run'}"]) == 2
    assert expected in _message(capsys)


def test_an_output_folder_that_cannot_be_written_is_refused(
    train_command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main([*train_command, f"out={tmp_path / 'file' / 'run'}"]) == 2
    message = _message(capsys)
    assert "can't be written" in message
    assert "choose another one with out=DIR" in message


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody may write, not even root")
def test_a_read_only_output_folder_is_refused(train_command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*train_command, "out=/proc/self/run"]) == 2
    assert "the output folder /proc/self/run can't be written" in _message(capsys)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", "half"])
def test_a_damaged_last_checkpoint_is_named_and_left_alone(
    run_folder: Path, train_command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | str
) -> None:
    run = shutil.copytree(run_folder, tmp_path / "run")
    whole = (run / "last.ckpt").read_bytes()
    damaged = whole[: len(whole) // 2] if isinstance(content, str) else content
    (run / "last.ckpt").write_bytes(damaged)
    assert main([*train_command, f"out={run}"]) == 2
    message = _message(capsys)
    assert f"{run / 'last.ckpt'} can't be read as a checkpoint" in message
    assert (run / "last.ckpt").read_bytes() == damaged


def test_debug_shows_the_traceback(train_command: list[str], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        main([*train_command, "data=nowhere", f"out={tmp_path / 'run'}", "--debug"])


def test_a_changed_data_set_is_noticed(
    run_folder: Path, train_command: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(run_folder, tmp_path / "run")
    data = shutil.copytree(photos, tmp_path / "photos")
    (data / "one" / "00.png").unlink()
    assert main([*train_command, f"data={data}", f"out={run}"]) == 2
    message = _message(capsys)
    assert "the images or labels of the data set" in message
    assert "--force" in message
