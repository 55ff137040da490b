"""Inputs for the operator's tests, and an oracle that shares no code with the library."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visionssm.ops import path_scan, paths

NAMES = ("x", "dt", "A", "B", "C", "D", "dt_bias", "dt_weight", "initial_state")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of the operator: its tensors in float64 and its options."""

    tensors: dict[str, Tensor | None]
    path: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, backend: str, dtype: torch.dtype = torch.float64, **more: Any) -> tuple[Tensor, Tensor]:
        """y and the last state, from inputs rounded to `dtype`."""
        return call(cast(self.tensors, dtype), self.path, backend, **{**self.options, **more})

    def gradients(self, backend: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """y, the last state, and the gradient of a random functional of both by every input."""
        leaves = {
            name: None if value is None else value.clone().requires_grad_()
            for name, value in cast(self.tensors, dtype).items()
        }
        y, last = call(leaves, self.path, backend, **self.options)
        generator = torch.Generator().manual_seed(1)
        for_y = torch.randn(y.shape, generator=generator, dtype=torch.float64)
        for_last = torch.randn(last.shape, generator=generator, dtype=torch.float64)
        (y * for_y.to(y)).sum().backward(retain_graph=True)
        (last * for_last.to(last)).sum().backward()
        found = {f"d{name}": value.grad for name, value in leaves.items() if value is not None}
        return {"y": y.detach(), "last_state": last.detach(), **found}

    def to(self, device: torch.device | str) -> "Case":
        tensors = {name: None if value is None else value.to(device) for name, value in self.tensors.items()}
        return replace(self, tensors=tensors, path=self.path.to(device))

    def with_options(self, **options: Any) -> "Case":
        return replace(self, options={**self.options, **options})


def cast(tensors: dict[str, Tensor | None], dtype: torch.dtype) -> dict[str, Tensor | None]:
    """The operator's dtype rule: x, dt, B, C, dt_weight in `dtype`; the rest in float32, or float64 for float64."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    low = ("x", "dt", "B", "C", "dt_weight")
    return {name: None if v is None else v.to(dtype if name in low else exact) for name, v in tensors.items()}


def call(tensors: dict[str, Tensor | None], path: Tensor, backend: str, **options: Any) -> tuple[Tensor, Tensor]:
    named = dict(tensors)
    positional = [named.pop(name) for name in ("x", "dt", "A", "B", "C", "D", "dt_bias")]
    return path_scan(*positional, path, **named, return_last_state=True, backend=backend, **options)


def make_case(
    batch: int = 2,
    grid: tuple[int, int] = (5, 7),
    E: int = 6,
    N: int = 4,
    *,
    path: Tensor | None = None,
    rank: int = 0,
    input_per_path: bool = False,
    skip: bool = True,
    bias: bool = True,
    initial_state: bool = False,
    seed: int = 0,
    **options: Any,
) -> Case:
    """Random inputs of moderate size; the default path table is VMamba's cross scan."""
    path = paths.cross(*grid) if path is None else path
    K, L = path.shape[0], grid[0] * grid[1]
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors = {
        "x": draw(batch, L, K, E) if input_per_path else draw(batch, L, E),
        "dt": draw(batch, L, K, rank) if rank else draw(batch, L, K, E),
        "A": -torch.rand(K, E, N, generator=generator, dtype=torch.float64) * N - 0.1,
        "B": draw(batch, L, K, N),
        "C": draw(batch, L, K, N),
        "D": draw(K, E) if skip else None,
        "dt_bias": draw(K, E) - 1 if bias else None,
        "dt_weight": draw(K, E, rank) / math.sqrt(rank) if rank else None,
        "initial_state": draw(batch, K, E, N) if initial_state else None,
    }
    # Rounded once, so that every precision that holds bfloat16 starts from the same numbers.
    rounded = {name: None if v is None else v.bfloat16().double() for name, v in tensors.items()}
    return Case(tensors=rounded, path=path, options=options)


def loop(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The recurrence in plain Python floats, straight from its definition; (batch, L, K, E) and the last state."""
    t = {name: None if v is None else v.numpy() for name, v in case.tensors.items()}
    batch, L = t["x"].shape[:2]
    K, E, N = t["A"].shape
    zoh, softplus = case.options.get("discretization") == "zoh", case.options.get("softplus", True)
    y, last = np.zeros((batch, L, K, E)), np.zeros((batch, K, E, N))
    for b, k, e in np.ndindex(batch, K, E):
        h = np.zeros(N) if t["initial_state"] is None else t["initial_state"][b, k, e].copy()
        for p in case.path[k].tolist():
            raw = 0.0 if t["dt_bias"] is None else t["dt_bias"][k, e]
            x = B = C = 0.0
            if p >= 0:
                x = t["x"][b, p, k, e] if t["x"].ndim == 4 else t["x"][b, p, e]
                B, C = t["B"][b, p, k], t["C"][b, p, k]
                raw += t["dt"][b, p, k, e] if t["dt_weight"] is None else t["dt_weight"][k, e] @ t["dt"][b, p, k]
            delta = (raw if raw > 20 else math.log1p(math.exp(raw))) if softplus else raw
            A = t["A"][k, e]
            h = np.exp(delta * A) * h + (np.expm1(delta * A) / A if zoh else delta) * B * x
            if p >= 0:
                y[b, p, k, e] = (C * h).sum() + (0.0 if t["D"] is None else t["D"][k, e] * x)
        last[b, k, e] = h
    return y, last
