"""Look at what a model's scans are given, without touching the model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .tensors import ScanTensors

Observer = Callable[[ScanTensors, bool, bool], None]
observers: list[Observer] = []


@contextmanager
def observe_scans(observer: Observer) -> Iterator[None]:
    """Inside the block, `observer(tensors, softplus, zoh)` is called before every `path_scan` that runs eagerly.

    What is kept of the tensors has to be copied: models may use their memory again.

    Example:
        >>> import torch
        >>> from visionssm.ops import path_scan, paths
        >>> x, dt, BC = torch.randn(1, 6, 4), torch.randn(1, 6, 1, 4), torch.randn(1, 6, 1, 1)
        >>> with observe_scans(lambda tensors, softplus, zoh: print(tensors.path.tolist())):
        ...     y = path_scan(x, dt, -torch.ones(1, 4, 1), BC, BC, None, None, paths.raster(2, 3))
        [[0, 1, 2, 3, 4, 5]]
    """
    observers.append(observer)
    try:
        yield
    finally:
        observers.remove(observer)
