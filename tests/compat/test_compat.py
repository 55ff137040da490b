"""The drop-ins mean what code written for mamba_ssm, causal_conv1d and VMamba's extension expects of the originals."""

import numpy as np
import pytest
import torch
from parity_data import operator_vectors
from torch.autograd import gradcheck

from visionssm import compat


def draw(*shape, dtype=torch.float64, seed=[0]):  # noqa: B006  the default counts the calls of a test session
    seed[0] += 1
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed[0]), dtype=dtype)


def silu(x):
    return x / (1 + np.exp(-x))


def scan_by_hand(u, delta, A, B, C, D=None, z=None, bias=None, softplus=False):
    """One number at a time; B and C (batch, E, N, L), A real or complex. y and the last state."""
    y, last = np.zeros(u.shape), np.zeros((*u.shape[:2], A.shape[1]), A.dtype)
    for b, e in np.ndindex(u.shape[:2]):
        h = np.zeros(A.shape[1], A.dtype)
        for t in range(u.shape[2]):
            step = delta[b, e, t] + (0 if bias is None else bias[e])
            step = np.log1p(np.exp(step)) if softplus else step
            h = np.exp(step * A[e]) * h + step * B[b, e, :, t] * u[b, e, t]
            out = (C[b, e, :, t] * h).sum()
            y[b, e, t] = 2 * out.real if np.iscomplexobj(A) else out
            y[b, e, t] += 0 if D is None else D[e] * u[b, e, t]
        last[b, e] = h
    return y if z is None else y * silu(z), last


def convolve_by_hand(x, weight, bias=None, owner=None, activate=False):
    """(batch, E, L) with the taps that look back; `owner` (batch, L) says which sequence a step belongs to."""
    y = np.zeros(x.shape)
    width = weight.shape[1]
    for b, e, t in np.ndindex(x.shape):
        total = 0.0 if bias is None else bias[e]
        for back in range(min(width, t + 1)):
            if owner is None or owner[b, t - back] == owner[b, t]:
                total += weight[e, width - 1 - back] * x[b, e, t - back]
        y[b, e, t] = 0.0 if owner is not None and owner[b, t] < 0 else total
    return silu(y) if activate else y


def near(found, expected, tolerance=1e-10):
    expected = np.asarray(expected)
    assert tuple(found.shape) == expected.shape
    assert np.abs(found.detach().numpy() - expected).max() <= tolerance * max(1, np.abs(expected).max())


SCANS = [compat.selective_scan_fn, compat.selective_scan_ref]


@pytest.mark.parametrize("scan", SCANS)
def test_selective_scan_in_mamba_ssms_order_of_arguments(scan):
    batch, E, N, L = 2, 4, 3, 9
    u, delta, B, C, z = draw(batch, E, L), draw(batch, E, L), draw(batch, N, L), draw(batch, N, L), draw(batch, E, L)
    A, D, bias = -draw(E, N).exp(), draw(E), draw(E)
    y, last = scan(u, delta, A, B, C, D, z, bias, True, True)
    per_channel = [v[:, None].expand(batch, E, N, L).numpy() for v in (B, C)]
    expected = scan_by_hand(u.numpy(), delta.numpy(), A.numpy(), *per_channel, D.numpy(), z.numpy(), bias.numpy(), True)
    near(y, expected[0])
    near(last, expected[1])
    assert torch.equal(scan(u, delta, A, B, C, D, z=z, delta_bias=bias, delta_softplus=True), y)


