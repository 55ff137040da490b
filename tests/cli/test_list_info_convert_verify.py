"""The commands about models and weight files, on real files, and fetching weights where there is no network."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import visionssm
from visionssm.cli.main import main
from visionssm.models import _release, all_releases, count_parameters, export_published, fingerprint, save_checkpoint

NANO = [name for name in visionssm.list_models() if "nano" in name]


def run(capsys, *arguments):
    """Exit code, standard output and standard error of a command."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def listed(capsys, *arguments):
    code, out, _ = run(capsys, "list", *arguments, "--json")
    assert code == 0
    return {row["name"]: row for row in json.loads(out)}


def small(name="vmamba_nano", **options):
    torch.manual_seed(0)
    return visionssm.create_model(name, **options).eval()


def test_list_shows_every_release_with_what_is_published(capsys):
    rows = listed(capsys)
    assert set(rows) == set(all_releases())
    assert rows["vmamba_tiny.in1k"] == {
        "name": "vmamba_tiny.in1k",
        "params": "30.2M",
        "GFLOPs": "4.9",
        "top-1": "82.6",
        "licence of the weights": "unstated",
    }
    assert rows["vmamba_tiny_m2"]["licence of the weights"] == "no weights"
    assert rows["vmamba_nano.digits"]["licence of the weights"] == "Apache-2.0"


def test_list_takes_patterns(capsys):
    assert {name.partition("_")[0] for name in listed(capsys, "vmamba*")} == {"vmamba"}
    assert set(listed(capsys, "vmamba_tiny")) == {"vmamba_tiny.in1k"}


def test_list_of_weights_leaves_out_models_without(capsys):
    rows = listed(capsys, "--pretrained")
    assert set(rows) == {name for name, release in all_releases().items() if release.has_weights}
    assert "vmamba_tiny_m2" not in rows
    assert "vmamba_nano.digits" in rows


def test_list_of_weights_for_commercial_use_needs_their_authors_word(capsys):
    allowed = {name for name, release in all_releases().items() if release.has_weights and release.commercial}
    assert set(listed(capsys, "--pretrained", "--commercial-ok")) == allowed
    assert not [name for name in allowed if name.startswith("mambavision") and not name.endswith(".digits")]
    code, out, err = run(capsys, "list", "mambavision_t*", "--pretrained", "--commercial-ok")
    assert (code, out) == (0, "")
    assert "commercial use" in err and "mambavision_t*" in err


def test_list_finds_weights_that_are_free_for_commercial_use(capsys, monkeypatch):
    free = replace(all_releases()["vmamba_tiny.in1k"], commercial=True, weights_license="mit")
    monkeypatch.setitem(_release._releases, "vmamba_tiny.in1k", free)
    rows = listed(capsys, "vmamba_t*", "--pretrained", "--commercial-ok")
    assert {name: row["licence of the weights"] for name, row in rows.items()} == {"vmamba_tiny.in1k": "mit"}


def test_list_as_text_is_one_line_each_below_the_names_of_the_columns(capsys):
    _, out, _ = run(capsys, "list", "vanilla*")
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["name", "params", "GFLOPs"]
    assert len(lines) == 4
    starts = {line.index("unstated") for line in lines[1:]}
    assert starts == {lines[0].index("licence")}


def test_list_of_an_unknown_name_proposes_near_ones(capsys):
    code, _, err = run(capsys, "list", "vmamba_tinny")
    assert code == 2
    assert "no model matches 'vmamba_tinny'" in err and "vmamba_tiny" in err


