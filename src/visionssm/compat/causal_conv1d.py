"""The functions of the `causal_conv1d` package, in plain torch: a depthwise convolution that sees only the past."""

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = (None, "silu", "swish")


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """y[t] = activation(bias + sum_j weight[j] x[t - width + 1 + j]), for each channel; before the start x is zero.

    Args:
        x: (batch, E, L).
        weight: (E, width), any width; the last tap weighs the present.
        bias: (E) or None.
        seq_idx: (batch, L) integers: which of several sequences packed into one row a step belongs to. A step sees those
            of its own sequence only; where it is negative the output is zero.
        initial_states: (batch, E, width - 1): the inputs before the first, instead of zeros. Not together with
            `seq_idx`.
        return_final_states: also return the last width - 1 inputs, (batch, E, width - 1). Not together with `seq_idx`.
        final_states_out: where to write them, instead of a new tensor.
        activation: None, "silu" or "swish", the same under two names.

    Returns:
        (batch, E, L) in x's dtype; with `return_final_states` also the final states.

    Raises:
        ValueError: a shape, an activation or a combination that does not fit.

    Example:
        >>> x = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> causal_conv1d_fn(x, torch.tensor([[10.0, 1.0]]))
        tensor([[[ 1., 12., 23.]]])
    """
    _check(x, weight, bias, activation)
    batch, E, L = x.shape
    width = weight.shape[1]
    if seq_idx is not None:
        if initial_states is not None or return_final_states:
            raise ValueError("seq_idx: cannot be combined with initial_states or return_final_states")
        _need("seq_idx", seq_idx, (batch, L))
        return _activate(_packed(x, weight, bias, seq_idx), activation).to(x.dtype)
    if initial_states is None:
        known = F.pad(x, (width - 1, 0))
    else:
        _need("initial_states", initial_states, (batch, E, width - 1))
        known = torch.cat((initial_states.to(x.dtype), x), dim=2)
    y = _convolve(known, weight, bias, activation, x.dtype)
    if not return_final_states:
        return y
    final = known[:, :, L:]
    if final_states_out is None:
        return y, final.contiguous()
    _need("final_states_out", final_states_out, (batch, E, width - 1))
    return y, final_states_out.copy_(final)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """The same convolution for inputs that come one or a few at a time; `conv_state` is updated in place.

    Args:
        x: (batch, E) for one step, or (batch, E, L).
        conv_state: (batch, E, state_len) with state_len at least width - 1: the latest inputs, the last one at the end.
        weight: (E, width).
        bias: (E) or None.
        activation: None, "silu" or "swish".
        cache_seqlens: (batch) integers: conv_state is a ring buffer, and the next input belongs at this place modulo
            state_len.
        conv_state_indices: (batch) integers: the row of conv_state, which may have more than batch, that belongs to each
            row of x.

    Returns:
        As x in shape and dtype.

    Raises:
        ValueError: a shape or an activation that does not fit.

    Example:
        >>> state = torch.zeros(1, 1, 1)
        >>> [causal_conv1d_update(torch.tensor([[v]]), state, torch.tensor([[10.0, 1.0]])).item() for v in (1.0, 2.0)]
        [1.0, 12.0]
    """
    steps = x[:, :, None] if x.dim() == 2 else x
    _check(steps, weight, bias, activation)
    batch, E, L = steps.shape
    history = weight.shape[1] - 1
    rows = torch.arange(batch, device=x.device) if conv_state_indices is None else conv_state_indices.long()
    _need("conv_state_indices", rows, (batch,))
    if conv_state.dim() != 3 or conv_state.shape[1] != E or conv_state.shape[2] < history:
        raise ValueError(
            f"conv_state: got shape {tuple(conv_state.shape)}, need (batch, E, state_len) with E={E} and at least {history} states"
        )
    if conv_state_indices is None:
        _need("conv_state", conv_state, (batch, E, conv_state.shape[2]))
    state, size = conv_state[rows], conv_state.shape[2]
    if cache_seqlens is None:
        known = torch.cat((state, steps.to(state.dtype)), dim=2)
        state = known[:, :, known.shape[2] - size :]
        known = known[:, :, size - history :]
    else:
        _need("cache_seqlens", cache_seqlens, (batch,))
        places = torch.arange(-history, L, device=x.device) + cache_seqlens.long()[:, None]
        places = places.remainder(size)[:, None].expand(-1, E, -1)
        known = torch.cat((state.gather(2, places[:, :, :history]), steps.to(state.dtype)), dim=2)
        for start in range(0, L, size):  # a chunk longer than the ring overwrites what it wrote itself, in order
            part = slice(start, start + size)
            state = state.scatter(2, places[:, :, history:][:, :, part], steps[:, :, part].to(state.dtype))
    with torch.no_grad():
        conv_state[rows] = state
    return _convolve(known, weight, bias, activation, x.dtype).reshape(x.shape)


def _convolve(known: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, dtype: torch.dtype) -> Tensor:
    wide = torch.promote_types(known.dtype, weight.dtype)
    bias = None if bias is None else bias.to(wide)
    y = F.conv1d(known.to(wide), weight.to(wide)[:, None], bias, groups=weight.shape[0])
    return _activate(y, activation).to(dtype)


def _packed(x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor) -> Tensor:
    """The convolution over rows that hold several sequences: each tap sees its own sequence only."""
    wide = torch.promote_types(x.dtype, weight.dtype)
    L, width = x.shape[2], weight.shape[1]
    past, owner = F.pad(x.to(wide), (width - 1, 0)), F.pad(seq_idx, (width - 1, 0), value=-1)
    y = x.new_zeros(x.shape, dtype=wide) if bias is None else bias.to(wide)[:, None].expand(x.shape)
    for tap in range(width):
        same = owner[:, tap : tap + L] == seq_idx
        y = y + weight[:, tap, None].to(wide) * past[:, :, tap : tap + L] * same[:, None]
    return y * (seq_idx >= 0)[:, None]


def _activate(y: Tensor, activation: str | None) -> Tensor:
    return y if activation is None else F.silu(y)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> None:
    if x.dim() != 3:
        raise ValueError(f"x: got shape {tuple(x.shape)}, need (batch, E, L)")
    if weight.dim() != 2 or weight.shape[0] != x.shape[1]:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, need (E, width) with E={x.shape[1]} from x")
    if bias is not None:
        _need("bias", bias, (x.shape[1],))
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: got {activation!r}, choose from None, 'silu', 'swish'")


def _need(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, need {shape}")