@pytest.mark.parametrize("form", ["per step", "groups", "constant", "complex per step"])
@pytest.mark.parametrize("scan", SCANS)
def test_complex_state_spaces(scan, form):
    """Every form of B and C; the step sizes are large, so that the states turn many times."""
    batch, E, N, L = 2, 4, 3, 11
    u, delta, z, D, bias = draw(batch, E, L), 3 * draw(batch, E, L), draw(batch, E, L), draw(E), draw(E)
    A = torch.complex(-draw(E, N).exp(), 20 * draw(E, N))
    shape = {"per step": (batch, N), "groups": (batch, 2, N), "constant": (E, N), "complex per step": (batch, N)}[form]
    shape = shape if form == "constant" else (*shape, L)
    B, C = (torch.complex(draw(*shape), draw(*shape)) for _ in range(2))
    if form == "constant":
        wide = [v[None, :, :, None].expand(batch, E, N, L).numpy() for v in (B, C)]
    else:
        wide = [
            v.reshape(batch, -1, N, L).repeat_interleave(E // v.reshape(batch, -1, N, L).shape[1], 1).numpy()
            for v in (B, C)
        ]
    given = [torch.view_as_real(v).flatten(-2) if form in ("per step", "groups") else v for v in (B, C)]
    y, last = scan(u, delta, A, *given, D, z, bias, delta_softplus=True, return_last_state=True)
    expected = scan_by_hand(u.numpy(), delta.numpy(), A.numpy(), *wide, D.numpy(), z.numpy(), bias.numpy(), True)
    near(y, expected[0])
    near(last, expected[1])


def test_gradients_of_complex_state_spaces():
    batch, E, N, L = 1, 2, 2, 4
    A = torch.complex(-draw(E, N).exp(), draw(E, N))
    inputs = (draw(batch, E, L), draw(batch, E, L), A, draw(batch, N, 2 * L), draw(batch, N, 2 * L), draw(E))
    inputs = tuple(value.requires_grad_() for value in inputs)

    def scan(u, delta, A, B, C, bias):
        y, last = compat.selective_scan_fn(
            u, delta, A, B, C, delta_bias=bias, delta_softplus=True, return_last_state=True
        )
        return y, torch.view_as_real(last)

    assert gradcheck(scan, inputs)


def test_complex_state_spaces_of_low_precision_inputs():
    batch, E, N, L = 1, 2, 4, 300
    u, delta = draw(batch, E, L).bfloat16(), draw(batch, E, L).bfloat16()
    A = torch.complex(-0.1 * torch.ones(E, N), 200 * draw(E, N).float())
    B, C = draw(batch, N, 2 * L).bfloat16(), draw(batch, N, 2 * L).bfloat16()
    y = compat.selective_scan_fn(u, delta, A, B, C, delta_softplus=True)
    exact = compat.selective_scan_ref(
        u.double(), delta.double(), A.to(torch.complex128), B.double(), C.double(), delta_softplus=True
    )
    assert y.dtype == torch.bfloat16
    assert (y.double() - exact).abs().max() < 2**-8 * exact.abs().max()


def test_complex_mistakes_are_named():
    A = torch.complex(-torch.ones(4, 3), torch.ones(4, 3))
    u = torch.ones(2, 4, 5)
    with pytest.raises(ValueError, match=r"B: got shape \(2, 3, 5\) in torch.float32.*2 L"):
        compat.selective_scan_fn(u, u, A, torch.ones(2, 3, 5), torch.ones(2, 3, 10))
    with pytest.raises(ValueError, match=r"u, delta: got shapes \(2, 4, 5\) and \(4, 5\)"):
        compat.selective_scan_fn(u, u[0], A, torch.ones(2, 3, 10), torch.ones(2, 3, 10))
    with pytest.raises(ValueError, match="C: got 3 groups"):
        compat.selective_scan_fn(u, u, A, torch.ones(2, 3, 10), torch.ones(2, 3, 3, 10))


@pytest.mark.parametrize("width", [1, 2, 4, 6])
@pytest.mark.parametrize("activation", [None, "silu", "swish"])
def test_causal_convolution(width, activation):
    x, weight, bias = draw(2, 3, 5), draw(3, width), draw(3)
    found = compat.causal_conv1d_fn(x, weight, bias, activation=activation)
    near(found, convolve_by_hand(x.numpy(), weight.numpy(), bias.numpy(), activate=activation is not None))
    near(compat.causal_conv1d_fn(x, weight), convolve_by_hand(x.numpy(), weight.numpy()))


def test_causal_convolution_of_a_sequence_in_two_parts():
    x, weight, bias = draw(2, 3, 9), draw(3, 4), draw(3)
    whole, final = compat.causal_conv1d_fn(x, weight, bias, return_final_states=True, activation="silu")
    first, state = compat.causal_conv1d_fn(x[:, :, :2], weight, bias, return_final_states=True, activation="silu")
    assert state.shape == (2, 3, 3)
    assert state[:, :, 0].eq(0).all()
    room = torch.empty(2, 3, 3, dtype=torch.float64)
    second, last = compat.causal_conv1d_fn(
        x[:, :, 2:],
        weight,
        bias,
        initial_states=state,
        return_final_states=True,
        final_states_out=room,
        activation="silu",
    )
    torch.testing.assert_close(torch.cat((first, second), 2), whole)
    assert last is room
    assert torch.equal(last, final)
    assert torch.equal(final, x[:, :, 6:])


def test_causal_convolution_of_packed_sequences():
    x, weight, bias = draw(2, 3, 8), draw(3, 4), draw(3)
    owner = torch.tensor([[0, 0, 0, 1, 1, 2, 2, -1], [5, 5, 4, 4, 4, 4, 4, 4]], dtype=torch.int32)
    found = compat.causal_conv1d_fn(x, weight, bias, seq_idx=owner, activation="silu")
    near(found, convolve_by_hand(x.numpy(), weight.numpy(), bias.numpy(), owner.numpy(), activate=True))
    with pytest.raises(ValueError, match="seq_idx"):
        compat.causal_conv1d_fn(x, weight, seq_idx=owner, return_final_states=True)


def test_gradients_of_the_causal_convolution():
    inputs = tuple(v.requires_grad_() for v in (draw(2, 3, 4), draw(3, 3), draw(3), draw(2, 3, 2)))
    assert gradcheck(
        lambda x, w, b, s: compat.causal_conv1d_fn(
            x, w, b, initial_states=s, return_final_states=True, activation="silu"
        ),
        inputs,
    )
    owner = torch.tensor([[0, 0, 1, 1], [0, 1, 1, -1]])
    assert gradcheck(lambda x, w, b: compat.causal_conv1d_fn(x, w, b, seq_idx=owner), inputs[:3])


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("room", [3, 5])
@pytest.mark.parametrize("chunks", [[1] * 9, [2, 3, 4], [9]])
def test_convolution_updated_step_by_step(chunks, room, ring):
    """Fed in pieces, into rows of a larger cache, it gives what the whole sequence gives."""
    x, weight, bias = draw(2, 3, 9), draw(3, 4), draw(3)
    cache, rows = torch.zeros(4, 3, room, dtype=torch.float64), torch.tensor([2, 0], dtype=torch.int32)
    pieces, seen = [], 0
    for size in chunks:
        piece = x[:, :, seen : seen + size]
        options = {"cache_seqlens": torch.tensor([seen, seen], dtype=torch.int32)} if ring else {}
        pieces.append(
            compat.causal_conv1d_update(
                piece[:, :, 0] if size == 1 else piece, cache, weight, bias, "silu", conv_state_indices=rows, **options
            ).view(2, 3, size)
        )
        seen += size
    near(torch.cat(pieces, 2), convolve_by_hand(x.numpy(), weight.numpy(), bias.numpy(), activate=True))
    assert cache[[1, 3]].eq(0).all()
    latest = cache[rows.long()]
    if ring:
        latest = latest[:, :, [place % room for place in range(9 - room, 9)]]
    assert torch.equal(latest, x[:, :, 9 - room :])


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: compat.causal_conv1d_fn(torch.ones(2, 3), torch.ones(3, 4)), "x: got"),
        (lambda: compat.causal_conv1d_fn(torch.ones(2, 3, 5), torch.ones(4, 4)), "weight: got"),
        (lambda: compat.causal_conv1d_fn(torch.ones(2, 3, 5), torch.ones(3, 4), torch.ones(2)), "bias: got"),
        (lambda: compat.causal_conv1d_fn(torch.ones(2, 3, 5), torch.ones(3, 4), activation="gelu"), "activation: got"),
        (lambda: compat.causal_conv1d_update(torch.ones(2, 3), torch.ones(2, 3, 2), torch.ones(3, 4)), "conv_state"),
        (lambda: compat.causal_conv1d_update(torch.ones(2, 3), torch.ones(5, 3, 3), torch.ones(3, 4)), "conv_state"),
        (lambda: compat.mamba_inner_fn_no_out_proj(*[torch.ones(2, 7, 5)] * 5, torch.ones(4, 2)), "xz: got"),
    ],
)
def test_mistakes_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


