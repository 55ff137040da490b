"""The attention that a selective scan amounts to: y_i = sum_j T_ij x_j along each path.

For frozen steps and projections a scan is linear in its input, with the matrix::

    T_ij = sum_n C_i[n] * exp(sum_{s=j+1..i} delta_s A[n]) * delta_j * B_j[n]        for j <= i, else 0

The procedure of the published VMamba code (`attention_matrices`) leaves some factors out by choice, and needs L^2
memory; `attention_row` gives one query pixel's row of the whole T in linear memory.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import path_scan
from .records import ScanRecord

# name: (with C and B, with the decay between j and i, with delta_j); what the published code calls CB, CwBw, CwBdtw, ww
MODES = {
    "affinity": (True, False, False),
    "decayed": (True, True, False),
    "full": (True, True, True),
    "decay": (False, True, False),
}
MOST_POSITIONS = 4096
_CHUNK = 1 << 24  # elements of a temporary


def attention_row(record: ScanRecord, pixel: tuple[int, int]) -> Tensor:
    """How much every pixel contributes to one: the row of T for a query pixel, the mean over channels.

    It is the scan's own gradient by its input, so it takes the time and memory of one backward pass, on any map.

    Args:
        record: a scan, from `record_scans`.
        pixel: (row, column) of the query on the scan's map, see :meth:`ScanRecord.pixel`.

    Returns:
        (K, H, W): a map for each path; zero where a path does not lead from that pixel to the query.

    Example:
        >>> import visionssm
        >>> from visionssm.visualize import record_scans
        >>> model = visionssm.create_model("vmamba_nano").eval()
        >>> record = record_scans(model, torch.randn(1, 3, 64, 64))[0]
        >>> attention_row(record, record.pixel(0.5, 0.5)).shape
        torch.Size([4, 16, 16])
    """
    H, W = record.grid
    row, column = pixel
    if not (0 <= row < H and 0 <= column < W):
        raise ValueError(f"pixel: got {pixel}, but the map is {H}x{W}")
    batch_row = int(record.rows[row, column])
    # The one sequence that holds the query; the skip D is no mixing of positions.
    tensors = [value[batch_row : batch_row + 1] for value in record.tensors[:2]]
    B, C = (value[batch_row : batch_row + 1] for value in record.tensors[3:5])
    maps = []
    for k in range(record.num_paths):
        x = tensors[0][:, :, k] if tensors[0].dim() == 4 else tensors[0]
        x = torch.zeros_like(x).requires_grad_()
        with torch.enable_grad():
            y = _scan_one_path(record, k, x, tensors[1], B, C)
        query = int(record.positions[k, row, column])
        contributions = torch.zeros(x.shape[1], dtype=torch.float32)
        if query >= 0:
            (gradient,) = torch.autograd.grad(y[0, query].sum(), x)
            contributions = gradient[0].float().mean(1).cpu()
        here = (record.rows == batch_row) & (record.positions[k] >= 0)
        maps.append(torch.where(here, contributions[record.positions[k].clamp(min=0)], 0.0))
    return torch.stack(maps)


def _scan_one_path(record: ScanRecord, k: int, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
    t = record.tensors
    one = slice(k, k + 1)
    y = path_scan(
        x,
        dt[:, :, one],
        t.A[one],
        B[:, :, one],
        C[:, :, one],
        None,
        None if t.dt_bias is None else t.dt_bias[one],
        t.path[one],
        dt_weight=None if t.dt_weight is None else t.dt_weight[one],
        softplus=record.softplus,
        discretization="zoh" if record.zoh else "euler",
        out_dtype=torch.float32,
    )
    assert isinstance(y, Tensor)
    return y


@torch.no_grad()
def attention_matrices(record: ScanRecord, mode: str = "full", image_order: bool = True) -> Tensor:
    """The whole matrix of each path, the mean over channels, by the procedure of the published VMamba code.

    Args:
        record: a scan over a whole map, from `record_scans`.
        mode: which factors of T are kept. "affinity": C_i B_j (published name: CB). "decayed": with the decay between j
            and i (CwBw). "full": with delta_j too, the true T (CwBdtw). "decay": the decay alone (ww).
        image_order: rows and columns by position in the image instead of by step of the path.

    Returns:
        (K, L, L): row i is what flows into position i. Zero where j comes after i.

    Raises:
        ValueError: an unknown mode, more than 4096 positions (see `attention_row`), or paths that leave positions out.
    """
    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}, choose from {', '.join(MODES)}")
    H, W = record.grid
    L = record.tensors.x.shape[1]
    if L > MOST_POSITIONS:
        raise ValueError(
            f"{L} positions make {L * L * 4 / 2**30:.1f} GiB for each path; `attention_row` is for such maps"
        )
    path = record.tensors.path.long()
    if path.shape[1] != L or H * W > L or int(path.min()) < 0 or record.tensors.x.shape[0] > 1:
        raise ValueError(
            f"{record.module}: attention_matrices needs paths that visit the whole {H}x{W} map; use attention_row"
        )
    matrices = torch.stack([_matrix_of_path(record, k, path[k], MODES[mode]) for k in range(record.num_paths)])
    if not image_order:
        return matrices
    step = torch.argsort(path, dim=1).cpu()
    pixels = record.positions.flatten(1)
    order = step.gather(1, pixels)
    return torch.stack([matrix[steps][:, steps] for matrix, steps in zip(matrices, order, strict=True)])


def _matrix_of_path(record: ScanRecord, k: int, path: Tensor, factors: tuple[bool, bool, bool]) -> Tensor:
    """(T, T) in the order of the path."""
    with_affinity, with_decay, with_delta = factors
    t = record.tensors
    B, C = t.B[0, path, k].float(), t.C[0, path, k].float()  # (T, N)
    delta = _delta(record, k)[path]  # (T, E)
    if not with_affinity:
        B, C = torch.ones_like(B), torch.ones_like(C)
    affinity = C @ B.T if not with_decay else None
    if affinity is not None:
        return affinity.tril().cpu()
    steps, E = delta.shape
    total = torch.zeros(steps, steps, device=delta.device)
    size = max(1, _CHUNK // (steps * steps * B.shape[1]))
    for channels in torch.arange(E, device=delta.device).split(size):
        # exp of a difference, not a quotient of exps, which would underflow on long paths.
        logs = torch.cumsum(delta[:, channels, None] * t.A[k, channels], 0)  # (T, e, N)
        decay = torch.exp((logs[:, None] - logs[None]).clamp(max=0))
        source = delta[:, channels] if with_delta else torch.ones_like(delta[:, channels])
        total += torch.einsum("in,ijen,jn,je->ij", C, decay, B, source)
    return (total / E).tril().cpu()


def _delta(record: ScanRecord, k: int) -> Tensor:
    """delta (L, E) of path k in image order."""
    t = record.tensors
    dt = t.dt[0, :, k].float()
    dt = dt if t.dt_weight is None else dt @ t.dt_weight[k].float().T
    dt = dt if t.dt_bias is None else dt + t.dt_bias[k]
    return F.softplus(dt) if record.softplus else dt


def normalise(matrices: Tensor) -> Tensor:
    """Each (L, L) matrix moved and scaled to 0 .. 1, the zeros above the diagonal included: the published `_norm`.

    Example:
        >>> normalise(torch.tensor([[0.0, -1.0], [1.0, 3.0]]))
        tensor([[0.2500, 0.0000],
                [0.5000, 1.0000]])
    """
    low, high = matrices.amin((-2, -1), keepdim=True), matrices.amax((-2, -1), keepdim=True)
    return (matrices - low) / (high - low).clamp(min=torch.finfo(matrices.dtype).tiny)


def roll_out(matrices: Sequence[Tensor]) -> Tensor:
    """How much each position of a stage's input reaches each of its output, through all its blocks.

    Every block passes half of its input on (the residual) and mixes half by |T|, whose rows are scaled to the sum 1; the
    blocks' matrices are multiplied, later ones on the left. (The published code divides columns by the rows' sums.)

    Args:
        matrices: (L, L) for each block of one stage, such as `attention_matrices(record).sum(0)`, in order.

    Returns:
        (L, L), rows of sum 1.

    Example:
        >>> roll_out([torch.eye(2), torch.ones(2, 2)])
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]])
    """
    result: Tensor | None = None
    for matrix in matrices:
        mixed = matrix.abs()
        mixed = mixed / mixed.sum(1, keepdim=True).clamp(min=torch.finfo(mixed.dtype).tiny)
        step = 0.5 * (mixed + torch.eye(len(mixed)))
        step = step / step.sum(1, keepdim=True)
        result = step if result is None else step @ result
    if result is None:
        raise ValueError("matrices: got none, need one for each block")
    return result


@torch.no_grad()
def direction_activations(record: ScanRecord) -> Tensor:
    """What each path alone adds to the map: the root mean square over channels of its output, (K, H, W)."""
    t = record.tensors
    y = path_scan(
        t.x, t.dt, t.A, t.B, t.C, t.D, t.dt_bias, t.path, dt_weight=t.dt_weight, softplus=record.softplus, merge=False,
        discretization="zoh" if record.zoh else "euler", initial_state=t.initial_state, out_dtype=torch.float32,
    )  # fmt: skip
    assert isinstance(y, Tensor)
    strength = y.square().mean(-1).sqrt().cpu()  # (rows, L, K)
    maps = [
        torch.where(positions >= 0, strength[record.rows, positions.clamp(min=0), k], 0.0)
        for k, positions in enumerate(record.positions)
    ]
    return torch.stack(maps)
