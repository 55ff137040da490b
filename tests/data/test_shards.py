import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from visionssm.data import LabeledImages, Preprocessing, eval_transform, load_digits, make_loader
from visionssm.data.shards import shard_order
from visionssm.data.source import load_data

GREY = Preprocessing((1, 8, 8), "bicubic", (0.0,), (1.0,), crop_pct=1.0, crop_mode="center")
TRANSFORM = eval_transform(GREY)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """`shards/{train,val}-0000.tar ...` as the webdataset library writes them, with 240 and 60 digits."""
    import webdataset

    folder = tmp_path / "shards"
    folder.mkdir()
    splits = load_digits()
    for name, images, count in (("train", splits.train, 240), ("val", splits.val, 60)):
        with webdataset.ShardWriter(f"{folder}/{name}-%04d.tar", maxcount=25, verbose=0) as writer:
            for index in range(count):
                writer.write({"__key__": f"{index:05d}", "png": images.load(index), "cls": images.labels[index]})
    return folder


def _pixels(images: LabeledImages) -> list[tuple[int, bytes]]:
    return [(label, images.load(i).tobytes()) for i, label in enumerate(images.labels)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves the files open
def test_shards_hold_what_the_webdataset_library_reads_from_them(shards: Path) -> None:
    import webdataset

    splits = load_data(shards)
    assert splits.class_names == [str(number) for number in range(10)]
    for part, images in (("train", splits.train), ("val", splits.val)):
        urls = [str(path) for path in sorted(shards.glob(f"{part}-*.tar"))]
        samples = webdataset.WebDataset(urls, shardshuffle=False).decode("pil")
        assert _pixels(images) == [(sample["cls"], sample["png"].convert("L").tobytes()) for sample in samples]


def test_patterns_and_folders_name_the_parts(shards: Path, tmp_path: Path) -> None:
    expected = load_data(shards)
    validation = _pixels(expected.val)
    assert load_data(f"{shards}/*-00*.tar").fingerprint() == expected.fingerprint()
    train = load_data(f"{shards}/train-{{0000..0009}}.tar", val_share=0.5)
    assert len(train.train.labels) + len(train.val.labels) == 240
    assert abs(len(train.train.labels) - 120) < 5
    for part in ("train", "val"):
        (tmp_path / "parts" / part).mkdir(parents=True)
        for path in shards.glob(f"{part}-*.tar"):
            path.rename(tmp_path / "parts" / part / path.name.removeprefix(f"{part}-"))
    assert _pixels(load_data(tmp_path / "parts").val) == validation
    (tmp_path / "parts" / "train" / "0003.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of its 10 files are missing; the first: .*0003.tar"):
        load_data(f"{tmp_path}/parts/train/{{0000..0009}}.tar")


def test_labels_may_be_json_and_classes_have_names(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "named"
    folder.mkdir()
    digits = load_digits().val
    with tarfile.open(folder / "000.tar", "w") as archive:
        for index in range(40):
            image = io.BytesIO()
            digits.load(index).save(image, "PNG")
            description = json.dumps({"label": ["zero", "one", "two"][digits.labels[index] % 3]}).encode()
            for suffix, data in (("png", image.getvalue()), ("json", description)):
                member = tarfile.TarInfo(f"a.b/{index:03d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    assert load_data(folder).class_names == ["one", "two", "zero"]
    (folder / "classes.txt").write_text("zero\none\ntwo\nthree\n")
    named = load_data(folder / "000.tar", val_share=0.3)
    assert named.class_names == ["zero", "one", "two", "three"]
    assert sorted(named.train.labels + named.val.labels) == sorted(label % 3 for label in digits.labels[:40])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("readers", [1, 4])
def test_every_image_comes_once_in_an_epoch_and_the_epochs_differ(world_size: int, readers: int) -> None:
    sizes = np.random.default_rng(0).integers(5, 40, 30)
    shards = np.repeat(np.arange(30), sizes)
    epochs = []
    for epoch in range(3):
        ranks = [shard_order(shards, 7, 1, epoch, rank, world_size, readers, buffer=16) for rank in range(world_size)]
        assert {len(batches) for batches in ranks} == {len(shards) // (7 * world_size)}
        seen = np.concatenate([image for batches in ranks for image in batches])
        assert len(set(seen.tolist())) == len(seen) == 7 * world_size * len(ranks[0])
        epochs.append(seen)
    assert not np.array_equal(epochs[0], epochs[1])
    assert set(epochs[0].tolist()) != set(epochs[1].tolist())  # other images are left out


def test_a_reader_goes_through_few_shards_from_beginning_to_end() -> None:
    shards = np.repeat(np.arange(64), 100)
    for rank in range(2):
        batches = shard_order(shards, 10, 0, 0, rank, world_size=2, readers=4, buffer=50)
        for reader in range(4):
            images = np.concatenate(batches[reader::4])
            visited = list(dict.fromkeys(shards[images].tolist()))
            assert len(visited) <= 64 // 8 + 1
            # An image of the stretch comes out of a buffer of 50 at most 50 places early, and seldom much later.
            stretch = np.concatenate([np.sort(images[shards[images] == shard]) for shard in visited])
            place = np.argsort(stretch)[np.searchsorted(np.sort(stretch), images)]
            late = np.arange(len(images)) - place
            assert late.min() >= -50
            assert np.mean(late < 150) > 0.9
    others = {
        rank: {int(shard) for batch in shard_order(shards, 10, 0, 0, rank, 2, 4) for shard in shards[batch]}
        for rank in range(2)
    }
    assert len(others[0] & others[1]) <= 1


def test_images_are_mixed_within_the_buffer() -> None:
    # A buffer that holds everything is a plain shuffle: the mean place of an image doesn't depend on where it lay.
    shards = np.zeros(400, dtype=np.int64)
    places = np.zeros(400)
    for epoch in range(200):
        order = np.concatenate(shard_order(shards, 400, 0, epoch, 0, 1, readers=1, buffer=400))
        places[order] += np.arange(400) / 200
    assert abs(np.corrcoef(places, np.arange(400))[0, 1]) < 0.2
    assert places.std() < 400 / np.sqrt(12) / np.sqrt(200) * 1.3


@pytest.mark.parametrize("workers", [0, 1])
def test_training_continues_in_the_middle_of_an_epoch_with_the_same_pixels(shards: Path, workers: int) -> None:
    images = load_data(shards).train
    whole = make_loader(images, TRANSFORM, 16, training=True, seed=4)
    everything = [batch for _ in range(2) for batch in whole]
    first = make_loader(images, TRANSFORM, 16, training=True, seed=4, workers=2)
    for number, _ in enumerate(first):
        if number == 4:
            break
    second = make_loader(images, TRANSFORM, 16, training=True, seed=4, workers=workers)
    second.load_state_dict(first.state_dict())
    rest = [batch for _ in range(2) for batch in second][: len(everything) - 5]
    assert len(rest) == 25
    for a, b in zip(rest, everything[5:], strict=True):
        assert torch.equal(a["images"], b["images"])
        assert torch.equal(a["labels"], b["labels"])


def test_validation_reads_every_image_in_order(shards: Path) -> None:
    loader = make_loader(load_data(shards).val, TRANSFORM, 16)
    assert [int(i) for batch in loader for i in batch["indices"]] == list(range(60))


def test_shards_that_cannot_be_used_say_why(shards: Path, tmp_path: Path) -> None:
    broken = shards / "train-0002.tar"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train-0002.tar is cut short or damaged after \d+ images"):
        load_data(shards)
    tarfile.open(broken, "w").close()
    with pytest.raises(ValueError, match=r"train-0002.tar holds no images"):
        load_data(shards)
    broken.write_bytes(b"")
    with pytest.raises(ValueError, match=r"train-0002.tar is empty"):
        load_data(shards)
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive, tarfile.open(broken, "w") as copy:
        for member in archive:
            if member.name != "00055.cls":
                copy.addfile(member, archive.extractfile(member))
    with pytest.raises(
        ValueError, match=r"train-0002.tar has 1 image \(00055.png\) without a label; expected a member NAME.cls"
    ):
        load_data(shards)
    broken.write_bytes(whole)
    (shards / "classes.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"has label '\d', which isn't among the 2 classes \(a, b\) of the shards"):
        load_data(shards)


def test_repeated_augmentation_is_refused(shards: Path) -> None:
    with pytest.raises(ValueError, match="repeated augmentation isn't available for shards"):
        make_loader(load_data(shards).train, TRANSFORM, 16, training=True, repeats=3)