VIM = ("conv_w", "conv_b", "x_proj", "dt_w", "A_log", "D", "dt_b")


@pytest.mark.parametrize("case", range(5))
def test_inner_function_against_vims_published_vectors(case):
    """Both directions of Vim's mixer and every gradient, as Vim's code calls the function."""
    data = operator_vectors("vim", "bimamba_v2_op")
    leaves = {"xz": torch.from_numpy(data[f"case{case}_in_xz"]).requires_grad_()}
    for name in VIM:
        for side in "fb":
            leaves[f"{name}_{side}"] = torch.from_numpy(data[f"case{case}_in_{name}_{side}"]).requires_grad_()

    def direction(xz, side):
        conv_w, conv_b, x_proj, dt_w, A_log, D, dt_b = (leaves[f"{name}_{side}"] for name in VIM)
        return compat.mamba_inner_fn_no_out_proj(
            xz, conv_w, conv_b, x_proj, dt_w, -A_log.exp(), None, None, D, delta_bias=dt_b, delta_softplus=True
        )

    forward = direction(leaves["xz"], "f")
    backward = direction(leaves["xz"].flip([-1]), "b").flip([-1])
    near(forward, data[f"case{case}_y_f"])
    near(backward, data[f"case{case}_y_b"])
    ((forward + backward) / 2 * torch.from_numpy(data[f"case{case}_G"])).sum().backward()
    for name, leaf in leaves.items():
        near(leaf.grad, data[f"case{case}_grad_{name}"])


