"""The native matrix product against float64: odd sizes on every instruction set, views, groups, edges of memory, threads."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from visionssm.ops import native
from visionssm.ops.native_product import add_native_product, native_product

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason="the native back-end was not built")
DTYPES = [torch.float32, torch.bfloat16]
SIZES = [  # rows, in, out: every number of rows at once, one to three vectors of columns, sums in parts, rows 4 KiB apart
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


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def even(inner, dtype):
    """bfloat16 is multiplied in pairs."""
    return inner + inner % 2 if dtype == torch.bfloat16 else inner


def surrounded(*shape, value=torch.nan, dtype=torch.float32):
    """Random numbers in the middle of memory that is full of `value`."""
    memory = torch.full([size + 16 for size in shape], value, dtype=dtype)
    inside = memory[tuple(slice(8, size + 8) for size in shape)]
    inside.copy_(torch.randn(shape))
    return memory, inside


def close(found, exact, inner):
    """Sums of numbers about 1 in float32, which bfloat16 rounds at the end."""
    half = found.dtype == torch.bfloat16
    error, size = (found.double() - exact).abs(), exact.abs()
    return bool((error <= (0.0045 if half else 1e-5) * size + 1e-7 * inner + (1e-4 if half else 1e-6)).all())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_within_their_memory(instruction_set, size, dtype):
    rows, inner, columns = size[0], even(size[1], dtype), size[2]
    surround = partial(surrounded, dtype=dtype)
    (_, x), (_, weight), (_, bias) = surround(rows, inner), surround(columns, inner), surround(columns)
    memory, out = surround(rows, columns, value=7.0)
    wanted = x.double() @ weight.double().T + bias.double()
    assert native_product(x, weight, bias, out=out) is out
    assert close(out, wanted, inner)
    assert close(native_product(x, weight), wanted - bias.double(), inner)
    assert close(native_product(x, weight, bias, gelu=True), F.gelu(wanted), inner)
    out.fill_(7)
    assert bool((memory == 7).all())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_transposed_weights(instruction_set, size, dtype):
    rows, inner, columns = size[0], even(size[1], dtype), size[2]
    x, (_, weight) = torch.randn(rows, inner, dtype=dtype), surrounded(inner, columns, dtype=dtype)
    torch.testing.assert_close(
        native_product(x, weight.t()), native_product(x, weight.t().contiguous()), rtol=0, atol=0
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_of_transposed_matrices_are_added(instruction_set, size):
    rows, inner, columns = size
    (_, x), (_, weight) = surrounded(inner, rows), surrounded(inner, columns)
    memory, total = surrounded(rows, columns, value=7.0)
    wanted = total.double() + x.double().T @ weight.double()
    add_native_product(total, x.t(), weight.t())
    assert close(total, wanted, inner)
    assert close(native_product(x.t(), weight.t(), gelu=True), F.gelu(x.double().T @ weight.double()), inner)
    total.fill_(7)
    assert bool((memory == 7).all())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_groups(instruction_set, size, dtype):
    rows, inner, columns = size[0], even(size[1], dtype), size[2]
    (_, x), (_, weight) = surrounded(rows, 3, inner, dtype=dtype), surrounded(3, columns, inner, dtype=dtype)
    found = native_product(x, weight)
    for group in range(3):
        assert torch.equal(found[:, group], native_product(x[:, group], weight[group]))


@pytest.mark.parametrize("size", [(900, 40, 70), (49, 800, 300), (1200, 1700, 40)], ids=str)
def test_threads_do_not_show(size, dtype):
    rows, inner, columns = size
    x, weight, bias = (torch.randn(shape).to(dtype) for shape in ((rows, inner), (columns, inner), (columns,)))
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


def test_what_is_no_number_stays_where_it_belongs(instruction_set, dtype):
    x, weight = torch.ones(20, 30, dtype=dtype), torch.ones(25, 30, dtype=dtype)
    x[3, 4], x[5, 6], weight[7, 8] = torch.nan, torch.inf, -torch.inf
    found = native_product(x, weight)
    assert torch.equal(found.isnan(), (x @ weight.T).isnan())
    assert torch.equal(found.isinf(), (x @ weight.T).isinf())


def test_strides_and_empty_matrices(dtype):
    new = partial(torch.ones, dtype=dtype)
    for columns in (slice(0, 20, 2), slice(3, 13)):  # numbers apart, and pairs that begin in the middle of a word
        for row in (20, 21):
            x, weight = (torch.randn(rows, row).to(dtype)[:, columns] for rows in (6, 8))
            assert close(native_product(x, weight), x.double() @ weight.double().T, 10)
    assert native_product(new(0, 4), new(3, 4)).shape == (0, 3)
    assert native_product(new(2, 4), new(0, 4)).shape == (2, 0)
    bias = torch.arange(3, dtype=dtype)
    assert torch.equal(native_product(new(2, 0), new(3, 0), bias), bias.expand(2, 3))


def test_what_does_not_fit_is_named():
    x, weight = torch.ones(6, 4), torch.ones(8, 4)
    for others in ((x, weight.double()), (x.double(), weight.double()), (x.bfloat16(), weight)):
        with pytest.raises(TypeError, match="takes one of float32 and bfloat16"):
            native_product(*others)
    with pytest.raises(ValueError, match="even"):
        native_product(*(torch.ones(6, 5, dtype=torch.bfloat16) for _ in range(2)))
    for wrong in (torch.ones(8, 5), torch.ones(2, 8, 4)):
        with pytest.raises(ValueError, match="need"):
            native_product(x, wrong)
    with pytest.raises(ValueError, match="bias"):
        native_product(x, weight, torch.ones(4))
    with pytest.raises(TypeError, match="bias"):
        native_product(x, weight, torch.ones(8).double())
    for total in (torch.ones(6, 4), torch.ones(6, 8).bfloat16()):
        with pytest.raises(ValueError, match="total"):
            add_native_product(total, x, weight)
