"""Linear layers of groups: values by every product, gradients, the registered operator."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from visionssm.ops import default_backend, grouped_linear, native, native_product


@pytest.fixture(params=["torch", "native", "auto"])
def choice(request, monkeypatch):
    if request.param == "native" and native.unavailable() is not None:
        pytest.skip("the native back-end was not built")
    monkeypatch.setenv("VISIONSSM_LINEAR", request.param)
    monkeypatch.setattr(native_product, "_decisions", {})


def test_values_with_and_without_gradients(choice):
    x, weight = torch.randn(2, 5, 4, 6), torch.randn(4, 3, 6)
    wanted = torch.stack([x[:, :, k].double() @ weight[k].double().T for k in range(4)], dim=2)
    with torch.no_grad():
        found = grouped_linear(x, weight)
        assert found.is_contiguous()
        torch.testing.assert_close(found, grouped_linear(x.transpose(0, 1), weight).transpose(0, 1))
        torch.testing.assert_close(found[:, :, :, :2], grouped_linear(x, weight[:, :2]))
        torch.testing.assert_close(
            found.bfloat16(), grouped_linear(x.bfloat16(), weight.bfloat16()), rtol=0.1, atol=0.1
        )
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, grouped_linear(x, weight.requires_grad_()).detach())


@torch.no_grad()
def test_other_backends_are_not_served_by_the_native_product():
    x, weight = torch.randn(3, 4, 6), torch.randn(4, 3, 6)
    with default_backend("torch"):
        found = grouped_linear(x, weight)
    assert torch.equal(found, torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1))


@torch.no_grad()
def test_registered_operator(choice):
    x, weight = torch.randn(2, 5, 4, 6), torch.randn(4, 3, 6)
    torch.library.opcheck(torch.ops.visionssm.grouped_linear, (x, weight))
    with FlopCounterMode(display=False) as counter:
        grouped_linear(x, weight)
    assert counter.get_total_flops() == 2 * 2 * 5 * 4 * 3 * 6


@torch.no_grad()
def test_sizes_that_do_not_fit_are_refused(choice):
    with pytest.raises(RuntimeError, match=r"subscript|size|shape"):
        grouped_linear(torch.randn(5, 4, 6), torch.randn(4, 3, 7))