def inner_inputs(complex_A=False, batch=2, E=4, N=3, R=2, L=7, out=5):
    columns = N * (2 if complex_A else 1)
    A = -draw(E, N).exp()
    return {
        "xz": draw(batch, 2 * E, L),
        "conv1d_weight": draw(E, 1, 3),
        "conv1d_bias": draw(E),
        "x_proj_weight": draw(R + 2 * columns, E),
        "delta_proj_weight": draw(E, R),
        "out_proj_weight": draw(out, E),
        "out_proj_bias": draw(out),
        "A": torch.complex(A, draw(E, N)) if complex_A else A,
        "D": draw(E),
        "delta_bias": draw(E),
        "B_proj_bias": draw(columns),
        "C_proj_bias": draw(columns),
    }


def inner_by_hand(i, norms=None, eps=1e-6):
    v = {name: value.numpy() for name, value in i.items()}
    E, N = v["A"].shape
    R = v["delta_proj_weight"].shape[1]
    x = convolve_by_hand(v["xz"][:, :E], v["conv1d_weight"][:, 0], v["conv1d_bias"], activate=True)
    projected = np.einsum("re,bel->brl", v["x_proj_weight"], x)
    columns = (len(v["x_proj_weight"]) - R) // 2
    B = projected[:, R : R + columns] + v["B_proj_bias"][:, None]
    C = projected[:, R + columns :] + v["C_proj_bias"][:, None]
    delta = np.einsum("er,brl->bel", v["delta_proj_weight"], projected[:, :R])
    if norms is not None:
        B, C, delta = (
            value / np.sqrt((value**2).mean(1, keepdims=True) + eps) * weight.numpy()[:, None]
            for value, weight in zip((B, C, delta), norms, strict=True)
        )
    if np.iscomplexobj(v["A"]):
        B, C = (value[:, 0::2] + 1j * value[:, 1::2] for value in (B, C))
    B, C = (np.broadcast_to(value[:, None], (len(x), E, N, x.shape[2])) for value in (B, C))
    y, _ = scan_by_hand(x, delta, v["A"], B, C, v["D"], v["xz"][:, E:], v["delta_bias"], True)
    return y


def project_out(y, i):
    return np.einsum("oe,bel->blo", i["out_proj_weight"].numpy(), y) + i["out_proj_bias"].numpy()


@pytest.mark.parametrize("complex_A", [False, True])
@pytest.mark.parametrize("function", [compat.mamba_inner_fn, compat.mamba_inner_ref])
def test_inner_function_with_biases(function, complex_A):
    inputs = inner_inputs(complex_A)
    near(function(**inputs), project_out(inner_by_hand(inputs), inputs))


def test_inner_function_with_norms():
    inputs = inner_inputs()
    norms = draw(3), draw(3), draw(4)
    found = compat.mamba_inner_fn(
        **inputs, b_rms_weight=norms[0], c_rms_weight=norms[1], dt_rms_weight=norms[2], b_c_dt_rms_eps=0.1
    )
    near(found, project_out(inner_by_hand(inputs, norms, 0.1), inputs))


