"""`visionssm erf`, `attend`, `cam` and `paths`, as a user runs them."""

import pytest
from PIL import Image

from visionssm.cli.main import main


@pytest.fixture
def photo(tmp_path):
    Image.effect_noise((60, 40), 80).convert("RGB").save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def written(path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


def test_receptive_field_of_sample_photos(tmp_path, capsys):
    out = tmp_path / "pictures" / "erf.png"
    assert main(["erf", "--model", "vmamba_nano", "--img-size", "64", "96", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "vmamba_nano at 64x96, 2 images, 0 skipped" in printed.out
    assert "untrained" in printed.err
    assert written(out)[0] > 300


def test_receptive_field_names_unreadable_images(tmp_path, photo, capsys):
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert main(["erf", "--model", "vmamba_nano", "--images", str(tmp_path), "--out", str(tmp_path / "e.png")]) == 0
    printed = capsys.readouterr().out
    assert "broken.png can't be read" in printed
    assert "1 images" in printed


@pytest.mark.parametrize("name", ["vim_nano", "mambavision_nano", "efficient_vmamba_nano"])
def test_attention_and_cam(name, tmp_path, photo, capsys):
    attention, cam = tmp_path / "attention.png", tmp_path / "cam.png"
    assert main(["attend", photo, "--at", "0.5,0.25", "--model", name, "--out", str(attention)]) == 0
    assert main(["cam", photo, "--model", name, "--class", "3", "--out", str(cam)]) == 0
    assert written(attention)[0] > 300
    assert written(cam)[0] > 300
    assert "class 3" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["vmamba", "local_mamba", "hilbert"])
def test_paths_are_drawn_and_animated(name, tmp_path):
    for suffix in ("png", "gif"):
        assert (
            main(
                ["paths", name, "--grid", "4x5" if name != "hilbert" else "4x4", "--out", str(tmp_path / f"w.{suffix}")]
            )
            == 0
        )
    with Image.open(tmp_path / "w.gif") as image:
        assert image.n_frames > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paths", "vmambo"], "did you mean vmamba"),
        (["paths", "vmamba", "--grid", "0x3"], "need HxW such as 14x14"),
        (["paths", "vmamba", "--out", "walk.jpg"], ".png or .gif"),
        (["erf"], "give --model NAME"),
        (["erf", "--model", "vmamba_nano", "--out", "erf.pdf"], "ends in .png"),
        (["erf", "--model", "vmamba_nano", "--images", "nowhere"], "nowhere"),
        (["cam", "PHOTO", "--model", "vmamba_nano", "--class", "dog"], "carry no class names"),
        (["cam", "PHOTO", "--model", "vmamba_nano", "--class", "12"], "the model has 10 classes"),
        (["cam", "PHOTO", "--model", "vmamba_nano", "--layer", "head"], "choose from stages.0"),
        (["cam", "missing.png", "--model", "vmamba_nano"], "missing.png"),
        (["attend", "PHOTO", "--model", "vmamba_nano", "--at", "2,0"], "between 0 and 1"),
        (["attend", "PHOTO", "--model", "vmamba_nano", "--at", "a"], "need X,Y"),
        (["attend", "PHOTO", "--model", "vmamba_nano", "--at", "0,0", "--layer", "x"], "choose from stages.0.blocks.0"),
    ],
)
def test_bad_input(arguments, message, photo, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([photo if argument == "PHOTO" else argument for argument in arguments]) == 2
    assert message in capsys.readouterr().err
