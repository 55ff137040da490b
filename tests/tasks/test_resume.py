"""A run that dies and is started again ends bit by bit where an uninterrupted one ends."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import interrupted, same

from visionssm.cli.main import main
from visionssm.tasks.callbacks import AtomicCheckpointIO
from visionssm.tasks.checkpoint import read_checkpoint

# Everything that draws random numbers or carries state is on.
COMMAND = [
    "train", "--model", "test_convnext", "--img-size", "[32, 32]", "--device", "cpu", "model_kwargs={drop_path_rate: 0.2}",
    "ema_decay=0.98", "mixup=0.2", "random_erasing=0.2", "checkpoint_steps=3",
]  # fmt: skip


def _assert_same_run(first: Path, second: Path) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        a, b = read_checkpoint(first / name), read_checkpoint(second / name)
        a.pop("visionssm"), b.pop("visionssm")  # names the folder
        assert a.keys() == b.keys()
        assert [key for key in a if not same(a[key], b[key])] == []
    assert (first / "metrics.csv").read_bytes() == (second / "metrics.csv").read_bytes()


def _kill_training(command: list[str], folder: Path, delay: float) -> None:
    """Start a run in a process of its own, and kill it some time after it has written a checkpoint."""
    last = folder / "last.ckpt"
    before = last.stat().st_mtime_ns if last.exists() else 0
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with open(folder.parent / "output.txt", "w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "visionssm", *command], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    while process.poll() is None and not (last.exists() and last.stat().st_mtime_ns != before):
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert process.wait() in (-signal.SIGKILL, 0), (folder.parent / "output.txt").read_text()


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """The folder of a run of two epochs that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main([*COMMAND, "epochs=2", f"out={folder}"]) == 0
    return folder


def test_a_killed_run_ends_like_one_that_was_not(whole_run: Path, tmp_path: Path) -> None:
    command, killed = [*COMMAND, "epochs=2"], tmp_path / "killed"
    _kill_training([*command, f"out={killed}"], killed, delay=0.1)
    assert not (killed / "results.json").exists()
    assert main([*command, f"out={killed}"]) == 0
    _assert_same_run(whole_run, killed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_run_killed_again_and_again_ends_like_one_that_was_not(tmp_path: Path, seed: int) -> None:
    delays = random.Random(seed)
    command = [*COMMAND, "epochs=5", f"workers={seed % 2}", f"accumulate={1 + seed // 2}"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*command, f"out={whole}"]) == 0
    for _ in range(3):
        _kill_training([*command, f"out={killed}"], killed, delays.uniform(0, 1.5))
    assert main([*command, f"out={killed}"]) == 0
    _assert_same_run(whole, killed)


def test_ctrl_c_saves_and_the_same_command_continues(
    whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, stopped = [*COMMAND, "epochs=2"], tmp_path / "stopped"

    handler = signal.getsignal(signal.SIGINT)
    capsys.readouterr()
    assert interrupted([*command, f"out={stopped}"], stopped) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    captured = capsys.readouterr()
    assert "the same command continues from it" in captured.out
    assert "Traceback" not in captured.out + captured.err
    assert main([*command, f"out={stopped}"]) == 0
    assert "continues the run in this folder" in capsys.readouterr().out
    _assert_same_run(whole_run, stopped)


@pytest.fixture
def quick_command(small_settings: dict[str, Any]) -> list[str]:
    """The same on few images: two steps in an epoch."""
    return [*COMMAND, f"data={small_settings['data']}", "workers=0", "checkpoint_steps=1"]


def test_a_finished_run_is_not_trained_again(quick_command: list[str], tmp_path: Path) -> None:
    command = [*quick_command, "epochs=1", f"out={tmp_path / 'run'}"]
    assert main(command) == 0
    before = (tmp_path / "run" / "last.ckpt").read_bytes()
    assert main(command) == 0
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before


def test_other_settings_in_the_same_folder_are_refused_unless_forced(
    quick_command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*quick_command, f"out={tmp_path / 'run'}"]
    assert main([*command, "epochs=1"]) == 0
    before = (tmp_path / "run" / "last.ckpt").read_bytes()
    assert main([*command, "epochs=2", "lr=5e-4"]) == 2
    assert "holds a run with other settings: epochs: 1 -> 2; lr: 0.001 -> 0.0005" in capsys.readouterr().err
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before
    assert main([*command, "epochs=2", "lr=5e-4", "--force"]) == 0
    assert len(read_checkpoint(tmp_path / "run" / "last.ckpt")["history"]["epochs"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("where", ["mid-epoch", "at the end of an epoch"])
@pytest.mark.parametrize("batch_size", [16, 64])
def test_a_run_that_is_forced_on_with_another_batch_shows_every_image_as_often(
    quick_command: list[str], tmp_path: Path, where: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four batches of 32 in an epoch; interrupted after two batches of the second epoch, or at the end of the first."""
    run = tmp_path / "run"
    command = [*quick_command, "epochs=3", "batch_size=32", "checkpoint_steps=2", f"out={run}"]

    def stop_after_some(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        if Path(args[2]).name == "last.ckpt" and read_checkpoint(run / "last.ckpt")["global_step"] == stop_at:
            raise KeyboardInterrupt

    stop_at = 6 if where == "mid-epoch" else 4
    save = AtomicCheckpointIO.save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", stop_after_some)
        assert main(command) == 130
    assert read_checkpoint(run / "last.ckpt")["global_step"] == stop_at
    assert main([*command, f"batch_size={batch_size}", "--force"]) == 0
    content = read_checkpoint(run / "last.ckpt")
    assert [row["epoch"] for row in content["history"]["epochs"]] == [1, 2, 3]
    steps = 128 // batch_size
    assert content["global_step"] == stop_at + 2 * steps
    assert content["ClassificationData"] == {"epoch": 2, "batches_done": steps}


def test_a_full_disk_leaves_the_earlier_checkpoint_intact(
    quick_command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*quick_command, "epochs=1", f"out={run}"]) == 0
    before = (run / "last.ckpt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # The system refuses to let any file grow beyond this, as it does when the disk is full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        assert main([*quick_command, "epochs=2", f"out={run}", "--force"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "could not be written" in message
    assert "earlier checkpoints are intact" in message
    assert (run / "last.ckpt").read_bytes() == before
    assert [path for path in run.iterdir() if path.suffix == ".tmp"] == []
    assert main([*quick_command, "epochs=2", f"out={run}", "--force"]) == 0