def test_inner_function_with_given_B_and_C():
    inputs = inner_inputs()
    del inputs["B_proj_bias"], inputs["C_proj_bias"]
    B, C = draw(4, 3), draw(2, 3, 7)
    found = compat.mamba_inner_fn(**{**inputs, "x_proj_weight": inputs["x_proj_weight"][:2]}, B=B, C=C)
    v = {name: value.numpy() for name, value in inputs.items()}
    x = convolve_by_hand(v["xz"][:, :4], v["conv1d_weight"][:, 0], v["conv1d_bias"], activate=True)
    delta = np.einsum("er,rf,bfl->bel", v["delta_proj_weight"], v["x_proj_weight"][:2], x)
    wide = B[None, :, :, None].expand(2, 4, 3, 7).numpy(), C[:, None].expand(2, 4, 3, 7).numpy()
    y, _ = scan_by_hand(x, delta, v["A"], *wide, v["D"], v["xz"][:, 4:], v["delta_bias"], True)
    near(found, project_out(y, inputs))
    with pytest.raises(ValueError, match="x_proj_weight"):
        compat.mamba_inner_fn(**inputs, B=B, C=C)


def test_two_way_inner_function_scans_the_convolved_sequence_both_ways():
    inputs = inner_inputs()
    A_b = -draw(4, 3).exp()
    found = compat.bimamba_inner_fn(**inputs, A_b=A_b)
    # The backward part by hand: the same convolved x, delta, B, C and gate, read from their ends.
    v = {name: value.numpy() for name, value in inputs.items()}
    x = convolve_by_hand(v["xz"][:, :4], v["conv1d_weight"][:, 0], v["conv1d_bias"], activate=True)
    projected = np.einsum("re,bel->brl", v["x_proj_weight"], x)
    B = (projected[:, 2:5] + v["B_proj_bias"][:, None])[:, None].repeat(4, 1)
    C = (projected[:, 5:] + v["C_proj_bias"][:, None])[:, None].repeat(4, 1)
    delta = np.einsum("er,brl->bel", v["delta_proj_weight"], projected[:, :2])
    z = v["xz"][:, 4:]
    flipped = [value[..., ::-1] for value in (x, delta, B, C, z)]
    backward, _ = scan_by_hand(
        flipped[0], flipped[1], A_b.numpy(), flipped[2], flipped[3], v["D"], flipped[4], v["delta_bias"], True
    )
    near(found, project_out(inner_by_hand(inputs) + backward[..., ::-1], inputs))
    with pytest.raises(TypeError, match="real"):
        compat.bimamba_inner_fn(**inner_inputs(complex_A=True), A_b=A_b)


def oflex_cases():
    return sorted({key.split("/")[0] for key in operator_vectors("vmamba", "operators") if key.startswith("sscan")})


