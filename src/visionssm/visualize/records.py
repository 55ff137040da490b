"""What every scan of a model was given for one image, and where each pixel of the map is in it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..layers.tokens import class_positions
from ..models._plain import PlainBackbone
from ..models.local_mamba import LocalVim, step_table
from ..ops.observe import observe_scans
from ..ops.tensors import ScanTensors


@dataclass(frozen=True)
class ScanRecord:
    """One scan, and the map that it walks over.

    Attributes:
        module: name of the module that ran it, such as "stages.2.blocks.1.mixer.scan".
        tensors: the operator's inputs.
        softplus, zoh: its options.
        rows: (H, W), the row of the batch that holds a pixel: 0, but for models that cut the map into windows.
        positions: (K, H, W), a pixel's position in the sequence of path k; -1 where the path does not visit it.
    """

    module: str
    tensors: ScanTensors
    softplus: bool
    zoh: bool
    rows: Tensor
    positions: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of the map."""
        return self.rows.shape[0], self.rows.shape[1]

    @property
    def num_paths(self) -> int:
        """K."""
        return self.positions.shape[0]

    def pixel(self, x: float, y: float) -> tuple[int, int]:
        """(row, column) of the map at a point of the image, given as fractions of its width and height.

        Raises:
            ValueError: the point lies outside the image.
        """
        for name, value in (("x", x), ("y", y)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value}, need a fraction of the image between 0 and 1")
        H, W = self.grid
        return min(int(y * H), H - 1), min(int(x * W), W - 1)


@torch.no_grad()
def record_scans(model: nn.Module, image: Tensor) -> list[ScanRecord]:
    """Run a model on one image, and keep what each of its scans was given, in the order in which they run.

    Args:
        model: a model of this library, in eval mode.
        image: (1, channels, H, W), preprocessed.

    Raises:
        ValueError: more than one image; or a model without a selective scan (the Mamba-2 form of VMamba has another
            recurrence).
        TypeError: not a model of this library.

    Example:
        >>> import visionssm
        >>> model = visionssm.create_model("vmamba_nano").eval()
        >>> [record.grid for record in record_scans(model, torch.randn(1, 3, 32, 48))][:2]
        [(8, 12), (4, 6)]
    """
    if image.dim() != 4 or image.shape[0] != 1:
        raise ValueError(f"image: got shape {tuple(image.shape)}, need one image as (1, channels, H, W)")
    if not hasattr(model, "forward_intermediates"):
        raise TypeError(f"model: got {type(model).__name__}, need a model of this library")
    backbone: Any = model
    seen: list[tuple[str, ScanTensors, bool, bool]] = []
    running = ""

    def entering(name: str) -> Callable[..., None]:
        def note(*_: Any) -> None:
            nonlocal running
            running = name

        return note

    def keep(tensors: ScanTensors, softplus: bool, zoh: bool) -> None:
        # Copies, because blocks take turns with the memory of their intermediate results.
        seen.append((running, tree_map_only(Tensor, lambda value: value.detach().clone(), tensors), softplus, zoh))

    scans = [(name, module) for name, module in model.named_modules() if hasattr(module, "A_log")]
    handles = [module.register_forward_pre_hook(entering(name)) for name, module in scans]
    try:
        with observe_scans(keep):
            features = backbone.forward_intermediates(image, intermediates_only=True)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise ValueError(f"{type(model).__name__} ran no selective scan that could be looked at")
    grids = [tuple(feature.shape[-2:]) for feature in features]
    return [
        ScanRecord(name, tensors, softplus, zoh, *_layout(backbone, name, tensors, grids))
        for name, tensors, softplus, zoh in seen
    ]


def _layout(model: Any, module: str, tensors: ScanTensors, grids: list[Any]) -> tuple[Tensor, Tensor]:
    """`rows` and `positions` of a :class:`ScanRecord`."""
    batch, L = tensors.x.shape[:2]
    K = tensors.path.shape[0]
    if isinstance(model, PlainBackbone):
        return _plain_layout(model, module, K, grids[0])
    stage = re.match(r"stages\.(\d+)", module)
    H, W = grids[int(stage[1])] if stage else grids[0]
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    if batch == 1 and L == H * W:
        return torch.zeros_like(y), (y * W + x).expand(K, H, W)
    if L == ((H + 1) // 2) * ((W + 1) // 2) and K == 4 and batch == 1:
        # Each path walks the quarter of the pixels at its own offset: path 2 * (column % 2) + row % 2.
        own = 2 * (x % 2) + y % 2 == torch.arange(4)[:, None, None]
        return torch.zeros_like(y), torch.where(own, (y // 2) * ((W + 1) // 2) + x // 2, -1)
    window = getattr(model.stages[int(stage[1])], "window", None) if stage else None
    h, w = window or (H, W)
    if h * w != L:
        raise ValueError(f"{module} scans {L} positions, which are not the {H}x{W} map in windows of {h}x{w}")
    return (y // h) * -(-W // w) + x // w, ((y % h) * w + x % w).expand(K, H, W)


def _plain_layout(model: PlainBackbone, module: str, K: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    H, W = grid
    block = int(module.split(".")[1])
    tokens = torch.arange(H * W)
    places = class_positions(model.class_token, H * W)
    for place in places:
        tokens = tokens + (tokens >= place)
    if model.paired_blocks and block % 2:
        tokens = H * W + len(places) - 1 - tokens
    if isinstance(model, LocalVim):
        # Its sequences are in the order of the walk already.
        steps = step_table(H, W, cast(Any, model.blocks[block]).mixer.directions, model.class_token).cpu().long()
        return torch.zeros(H, W, dtype=torch.long), steps[:, tokens].view(K, H, W)
    return torch.zeros(H, W, dtype=torch.long), tokens.view(H, W).expand(K, H, W)


def middle_record(records: list[ScanRecord]) -> ScanRecord:
    """The scan in the middle of the depth, among those whose map has at least four rows and columns if there are any."""
    wide = [record for record in records if min(record.grid) >= 4] or records
    return wide[len(wide) // 2]
