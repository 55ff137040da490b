from pathlib import Path

import pytest
import torch

from visionssm.data import make_loader, read_image
from visionssm.data.source import load_data


def _rows(class_folders: Path) -> list[tuple[str, str]]:
    return [
        (str(path.relative_to(class_folders.parent)), path.parent.name) for path in sorted(class_folders.rglob("*.png"))
    ]


def _write(file: Path, header: str, rows: list[tuple[str, ...]], delimiter: str = ",") -> Path:
    file.write_text("\n".join([header, *(delimiter.join(row) for row in rows)]) + "\n")
    return file


@pytest.mark.parametrize(
    ("header", "delimiter"), [("path,label", ","), ("Image;Class", ";"), ("filename\ttarget", "\t")]
)
def test_paths_and_labels_are_read_from_a_table(class_folders: Path, header: str, delimiter: str) -> None:
    rows = _rows(class_folders)
    splits = load_data(_write(class_folders.parent / "table.csv", header, rows, delimiter), 0.25, 1)
    assert splits.class_names == ["one", "two", "zero"]
    assert (len(splits.train.labels), len(splits.val.labels)) == (18, 6)
    found = {
        part.name(i): splits.class_names[label]
        for part in (splits.train, splits.val)
        for i, label in enumerate(part.labels)
    }
    assert found == {str(class_folders.parent / path): label for path, label in rows}
    assert splits.val.load(0).tobytes() == read_image(splits.val.name(0)).tobytes()


def test_a_split_column_is_followed_and_absolute_paths_are_kept(class_folders: Path, tmp_path: Path) -> None:
    rows = [(str(class_folders.parent / path), label) for path, label in _rows(class_folders)]
    parts = [(*row, ("train", "Validation", "test")[i % 3]) for i, row in enumerate(rows)]
    (tmp_path / "elsewhere").mkdir()
    splits = load_data(_write(tmp_path / "elsewhere" / "t.csv", "path,label,split", parts))
    for remainder, part in enumerate((splits.train, splits.val, splits.test)):
        assert [part.name(i) for i in range(len(part.labels))] == [path for path, _ in rows[remainder::3]]


def test_numbers_as_labels_are_sorted_as_numbers(class_folders: Path) -> None:
    numbers = {"one": "10", "two": "9", "zero": "2"}
    rows = [(path, numbers[label]) for path, label in _rows(class_folders)]
    assert load_data(_write(class_folders.parent / "t.csv", "path,label", rows)).class_names == ["2", "9", "10"]


def test_quotes_commas_and_a_byte_order_mark_are_understood(class_folders: Path) -> None:
    (class_folders / "one").rename(class_folders / "one, two")
    rows = [(f'"{path}"', f'"{label}"') for path, label in _rows(class_folders)]
    file = _write(class_folders.parent / "t.csv", "\ufeffpath,label", rows)
    assert load_data(file).class_names == ["one, two", "two", "zero"]


def test_missing_image_files_are_listed_when_they_are_read(class_folders: Path) -> None:
    file = _write(class_folders.parent / "t.csv", "path,label", _rows(class_folders))
    before = load_data(file).fingerprint()
    name = load_data(file).train.name(2)
    Path(name).unlink()
    assert load_data(file).fingerprint() != before
    batches = list(make_loader(load_data(file).train, lambda image: torch.zeros(1), batch_size=5))
    assert [(item.name, "No such file" in item.reason) for batch in batches for item in batch["unreadable"]] == [
        (name, True)
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its first line must name the columns, and one must be called path or image"),
        ("photos/one/0.png,one\nphotos/two/0.png,two\n", "must be called path or image .*; it has 2 columns"),
        ("path,split\nphotos/one/0.png,train\n", "one must be called label or class"),
        ("path,label\n", "has no rows below its header"),
        (
            "path,label\nphotos/one/0.png,one\nphotos/two/0.png\n,two\n\nphotos/zero/0.png,\n",
            r"has 3 lines that can't be used: line 3 has no label; line 4 has no path; line 6 has no label$",
        ),
        ("path,label,split\nphotos/one/0.png,one,tran\n", r"line 2 has the part 'tran' \(train, val or test\)"),
        ("path,label,split\nphotos/one/0.png,one,val\n", "has no training images, only val"),
        (
            "path,label\none/0.png,one\ntwo/0.png,two\n",
            "none of its 2 image files is there, such as .*one/0.png; paths are",
        ),
        ("path,label\nphotos/one/0.png,one\nphotos/one/1.png,one\n", r"has one class only \(one\)"),
        (
            "path,label\nphotos/one/0.png,one\nphotos/one/1.png,one\nphotos/two/1.png,two\n",
            "class two of .* has 1 image",
        ),
    ],
)
def test_a_table_that_cannot_be_used_says_why(class_folders: Path, text: str, message: str) -> None:
    file = class_folders.parent / "table.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_data(file)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"path,label\n\xff\xfe\x00")
    with pytest.raises(ValueError, match="isn't UTF-8 text"):
        load_data(tmp_path / "t.csv")