def test_info_counts_what_the_model_has(capsys):
    code, out, _ = run(capsys, "info", "vmamba_nano", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["parameters"] == facts["parameters_published"] == f"{count_parameters(small()):,}"
    assert facts["features"] == "16 at 1/4, 32 at 1/8, 64 at 1/16, 128 at 1/32"
    code, out, _ = run(capsys, "info", "vmamba_tiny.in1k")
    assert code == 0
    assert "arXiv:2401.10166" in out and "82.6 %" in out and "vssm1_tiny_0230s_ckpt_epoch_264.pth" in out


def test_info_counts_for_the_size_asked_for(capsys):
    def gflops(*size):
        _, out, _ = run(capsys, "info", "vmamba_nano", "--json", *(("--img-size", *size) if size else ()))
        return json.loads(out)["GFLOPs"]

    assert "at 32x32" in gflops()
    assert "at 128x256" in gflops(128, 256)
    assert float(gflops(512).split()[0]) == pytest.approx(4 * float(gflops(256).split()[0]), rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("vmamba_tinny",), "did you mean vmamba_tiny"),
        (("resnet18",), "no 'resnet18' in this library"),
        (("vmamba_nano", "--img-size", "1", "2", "3"), "--img-size"),
        (("vmamba_nano", "--img-size", "0"), "--img-size"),
    ],
)
def test_info_names_mistakes(arguments, named, capsys):
    code, _, err = run(capsys, "info", *arguments)
    assert code == 2
    assert named in err and err.count("\n") == 1


@pytest.mark.parametrize("name", NANO)
def test_convert_to_published_names_and_back_changes_no_bit(name, tmp_path, capsys):
    """Through both kinds of files; buffers that training fills count too."""
    own = {key: torch.randn_like(v) if v.is_floating_point() else v + 3 for key, v in small(name).state_dict().items()}
    save_checkpoint(own, tmp_path / "own.safetensors")
    for source, target, to in (
        ("own.safetensors", "published.pth", "published"),
        ("published.pth", "back.safetensors", "own"),
    ):
        code, out, _ = run(capsys, "convert", tmp_path / source, tmp_path / target, "--model", name, "--to", to)
        assert code == 0
        assert f"under {to} names" in out and target in out
    published = torch.load(tmp_path / "published.pth", weights_only=True)
    assert set(published) == set(export_published(small(name)))
    assert set(published) != set(own)
    back = load_file(tmp_path / "back.safetensors")
    assert set(back) == set(own)
    assert all(back[key].dtype == own[key].dtype and torch.equal(back[key], own[key]) for key in own)


def test_convert_takes_the_container_asked_for(tmp_path, capsys):
    plain, averaged = (small(num_classes=4).state_dict() for _ in range(2))
    averaged["head.bias"] += 1
    torch.save({"model": plain, "model_ema": averaged, "epoch": 3}, tmp_path / "run.pth")
    for container, bias in ((None, 0), ("model_ema", 1)):
        target = tmp_path / f"{container}.safetensors"
        options = ("--container", container) if container else ()
        command = ("convert", tmp_path / "run.pth", target, "--model", "vmamba_nano", "--num-classes", 4, *options)
        assert run(capsys, *command)[0] == 0
        assert load_file(target)["head.bias"].tolist() == [bias] * 4


def test_convert_replaces_a_file_only_if_forced(tmp_path, capsys):
    save_checkpoint(small().state_dict(), tmp_path / "in.pth")
    (tmp_path / "out.safetensors").write_text("precious")
    command = ("convert", tmp_path / "in.pth", tmp_path / "out.safetensors", "--model", "vmamba_nano")
    code, _, err = run(capsys, *command)
    assert code == 2 and "--force" in err
    assert (tmp_path / "out.safetensors").read_text() == "precious"
    assert run(capsys, *command, "--force")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "out.safetensors"]


