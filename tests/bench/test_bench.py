"""The benchmark measures what it says, and refuses what is wrong. Nothing here depends on how fast anything is."""

import csv
import json

import pytest

from visionssm.bench import Measurement, Setting, compare, table
from visionssm.cli.main import main

SMALL = Setting(size=(32, 32), batch=2)


def test_models_take_turns_and_are_counted():
    results = compare(["vmamba_nano", "test_convnext"], SMALL, seconds=0.05)
    assert [r.model for r in results] == ["vmamba_nano", "test_convnext"]
    assert len(results[0].seconds) == len(results[1].seconds) >= 3
    assert all(r.images_per_second > 0 and r.gmacs > 0 for r in results)
    assert results[0].percentile(0.1) <= results[0].median <= results[0].percentile(0.9)


@pytest.mark.parametrize("change", [{"train": True}, {"dtype": "bfloat16"}, {"equal": True}], ids=str)
def test_every_setting_runs(change):
    setting = Setting(size=(32, 32), batch=1, **change)
    (result,) = compare(["vmamba_nano"], setting, seconds=0.01)
    assert result.setting.describe() != SMALL.describe()


def test_ratio_is_the_first_models_throughput_over_the_others():
    fast, slow = (
        Measurement(model=n, setting=SMALL, seconds=(s,) * 3, peak_mib=None, gmacs=None)
        for n, s in (("a", 0.5), ("b", 1.0))
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table([fast, slow]).splitlines()]
    assert [row[rows[0].index("ratio")] for row in rows[2:]] == ["1.00", "2.00"]


def test_command_writes_json_csv_and_a_picture(tmp_path, capsys):
    code = main(
        ["bench", "vmamba_nano", "--sizes", "32,48", "--batch", "1", "--seconds", "0.01", "--out", str(tmp_path)]
    )
    assert code == 0
    assert "vmamba_nano" in capsys.readouterr().out
    content = json.loads((tmp_path / "bench.json").read_text())
    assert [m["size"] for m in content["measurements"]] == [[32, 32], [48, 48]]
    assert {"processor", "torch", "date", "threads"} <= set(content["machine"])
    with (tmp_path / "bench.csv").open() as file:
        assert [row["size"] for row in csv.DictReader(file)] == ["32x32", "48x48"]
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["vmamba_tinny"], "did you mean vmamba_tiny"),
        (["--sizes", "big"], "--sizes: got 'big', need positive whole numbers"),
        (["--sizes", "1x2x3"], "--sizes: got '1x2x3'"),
        (["--batch", "0"], "--batch: got '0'"),
        (["--dtype", "float32,int8"], "dtype: got 'int8', choose from float32, bfloat16, float16"),
        (["--vs", "resnet1"], "there is no 'resnet1'; did you mean resnet"),
        (["--threads", "0"], "--threads: got 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "building" not in error  # before anything is measured


def test_what_was_measured_before_a_failure_is_kept(tmp_path, capsys):
    """Vim has no token for images below its patches."""
    sizes = ["vim_nano", "--sizes", "32,33x1", "--batch", "1", "--seconds", "0.01"]
    assert main(["bench", *sizes, "--out", str(tmp_path)]) != 0
    captured = capsys.readouterr()
    assert "33x1" not in captured.out and "vim_nano" in captured.out
    assert [m["size"] for m in json.loads((tmp_path / "bench.json").read_text())["measurements"]] == [[32, 32]]
