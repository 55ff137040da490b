"""The page, as a browser sees it, and the uploads that it turns down."""

import io
import shutil
import socket
import struct
import subprocess
import sys
import time
import zlib

import pytest
from PIL import Image

from visionssm.cli.main import main
from visionssm.data import load_digits
from visionssm.data.scenes import make_scenes
from visionssm.serve.looking import Looker, open_upload
from visionssm.tasks.classifiers import named_classifier
from visionssm.tasks.dense_model import load_dense_model


@pytest.fixture
def digit(tmp_path):
    file = tmp_path / "digit.png"
    load_digits().test.load(3).resize((96, 96)).convert("RGB").save(file)
    return file


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_classifier_shows_classes_evidence_and_attention(digit):
    looker = Looker(named_classifier("vmamba_nano"))
    image = open_upload(digit)
    finding = looker.look(image)
    assert len(finding.shares) == 5
    assert list(finding.shares.values()) == sorted(finding.shares.values(), reverse=True)
    assert next(iter(finding.shares)) == str(load_digits().test.labels[3])
    assert min(finding.picture.size) > 200
    assert looker.input_of(image).size == (320, 320)
    assert min(looker.attention(image, 0.5, 0.5).size) > 200


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_dense_model_draws_what_it_finds(task, tmp_path):
    make_scenes(tmp_path / "scenes", images=4, size=64)
    run = tmp_path / "run"
    settings = ["--data", str(tmp_path / "scenes"), "--epochs", "1", "--batch-size", "2", "--out", str(run)]
    assert main(["train", "--task", task, "--model", "vmamba_nano", *settings]) == 0
    looker = Looker(load_dense_model(run))
    assert not looker.is_classifier
    scene = open_upload(next((tmp_path / "scenes" / "coco" / "val2017").iterdir()))
    finding = looker.look(scene)
    assert min(finding.picture.size) >= 480
    assert all(0 <= share <= 1 for share in finding.shares.values())
    assert looker.input_of(scene) is scene


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not an image", "no image that can be read"),
        (bomb(60_000, 60_000), "no image that can be read|pixels; at most 40 million"),
        (bomb(8_000, 8_000), "8000x8000 pixels; at most 40 million are taken"),
        (bomb(80, 80), "damaged image"),
        (b"\0" * (11 * 2**20), "11.0 MiB; at most 10"),
        (b"", "no image that can be read"),
    ],
    ids=["text", "bomb", "large", "damaged", "bytes", "empty"],
)
def test_uploads_that_are_turned_down(content, message, tmp_path):
    file = tmp_path / "upload.png"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_upload(file)


def test_an_upload_may_be_grey_or_transparent(tmp_path):
    for mode in ("L", "RGBA", "P", "1"):
        data = io.BytesIO()
        Image.new(mode, (9, 7)).save(data, "PNG")
        (tmp_path / "image.png").write_bytes(data.getvalue())
        assert open_upload(tmp_path / "image.png").mode == "RGB"


@pytest.mark.slow
def test_in_a_browser(digit, tmp_path):
    pytest.importorskip("gradio")
    sync_api = pytest.importorskip("playwright.sync_api")
    browser_file = shutil.which("chromium")
    if browser_file is None:
        pytest.skip("chromium is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "visionssm",
        "serve",
        "--model",
        "vmamba_nano",
        "--pretrained",
        "--port",
        str(port),
    ]
    server = subprocess.Popen(command)
    try:
        wait_for(port)
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_file, args=["--no-sandbox", "--disable-gpu"])
            tab = browser.new_page(viewport={"width": 1100, "height": 1500})
            tab.goto(f"http://127.0.0.1:{port}")
            tab.locator("#upload input[type=file]").set_input_files(str(digit))
            tab.locator("#found img").wait_for(timeout=30_000)
            assert str(load_digits().test.labels[3]) in tab.locator("#shares").inner_text()
            tab.locator("#photo img").click()
            tab.locator("#attention img").wait_for(timeout=30_000)
            tab.screenshot(path=str(tmp_path / "page.png"))
            (tmp_path / "bad.png").write_bytes(b"not an image")
            tab.reload()
            tab.locator("#upload input[type=file]").set_input_files(str(tmp_path / "bad.png"))
            tab.get_by_text("no image that can be read").first.wait_for(timeout=30_000)
            browser.close()
    finally:
        server.terminate()
        server.wait(30)


def wait_for(port: int) -> None:
    """Until something listens on the port."""
    for _ in range(240):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise TimeoutError(f"nothing listens on port {port}")
