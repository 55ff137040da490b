from pathlib import Path

import pytest

from visionssm.data.source import FORMS, load_data


@pytest.mark.parametrize(
    "form", ["digits", "one sub-folder per class", ".tar", "webdataset shards", "save_to_disk", ".csv"]
)
def test_a_source_that_is_not_there_lists_every_form(tmp_path: Path, form: str) -> None:
    assert form in FORMS
    with pytest.raises(FileNotFoundError) as error:
        load_data(tmp_path / "nowhere")
    assert str(error.value) == f"{tmp_path / 'nowhere'}: no such file or folder. Data can be: {FORMS}"


def test_a_file_of_another_kind_lists_every_form(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"isn't a data set\. Data can be: digits; a folder"):
        load_data(tmp_path / "photos.zip")


def test_a_pattern_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_data(tmp_path / "*.tar")
