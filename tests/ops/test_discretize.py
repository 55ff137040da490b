"""The discretisation helpers against SciPy and against each other."""

import numpy as np
import pytest
import torch
from scipy.signal import cont2discrete

from visionssm.ops import ssm_convolution_kernel, zero_order_hold
from visionssm.ops.discretize import input_coefficient, input_coefficient_gradients


def test_zero_order_hold_is_scipys():
    A, B, delta = -np.array([0.3, 1.0, 7.0]), np.array([1.0, -2.0, 0.5]), 0.17
    A_bar, B_bar = zero_order_hold(torch.from_numpy(A), torch.from_numpy(B), torch.tensor(delta, dtype=torch.float64))
    discrete = cont2discrete((np.diag(A), B[:, None], np.ones((1, 3)), np.zeros((1, 1))), delta, method="zoh")
    np.testing.assert_allclose(A_bar, np.diag(discrete[0]), rtol=1e-12)
    np.testing.assert_allclose(B_bar, discrete[1][:, 0], rtol=1e-12)


def test_kernel_is_the_impulse_response():
    A_bar, B_bar, C = (torch.rand(5, 4, dtype=torch.float64) for _ in range(3))
    kernel = ssm_convolution_kernel(A_bar, B_bar, C, 6)
    state = B_bar
    for t in range(6):
        torch.testing.assert_close(kernel[:, t], (C * state).sum(-1))
        state = A_bar * state
    with pytest.raises(ValueError, match="length: got 0"):
        ssm_convolution_kernel(A_bar, B_bar, C, 0)


@pytest.mark.parametrize("z", [0.0, 1e-9, 1e-5, 1e-4, -9e-3, 1.1e-2, -1.0, -40.0])
def test_coefficient_and_its_derivatives_near_zero(z):
    """Against mpmath-free references: series in exact rational steps for small z, the closed form elsewhere."""
    delta = torch.tensor(0.7, dtype=torch.float64)
    A = torch.tensor(z, dtype=torch.float64) / delta
    terms = [z**k / float(np.prod(np.arange(1, k + 2, dtype=float))) for k in range(20)]
    phi = sum(terms) if abs(z) < 1 else np.expm1(z) / z
    slope_terms = [k * z ** (k - 1) / float(np.prod(np.arange(1, k + 2, dtype=float))) for k in range(1, 20)]
    slope = sum(slope_terms) if abs(z) < 1 else (np.exp(z) - np.expm1(z) / z) / z
    assert float(input_coefficient(delta, A, True)) == pytest.approx(0.7 * phi, rel=1e-10)
    by_delta, by_A = input_coefficient_gradients(delta, A, True)
    assert float(by_delta) == pytest.approx(np.exp(z), rel=1e-12)
    assert float(by_A) == pytest.approx(0.49 * slope, rel=1e-9)