def test_convert_and_verify_name_all_that_does_not_fit(tmp_path, capsys):
    state = small().state_dict()
    state["extra.weight"] = torch.zeros(1)
    state["norm.weight"] = torch.zeros(3)
    del state["norm.bias"]
    save_checkpoint(state, tmp_path / "wrong.pth")
    for command in (
        ("convert", tmp_path / "wrong.pth", tmp_path / "out.pth", "--model", "vmamba_nano"),
        ("verify", "vmamba_nano", tmp_path / "wrong.pth"),
    ):
        code, _, err = run(capsys, *command)
        assert code == 2
        assert "1 missing: norm.bias" in err and "1 unexpected: extra.weight" in err
        assert "1 of another shape: norm.weight (3,) instead of (128,)" in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (("verify", "vmamba_nano", "absent.pth"), "no file absent.pth"),
        (("verify", "vmamba_tinny", "absent.pth"), "did you mean vmamba_tiny"),
        (("convert", "absent.pth", "out.pth", "--model", "vmamba_nano"), "no file absent.pth"),
        (("convert", "text.pth", "out.pth", "--model", "vmamba_nano"), "cannot be read as a weight file"),
        (("verify", "vmamba_nano", "page.pth"), "is a web page"),
        (("convert", "good.pth", "nowhere/out.pth", "--model", "vmamba_nano"), "no folder nowhere"),
    ],
)
def test_wrong_files_are_named(command, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>sign in</html>")
    save_checkpoint(small().state_dict(), tmp_path / "good.pth")
    code, _, err = run(capsys, *command)
    assert code == 2
    assert named in err and err.count("\n") == 1
    assert not (tmp_path / "out.pth").exists()


def test_verify_prints_a_fingerprint_of_what_the_model_computes(tmp_path, capsys):
    model = small()
    save_checkpoint(model.state_dict(), tmp_path / "own.safetensors")
    save_checkpoint(export_published(model), tmp_path / "published.pth")
    code, out, _ = run(capsys, "verify", "vmamba_nano", tmp_path / "own.safetensors")
    assert code == 0
    assert "no fingerprint is on record" in out
    line = next(line for line in out.splitlines() if line.startswith("fingerprint"))
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        values, indices = model(noise)[0].topk(5)
    assert line.split()[1:] == [f"{i}:{v:.4f}" for i, v in zip(indices.tolist(), values.tolist(), strict=True)]
    assert line in run(capsys, "verify", "vmamba_nano", tmp_path / "published.pth")[1]
    model.stem.conv1.weight.data[0] += 0.1
    save_checkpoint(model.state_dict(), tmp_path / "other.safetensors")
    assert line not in run(capsys, "verify", "vmamba_nano", tmp_path / "other.safetensors")[1]


def test_verify_compares_with_the_fingerprint_on_record(tmp_path, capsys, monkeypatch):
    model = small()
    save_checkpoint(model.state_dict(), tmp_path / "own.pth")
    known = replace(all_releases()["vmamba_nano.digits"], fingerprint=tuple(value for _, value in fingerprint(model)))
    monkeypatch.setitem(_release._releases, "vmamba_nano.digits", known)
    code, out, _ = run(capsys, "verify", "vmamba_nano", tmp_path / "own.pth")
    assert code == 0 and "equal to the one on record" in out
    state = model.state_dict()
    state["head.bias"] = state["head.bias"] + 0.001
    save_checkpoint(state, tmp_path / "own.pth")
    code, out, _ = run(capsys, "verify", "vmamba_nano", tmp_path / "own.pth")
    assert code == 1 and "NOT the one on record" in out


FETCH = """
import json, visionssm
said = {}
for name in ("vmamba_tiny", "mambavision_tiny", "mambavision_tiny", "vmamba_tiny_m2"):
    try:
        visionssm.create_model(name, pretrained=True)
    except (FileNotFoundError, ValueError) as error:
        said[name] = [type(error).__name__, str(error)]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def without_network(tmp_path_factory):
    """What fetching says where every connection is refused and nothing is cached; and what went to standard error."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    nowhere |= {"no_proxy": "", "NO_PROXY": "", "HF_HUB_OFFLINE": "0"}
    empty = str(tmp_path_factory.mktemp("cache"))
    caches = dict.fromkeys(("HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "HUGGINGFACE_HUB_CACHE"), empty)
    done = subprocess.run(
        [sys.executable, "-c", FETCH],
        capture_output=True,
        text=True,
        env={**os.environ, **nowhere, **caches},
        check=True,
    )
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("name", ["vmamba_tiny", "mambavision_tiny"])
def test_without_network_the_error_says_what_to_download_and_how_to_pass_it(name, without_network):
    kind, message = without_network[0][name]
    assert kind == "FileNotFoundError"
    assert all_releases()[f"{name}.in1k"].source in message
    assert f"visionssm.create_model('{name}', checkpoint='FILE')" in message


def test_a_model_without_weights_says_so(without_network):
    kind, message = without_network[0]["vmamba_tiny_m2"]
    assert kind == "ValueError"
    assert "no weights were ever published" in message and "checkpoint=FILE" in message


def test_a_licence_that_forbids_commercial_use_is_printed_once(without_network):
    assert without_network[1].count("not for commercial use") == 1
