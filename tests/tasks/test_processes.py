"""Several processes train like one, die and continue like one, and speak like one."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import same

import visionssm
from visionssm.cli.main import main
from visionssm.tasks.checkpoint import load_classifier, read_checkpoint

SETTINGS = [
    "--model", "test_convnext", "--img-size", "[32, 32]", "--device", "cpu", "workers=0", "threads=1", "hflip=0.5",
    "ema_decay=0.9", "label_smoothing=0.1",
]  # fmt: skip


def _command(*settings: str) -> list[str]:
    return [sys.executable, "-m", "visionssm", "train", *SETTINGS, *settings]


def _torchrun(processes: int, *settings: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*launcher, "-m", "visionssm", "train", *SETTINGS, *settings]


def _start(command: list[str], output: Path) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if "RANK" not in name}
    environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    with open(output, "a") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment)


def _run(command: list[str], output: Path, expected_code: int = 0) -> str:
    code = _start(command, output).wait(timeout=1200)
    text = output.read_text()
    assert code == expected_code, text
    return text


def _assert_close(first: Path, second: Path) -> None:
    """The same weights and averaged weights, but for the order in which numbers were added up."""
    states = [read_checkpoint(folder / "last.ckpt")["state_dict"] for folder in (first, second)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=2e-5, msg=name)


@pytest.fixture(scope="module")
def data(small_settings: dict[str, Any]) -> str:
    """128 training images, 32 validation images: two steps of 64 in an epoch."""
    return f"data={small_settings['data']}"


@pytest.fixture(scope="module")
def one_process(data: str, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """The run that those of several processes are compared with."""
    folder = tmp_path_factory.mktemp("one") / "run"
    assert main(["train", *SETTINGS, data, "epochs=2", "batch_size=64", f"out={folder}"]) == 0
    return folder


def test_two_processes_train_like_one_with_twice_the_batch(data: str, one_process: Path, tmp_path: Path) -> None:
    settings = [data, "epochs=2", "batch_size=32", "devices=2", f"out={tmp_path / 'run'}"]
    output = _run(_command(*settings), tmp_path / "output.txt")
    _assert_close(one_process, tmp_path / "run")
    assert "batch 64 (32 images x 1 batches x 2 processes)" in output
    for line in ("data      few: 4 classes", "epoch 2/2  train loss", "best weights, val images: 32 images"):
        assert output.count(line) == 1, line


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_torchrun_and_both_strategies_train_like_one_process(
    data: str, one_process: Path, tmp_path: Path, strategy: str
) -> None:
    settings = [data, "epochs=2", "batch_size=32", f"strategy={strategy}", f"out={tmp_path / 'run'}"]
    output = _run(_torchrun(2, *settings), tmp_path / "output.txt")
    assert output.count("epoch 2/2  train loss") == 1
    _assert_close(one_process, tmp_path / "run")
    # A file that several processes wrote serves one.
    assert load_classifier(tmp_path / "run").weights == "averaged"


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "seed"), [("ddp", 0), ("ddp", 1), ("fsdp", 2)])
def test_two_processes_that_are_killed_end_like_two_that_were_not(
    data: str, tmp_path: Path, strategy: str, seed: int
) -> None:
    settings = [
        data, "epochs=2", "batch_size=8", "devices=2", f"strategy={strategy}", "mixup=0.2", "random_erasing=0.2",
        "checkpoint_steps=2", "model_kwargs={drop_path_rate: 0.2}",
    ]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _run(_command(*settings, f"out={whole}"), tmp_path / "whole.txt")
    delays = random.Random(seed)
    last = killed / "last.ckpt"
    for _ in range(2):
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = _start(_command(*settings, f"out={killed}"), tmp_path / "killed.txt")
        while process.poll() is None and not (last.exists() and last.stat().st_mtime_ns != before):
            time.sleep(0.005)
        time.sleep(delays.uniform(0, 1))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    _run(_command(*settings, f"out={killed}"), tmp_path / "killed.txt")
    for name in ("last.ckpt", "best.ckpt"):
        a, b = read_checkpoint(whole / name), read_checkpoint(killed / name)
        a.pop("visionssm"), b.pop("visionssm")  # names the folder
        assert [key for key in a if not same(a[key], b[key])] == []
    assert (whole / "metrics.csv").read_bytes() == (killed / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_every_family_can_be_shared_out(tmp_path: Path) -> None:
    script = Path(__file__).with_name("fsdp_families.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    output = _run([*launcher, str(script)], tmp_path / "output.txt")
    for name in visionssm.list_models("*_nano"):
        assert f"{name} 0.5" in output


@pytest.mark.slow
def test_a_step_that_goes_wrong_in_one_process_is_skipped_in_all(tmp_path: Path) -> None:
    script = Path(__file__).with_name("overflow_in_one_process.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    output = _run([*launcher, str(script), str(tmp_path / "run")], tmp_path / "output.txt")
    place = "step 3: the gradients aren't finite, first seen in the output of overflow (Identity); step skipped"
    assert output.count(place) == 1
    assert "process 0 skipped 1" in output
    assert "process 1 skipped 1" in output
    state = read_checkpoint(tmp_path / "run" / "last.ckpt")["state_dict"]
    assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.slow
def test_unreadable_images_of_all_processes_are_listed_once(data: str, tmp_path: Path) -> None:
    """A whole batch of one process can't be read: the other one doesn't wait for ever."""
    folder = Path(shutil.copytree(data.removeprefix("data="), tmp_path / "few"))
    for number in range(30):
        (folder / "0" / f"{number:02d}.png").write_bytes(b"broken")
    settings = [f"data={folder}", "epochs=1", "batch_size=2", "devices=2", "max_unreadable=1.0"]
    _run(_command(*settings, f"out={tmp_path / 'run'}"), tmp_path / "output.txt")
    lines = (tmp_path / "run" / "unreadable_images.txt").read_text().splitlines()
    assert len(lines) == 30
    text = _run(
        _command(*settings, "max_unreadable=0", f"out={tmp_path / 'strict'}"), tmp_path / "strict.txt", expected_code=2
    )
    assert "more than 5 of the train images can't be read (max_unreadable)" in text


@pytest.mark.slow
def test_a_process_is_told_to_stop_and_all_save_and_leave(data: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [data, "epochs=50", "batch_size=8", "devices=2", "checkpoint_steps=2", f"out={run}"]
    process = _start(_command(*settings), tmp_path / "output.txt")
    while process.poll() is None and not (run / "last.ckpt").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=600) == 130, (tmp_path / "output.txt").read_text()
    assert "the same command continues from it" in (tmp_path / "output.txt").read_text()
