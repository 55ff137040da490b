"""The named traversals: orders as the papers define them, on any grid."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from parity_data import operator_vectors

from visionssm.ops import paths
from visionssm.ops.checks import path_facts

GRIDS = [(1, 1), (1, 5), (4, 1), (2, 2), (5, 7), (8, 6)]
FULL = (
    "raster",
    "transposed",
    "cross",
    "unidirectional",
    "bidirectional",
    "forward_backward",
    "rotations",
    "zigzag",
    "spiral",
    "hilbert",
)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", FULL)
def test_every_path_visits_every_position_once(name, grid):
    table = getattr(paths, name)(*grid)
    assert table.dtype == torch.int32
    for row in table:
        assert sorted(row.tolist()) == list(range(grid[0] * grid[1]))


TABLES = {name: getattr(paths, name) for name in (*FULL, "raster_transposed", "atrous", "rows_forward_backward")} | {
    "windows": partial(paths.windows, size=2),
    "directions": partial(paths.directions, names=("h", "v_flip", "w2")),
    "cross_cycle": partial(paths.cross_cycle, count=3),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", TABLES)
def test_what_a_table_is_known_for_is_true_of_its_entries(name, grid):
    table, length = TABLES[name](*grid), grid[0] * grid[1]
    known, seen = (path_facts(table, length, abstract) for abstract in (True, False))
    assert known.complete <= seen.complete and known.mirrored <= seen.mirrored
    if length > 2 and min(grid) > 1:
        assert known == seen
    assert path_facts(table[:, :1], length, abstract=True) == (False, False)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("size", [2, 3, 7])
def test_windows_visit_everything_once_and_pad_at_the_bottom_right(grid, size):
    H, W = grid
    row = paths.windows(H, W, size)[0].tolist()
    tiles_down, tiles_across = -(-H // size), -(-W // size)
    expected = []
    for ti in range(tiles_down):
        for tj in range(tiles_across):
            for i in range(ti * size, (ti + 1) * size):
                for j in range(tj * size, (tj + 1) * size):
                    expected.append(i * W + j if i < H and j < W else -1)
    assert row == expected


@pytest.mark.parametrize("grid", GRIDS)
def test_atrous_paths_share_the_grid_among_them(grid):
    H, W = grid
    table = paths.atrous(H, W)
    visited = [p for p in table.flatten().tolist() if p >= 0]
    assert sorted(visited) == list(range(H * W))
    expected = [
        [(i, j) for i in range(0, H + H % 2, 2) for j in range(0, W + W % 2, 2)],
        [(i, j) for j in range(0, W + W % 2, 2) for i in range(1, H + H % 2, 2)],
        [(i, j) for i in range(0, H + H % 2, 2) for j in range(1, W + W % 2, 2)],
        [(i, j) for j in range(1, W + W % 2, 2) for i in range(1, H + H % 2, 2)],
    ]
    for row, cells in zip(table.tolist(), expected, strict=True):
        assert row == [i * W + j if i < H and j < W else -1 for i, j in cells]


@pytest.mark.parametrize("case", ["scan0", "scan1"])
def test_cross_reads_and_merges_as_published(case):
    """VMamba's scan maps (B, C, H, W) to (B, 4, C, L), its merge sums four sequences back."""
    from visionssm.ops.walk import gather_steps, scatter_steps

    vectors = operator_vectors("vmamba", "operators")
    x, kind = torch.from_numpy(vectors[f"{case}/x"]), int(vectors[f"{case}/scans"])
    H, W = x.shape[2:]
    path = (paths.cross, paths.unidirectional, paths.bidirectional)[kind](H, W)
    sequences = gather_steps(x.flatten(2).transpose(1, 2), path).transpose(2, 3)
    assert np.array_equal(sequences.numpy(), vectors[f"{case}/xs"])
    ys = torch.from_numpy(vectors[f"{case}/ys"]).flatten(3).transpose(2, 3)
    merged = scatter_steps(ys, path, H * W).sum(2).transpose(1, 2)
    np.testing.assert_allclose(merged.numpy(), vectors[f"{case}/merged"], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", ["zigzag", "spiral", "hilbert"])
def test_continuous_walks_step_to_a_neighbour(name):
    H = W = 8
    walk = getattr(paths, name)(H, W)[0].tolist()
    cells = [divmod(p, W) for p in walk]
    assert all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in itertools.pairwise(cells))


def test_rows_and_columns_walk_alone():
    rows, columns = paths.rows_forward_backward(2, 3), paths.columns_forward_backward(2, 3)
    assert rows.tolist() == [[0, 1, 2], [2, 1, 0], [3, 4, 5], [5, 4, 3]]
    assert columns.tolist() == [[0, 3], [3, 0], [1, 4], [4, 1], [2, 5], [5, 2]]


def test_a_table_is_made_once():
    assert paths.cross(3, 4) is paths.cross(3, 4, device="cpu")


@pytest.mark.parametrize("name", ["cross", "rotations", "atrous", "zigzag", "forward_backward"])
def test_tables_are_traceable(name):
    compiled = torch.compile(
        lambda x: getattr(paths, name)(x.shape[0], x.shape[1]) + 0, backend="eager", fullgraph=True, dynamic=True
    )
    for grid in ((3, 4), (5, 2)):
        assert torch.equal(compiled(torch.zeros(grid)), getattr(paths, name)(*grid))