class ScanAsVMambaCallsIt(torch.autograd.Function):
    """A caller of the extension: forward and backward are its functions."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, delta_bias):
        y, kept, *_ = compat.oflex.fwd(u, delta, A, B, C, D, delta_bias, True, 1, True)
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, kept)
        return y

    @staticmethod
    def backward(ctx, dout):
        u, delta, A, B, C, D, delta_bias, kept = ctx.saved_tensors
        found = compat.oflex.bwd(u, delta, A, B, C, D, delta_bias, dout.contiguous(), kept, True, 1)
        return tuple(found[:7])


@pytest.mark.parametrize("case", oflex_cases())
def test_vmambas_extension_against_published_vectors(case):
    vectors = operator_vectors("vmamba", "operators")
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    inputs = {name: torch.from_numpy(vectors[f"{case}/{name}"]).requires_grad_() for name in names}
    y = ScanAsVMambaCallsIt.apply(*inputs.values())
    near(y, vectors[f"{case}/y"])
    (y * torch.from_numpy(vectors[f"{case}/R"])).sum().backward()
    for name, value in inputs.items():
        near(value.grad, vectors[f"{case}/grad_{name}"])


def test_vmambas_extension_decides_the_dtype_of_its_output():
    u = delta = torch.randn(1, 4, 6).half()
    B = C = torch.randn(1, 2, 3, 6).half()
    A = -torch.rand(4, 3)
    wide, kept = compat.oflex.fwd(u, delta, A, B, C, None, None, True, 1, True)
    narrow, _ = compat.oflex.fwd(u, delta, A, B, C, None, None, True, 1, False)
    assert wide.dtype == kept.dtype == torch.float32
    assert narrow.dtype == torch.float16
    assert torch.equal(wide.half(), narrow)
    gradients = compat.oflex.bwd(u, delta, A, B, C, None, None, torch.ones(1, 4, 6), kept, True, 1)
    assert [None if g is None else g.dtype for g in gradients] == [torch.float16] * 2 + [torch.float32] + [
        torch.float16
    ] * 2 + [None] * 2


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms_add_the_residual(kind):
    x, residual, weight, bias = draw(2, 5), draw(2, 5), draw(5), draw(5)
    function = compat.layer_norm_fn if kind == "layer" else compat.rms_norm_fn
    total = (x + residual).numpy()
    centred = total - total.mean(1, keepdims=True) if kind == "layer" else total
    expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 0.1) * weight.numpy() + bias.numpy()
    y, carried = function(x, weight, bias, residual=residual, prenorm=True, eps=0.1)
    near(y, expected)
    near(carried, total)
    near(function(x, weight, bias, residual, eps=0.1), expected)


def test_norms_carry_the_residual_in_the_dtype_asked_for():
    x, norm = torch.randn(2, 5).bfloat16(), compat.RMSNorm(5, dtype=torch.bfloat16)
    y, carried = norm(x, prenorm=True, residual_in_fp32=True)
    assert (y.dtype, carried.dtype) == (torch.bfloat16, torch.float32)
    y, carried = norm(x, residual=carried, prenorm=True)
    assert (y.dtype, carried.dtype) == (torch.bfloat16, torch.float32)
    assert norm(x, prenorm=True)[1].dtype == torch.bfloat16
    assert list(norm.state_dict()) == ["weight"]


def test_mamba_has_the_published_names_and_shapes():
    state = compat.Mamba(32, d_state=8, d_conv=3, expand=2).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "A_log": (64, 8),
        "D": (64,),
        "in_proj.weight": (128, 32),
        "conv1d.weight": (64, 1, 3),
        "conv1d.bias": (64,),
        "x_proj.weight": (2 + 16, 64),
        "dt_proj.weight": (64, 2),
        "dt_proj.bias": (64,),
        "out_proj.weight": (32, 64),
    }


def test_mamba_is_its_parts():
    torch.manual_seed(0)
    mamba = compat.Mamba(6, d_state=3, d_conv=3, bias=True).double()
    x = draw(2, 7, 6)
    p = {name: value.detach() for name, value in mamba.state_dict().items()}
    xz = torch.nn.functional.linear(x, p["in_proj.weight"], p["in_proj.bias"]).transpose(1, 2)
    inputs = {
        "xz": xz,
        "conv1d_weight": p["conv1d.weight"],
        "conv1d_bias": p["conv1d.bias"],
        "x_proj_weight": p["x_proj.weight"],
        "delta_proj_weight": p["dt_proj.weight"],
        "A": -p["A_log"].exp(),
        "D": p["D"],
        "delta_bias": p["dt_proj.bias"],
        "B_proj_bias": torch.zeros(3),
        "C_proj_bias": torch.zeros(3),
        "out_proj_weight": p["out_proj.weight"],
        "out_proj_bias": p["out_proj.bias"],
    }
    near(mamba(x), project_out(inner_by_hand(inputs), inputs))
    near(mamba(x[:, :4]), mamba(x)[:, :4].detach().numpy())  # causal


def test_mamba_starts_as_the_paper_says():
    torch.manual_seed(0)
    mamba = compat.Mamba(256, d_state=4, dt_min=0.01, dt_max=0.02)
    steps = torch.nn.functional.softplus(mamba.dt_proj.bias)
    assert 0.0099 < steps.min() < 0.0102
    assert 0.0197 < steps.max() < 0.0201
    assert mamba.dt_proj.weight.abs().max() <= 16**-0.5
    torch.testing.assert_close(mamba.A_log.exp()[7], torch.arange(1.0, 5.0))
    assert mamba.D.eq(1).all()
    assert compat.Mamba(256, dt_init="constant").dt_proj.weight.eq(16**-0.5).all()
    low = compat.Mamba(16, dtype=torch.bfloat16)
    assert low.A_log.dtype == low.D.dtype == torch.float32
    assert low(torch.randn(1, 3, 16).bfloat16()).dtype == torch.bfloat16


def test_mamba_trains_and_says_what_it_cannot_do():
    mamba = compat.Mamba(16)
    mamba(torch.randn(2, 5, 16)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mamba.parameters())
    with pytest.raises(ValueError, match="token-by-token"):
        mamba(torch.randn(2, 1, 16), inference_params=object())
    with pytest.raises(ValueError, match="dt_init"):
        compat.Mamba(16, dt_init="zeros")
