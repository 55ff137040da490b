"""docs/dense-models.md is what tools/dense_table.py writes, and the published sizes are met where they can be."""

import importlib.util
import sys
from pathlib import Path

import pytest

from visionssm.models import count_parameters

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def table():
    sys.path.insert(0, str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location("dense_table", ROOT / "tools" / "dense_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["dense_table"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT / "tools"))
    del sys.modules["dense_table"], sys.modules["models_table"]


def test_the_page_has_every_row(table):
    lines = [line for line in (ROOT / "docs" / "dense-models.md").read_text().splitlines() if line.startswith("| `")]
    assert len(lines) == len(table.ROWS)
    for row, line in zip(table.ROWS, lines, strict=True):
        assert line.startswith(f"| `{row.head}` | `{row.backbone}`") and line.endswith(f"{row.note} |")


@pytest.mark.slow
def test_the_whole_page_is_up_to_date(table):
    assert table.page() == (ROOT / "docs" / "dense-models.md").read_text()


def find(table, head, backbone, **options):
    return next(r for r in table.ROWS if (r.head, r.backbone, r.options) == (head, backbone, options))


@pytest.mark.parametrize(
    ("head", "backbone", "params", "gflops", "tolerance"),
    [
        ("mask_rcnn", "vmamba_tiny_s1l8", 50, 271, 0.5),
        ("mask_rcnn", "vmamba_small_s2l15", 70, 348.9, 0.1),  # the authors' own measurement
        ("mask_rcnn", "vanilla_vmamba_base", 96, 540, 0.5),
        ("upernet", "vmamba_tiny_s1l8", 62, 949, 1.5),
        ("upernet", "efficient_vmamba_tiny", 14, 230, 1.5),
    ],
)
def test_published_sizes(head, backbone, params, gflops, tolerance, table):
    """Parameters and multiply-adds round to what the papers print; norms and resizing of UPerNet are not counted by us."""
    row = find(table, head, backbone)
    model = table.build(row)
    assert round(count_parameters(model) / 1e6) == params
    assert table.cost(row, model) == pytest.approx(gflops, abs=tolerance)


def test_mambavisions_published_cost_is_that_of_windows_as_large_as_the_map(table):
    """Not of the padded windows that its detectors were trained with."""
    row = find(table, "cascade_mask_rcnn", "mambavision_tiny", window_size="map")
    assert table.cost(row, table.build(row)) == pytest.approx(740, abs=0.5)


def test_a_transposed_convolution_is_counted_by_its_input(table):
    import torch
    from torch import nn

    with torch.device("meta"):
        model = nn.ConvTranspose2d(6, 4, 2, stride=2)
    assert table.count(model, (6, 5, 7)).convolution == 5 * 7 * 6 * 4 * 4
