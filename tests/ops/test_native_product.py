"""The native matrix product against float64: odd sizes on every instruction set, views, groups, edges of memory, threads."""

import pytest
import torch
import torch.nn.functional as F

from visionssm.ops import native
from visionssm.ops.native_product import native_product

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason="the native back-end was not built")
SIZES = [  # rows, in, out: every number of rows at once, one to three vectors of columns, sums in parts, crowded rows
    (1, 1, 1),
    (13, 5, 3),
    (14, 16, 16),
    (15, 17, 31),
    (28, 96, 32),
    (129, 33, 44),
    (40, 7, 100),
    (3, 1500, 17),
    (20, 1024, 50),
    (16, 2048, 49),
]


def surrounded(*shape, value=torch.nan):
    """Random numbers in the middle of memory that is full of `value`."""
    memory = torch.full([size + 16 for size in shape], value)
    inside = memory[tuple(slice(8, size + 8) for size in shape)]
    inside.copy_(torch.randn(shape))
    return memory, inside


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_within_their_memory(instruction_set, size):
    rows, inner, columns = size
    (_, x), (_, weight), (_, bias) = surrounded(rows, inner), surrounded(columns, inner), surrounded(columns)
    memory, out = surrounded(rows, columns, value=7.0)
    wanted = x.double() @ weight.double().T + bias.double()
    tolerance = {"rtol": 1e-5, "atol": 1e-7 * inner + 1e-6}  # sums of numbers about 1
    assert native_product(x, weight, bias, out=out) is out
    torch.testing.assert_close(out.double(), wanted, **tolerance)
    torch.testing.assert_close(native_product(x, weight).double(), wanted - bias, **tolerance)
    activated = native_product(x, weight, bias, gelu=True)
    torch.testing.assert_close(activated.double(), F.gelu(wanted), **tolerance)
    out.fill_(7)
    assert bool((memory == 7).all())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_transposed_weights(instruction_set, size):
    rows, inner, columns = size
    x, (_, weight) = torch.randn(rows, inner), surrounded(inner, columns)
    torch.testing.assert_close(
        native_product(x, weight.t()), native_product(x, weight.t().contiguous()), rtol=0, atol=0
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_groups(instruction_set, size):
    rows, inner, columns = size
    (_, x), (_, weight) = surrounded(rows, 3, inner), surrounded(3, columns, inner)
    found = native_product(x, weight)
    for group in range(3):
        assert torch.equal(found[:, group], native_product(x[:, group], weight[group]))


@pytest.mark.parametrize("size", [(900, 40, 70), (49, 800, 300)], ids=str)
def test_threads_do_not_show(size):
    rows, inner, columns = size
    x, weight, bias = torch.randn(rows, inner), torch.randn(columns, inner), torch.randn(columns)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(native_product(x, weight, bias, gelu=True))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], result) for result in results)
    part = native_product(x[7:30], weight, bias, gelu=True)
    assert torch.equal(part, results[0][7:30])


def test_what_is_no_number_stays_where_it_belongs(instruction_set):
    x, weight = torch.ones(20, 30), torch.ones(25, 30)
    x[3, 4], x[5, 6], weight[7, 8] = torch.nan, torch.inf, -torch.inf
    found = native_product(x, weight)
    assert torch.equal(found.isnan(), (x @ weight.T).isnan())
    assert torch.equal(found.isinf(), (x @ weight.T).isinf())


def test_strides_and_empty_matrices():
    x, weight = torch.randn(6, 20)[:, ::2], torch.randn(8, 20)[:, ::2]
    torch.testing.assert_close(native_product(x, weight), x @ weight.T)
    assert native_product(torch.ones(0, 4), torch.ones(3, 4)).shape == (0, 3)
    assert native_product(torch.ones(2, 4), torch.ones(0, 4)).shape == (2, 0)
    assert torch.equal(
        native_product(torch.ones(2, 0), torch.ones(3, 0), torch.arange(3.0)), torch.arange(3.0).expand(2, 3)
    )


def test_what_does_not_fit_is_named():
    x, weight = torch.ones(6, 4), torch.ones(8, 4)
    with pytest.raises(TypeError, match="takes float32"):
        native_product(x, weight.double())
    for wrong in (torch.ones(8, 5), torch.ones(2, 8, 4)):
        with pytest.raises(ValueError, match="need"):
            native_product(x, wrong)
    with pytest.raises(ValueError, match="bias"):
        native_product(x, weight, torch.ones(4))
