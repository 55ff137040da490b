"""A CSV file with a row for each image: its path, its class, and the part of the data it belongs to."""

import csv
from pathlib import Path

from visionssm.data.folder import PARTS, FolderImages
from visionssm.data.images import Parts, listing

PATH_COLUMNS = ("path", "image", "file", "filename", "image_path", "filepath")
LABEL_COLUMNS = ("label", "class", "target", "class_name")
PART_COLUMNS = ("split", "part", "subset")


def table_parts(file: Path) -> Parts:
    """Read a CSV file with a header; commas, semicolons and tabs are understood.

    Columns are `path` (also: image, file, filename), `label` (also: class, target) and, if there is one, `split` (also:
    part, subset) with train, val or test. Paths are relative to the folder of the file. Classes are in alphabetical
    order, or in that of the numbers where all labels are numbers.

    An image file that is missing or damaged is counted when it is read; a row that can't be understood is an error,
    since it can be mended at once.

    Raises:
        ValueError: no such columns, rows that lack a cell or name another part, or no image file is there at all.
    """
    rows = _read_rows(file)
    paths, labels, part_names = (rows[column] for column in ("path", "label", "part"))
    class_names = sorted(set(labels), key=lambda name: (int(name) if name.isdecimal() else -1, name))
    places = {name: label for label, name in enumerate(class_names)}
    root = file.parent
    parts: Parts = {}
    for part in ("train", "val", "test"):
        chosen = [row for row, name in enumerate(part_names) if name == part]
        if chosen:
            files = [root / paths[row] for row in chosen]
            parts[part] = FolderImages(root, files, [places[labels[row]] for row in chosen], class_names)
    if not any((root / path).is_file() for path in paths):
        raise ValueError(f"{file}: none of its {len(paths)} image files is there, such as {root / paths[0]}; "
                         "paths are relative to the folder of the CSV file")  # fmt: skip
    return parts


def _read_rows(file: Path) -> dict[str, list[str]]:
    """The cells of the columns path, label and part; `part` is "train" where there is no such column."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} isn't UTF-8 text ({error.reason} at byte {error.start})") from error
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    names = [name.strip().lower() for name in next(reader, [])]
    columns = {
        "path": _column(file, names, PATH_COLUMNS),
        "label": _column(file, names, LABEL_COLUMNS),
        "part": next((names.index(name) for name in PART_COLUMNS if name in names), None),
    }
    rows: dict[str, list[str]] = {"path": [], "label": [], "part": []}
    wrong: list[str] = []
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        cells = {name: "train" if column is None else _cell(row, column) for name, column in columns.items()}
        cells["part"] = PARTS.get(cells["part"].lower(), f"{cells['part']}?")
        if not cells["path"] or not cells["label"]:
            wrong.append(f"line {reader.line_num} has no {'path' if not cells['path'] else 'label'}")
        elif cells["part"].endswith("?"):
            wrong.append(f"line {reader.line_num} has the part {cells['part'][:-1]!r} (train, val or test)")
        for name, cell in cells.items():
            rows[name].append(cell)
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{file} has {len(wrong)} lines that can't be used: {'; '.join(wrong[:3])}{more}")
    if not rows["path"]:
        raise ValueError(f"{file} has no rows below its header")
    return rows


def _column(file: Path, names: list[str], choices: tuple[str, ...]) -> int:
    for choice in choices:
        if choice in names:
            return names.index(choice)
    raise ValueError(
        f"{file}: its first line must name the columns, and one must be called {' or '.join(choices)}; "
        f"it has {listing(names, 'column')}"
    )


def _cell(row: list[str], column: int) -> str:
    return row[column].strip() if column < len(row) else ""
