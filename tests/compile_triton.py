"""Compiles what the `triton` back-end launches, for GPUs that need not be there, and prints what the compiler made of it as JSON.

    python tests/compile_triton.py CASE:ARCHITECTURE...        e.g. vmamba_backward:sm_90

A call on tensors without memory is recorded, launch by launch, with the very arguments that a GPU would be given. To be run
without TRITON_INTERPRET.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from visionssm.ops import triton_launch, triton_plan
from visionssm.ops.tensors import ScanTensors
from visionssm.ops.triton_plan import choose_merge

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32"}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)([^;]*);")

BF16, F32 = torch.bfloat16, torch.float32
VIM = {"batch": 128, "L": 197, "E": 384, "N": 16, "K": 2, "input_per_path": True, "merge": False}
CALLS: dict[str, dict[str, Any]] = {
    "vmamba": {"batch": 128, "L": 784, "E": 192, "N": 1, "K": 4, "R": 12},
    "vmamba_training": {"batch": 256, "L": 787, "E": 192, "N": 1, "K": 4, "R": 12, "save": True, "pair": True},
    "vmamba_first_stage": {"batch": 128, "L": 3136, "E": 96, "N": 1, "K": 4, "R": 6},
    "vmamba_third_stage": {"batch": 128, "L": 196, "E": 384, "N": 1, "K": 4, "R": 24},
    "vmamba_last_stage": {"batch": 128, "L": 49, "E": 768, "N": 1, "K": 4, "R": 48},
    "vmamba_float32": {"batch": 128, "L": 784, "E": 192, "N": 1, "K": 4, "R": 12, "dtype": F32},
    "vmamba_detection": {"batch": 2, "L": 64_000, "E": 96, "N": 1, "K": 4, "R": 6},
    "dense": {"batch": 128, "L": 784, "E": 192, "N": 1, "K": 1},
    "vim": VIM,
    "vim_detection": VIM | {"batch": 2, "L": 6085},
    "mambavision": {"batch": 128, "L": 196, "E": 160, "N": 8, "K": 1},
    "groupmamba": {"batch": 128, "L": 196, "E": 87, "N": 1, "K": 4, "input_per_path": True, "merge": False},
    "atrous": {"batch": 128, "L": 784, "E": 192, "N": 4, "K": 4, "T": 196, "complete": False},
    "many_states": {"batch": 128, "L": 196, "E": 128, "N": 64, "K": 1},
    "zoh": {"batch": 128, "L": 784, "E": 192, "N": 1, "K": 1, "zoh": True},
}


def record(
    *, batch: int, L: int, E: int, N: int, K: int, R: int = 0, T: int = 0, dtype: torch.dtype = BF16, input_per_path: bool = False,
    merge: bool = True, complete: bool = True, mirrored: bool = True, pair: bool = False, zoh: bool = False, save: bool = False,
    backward: bool = False,
) -> list[Any]:  # fmt: skip
    """The launches of one forward, or of one backward."""
    launches: list[Any] = []

    def keep(kernel: Any, grid: Any, warmup: bool, **arguments: Any) -> None:
        launches.append((kernel, arguments))

    def new(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    JITFunction.run = keep
    triton_plan.choose_merge = (lambda *a: triton_plan.Merge(pair=a[2], serial=a[2])) if pair else choose_merge
    inputs = ScanTensors(
        new(batch, L, K, E) if input_per_path else new(batch, L, E), new(batch, L, K, R or E), new(K, E, N, dtype=F32),
        new(batch, L, K, N), new(batch, L, K, N), new(K, E, dtype=F32), new(K, E, dtype=F32), new(K, E, R) if R else None,
        new(K, T or L, dtype=torch.int32), None,
    )  # fmt: skip
    options = {"softplus": True, "zoh": zoh, "merge": merge, "complete": complete}
    y, last, checkpoints = triton_launch.forward(
        inputs, **options, mirrored=mirrored and K % 2 == 0, out_dtype=dtype, save=backward or save
    )
    if backward:
        launches.clear()
        triton_launch.backward(y, last, inputs, checkpoints, **options)
    return launches


def source(kernel: Any, arguments: dict[str, Any]) -> ASTSource:
    """A kernel, specialised to its arguments as a launch would do it."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        known = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (known and type(value) is int and value == 1):
            signature[parameter.name], constants[i,] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name], attributes[i,] = POINTERS[value.dtype], [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32" if value < 2**31 else "i64"
            if known and value % 16 == 0:
                attributes[i,] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def compile_for(architecture: str, kernel: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    options = {"num_warps": arguments["num_warps"], "enable_fp_fusion": True}
    if architecture.startswith("sm_"):
        capability = int(architecture.removeprefix("sm_"))
        compiled = triton.compile(source(kernel, arguments), target=GPUTarget("cuda", capability, 32), options=options)
        return {"kernel": kernel.__name__, **inspect_cubin(compiled.asm["cubin"])}
    compiled = triton.compile(source(kernel, arguments), target=GPUTarget("hip", architecture, 64), options=options)
    assembly = compiled.asm["amdgcn"]
    vector, scratch = (int(re.search(rf"{key}:?\s+(\d+)", assembly)[1]) for key in ("vgpr_count", "ScratchSize"))
    crossing = len(re.findall(r"ds_bpermute|ds_swizzle|_dpp|v_permlane", assembly))
    return {"kernel": kernel.__name__, "registers": vector, "stack": scratch, "crossing": crossing}


def inspect_cubin(cubin: bytes) -> dict[str, Any]:
    """Registers, bytes of local memory, and the instructions inside each loop, innermost first."""
    if not CUOBJDUMP.exists():
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run([CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "--dump-sass")
        )
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    lines = [(int(m[1], 16), m[2].split(".")[0], m[3]) for m in map(INSTRUCTION.search, code.splitlines()) if m]
    branches = [(re.search(r"0x([0-9a-f]+)", rest), at) for at, name, rest in lines if name == "BRA"]
    jumps = [(int(target[1], 16), at) for target, at in branches if target]
    loops = []
    for start, end in sorted((jump for jump in jumps if jump[0] < jump[1]), key=lambda jump: jump[1] - jump[0]):
        counts = Counter(name for at, name, _ in lines if start <= at <= end and name != "NOP")
        loops.append({"ALL": counts.total(), **{name: counts[name] for name in ("SHFL", "MUFU", "LDL", "STL")}})
    return {"registers": registers, "stack": stack, "loops": loops}


def main() -> None:
    for name in sys.argv[1:]:
        case, architecture = name.split(":")
        call = case.removesuffix("_backward")
        gpu = (304, 64) if architecture.startswith("gfx") else (132, 32)
        triton_plan.processors_and_lanes = lambda device, gpu=gpu: gpu
        for kernel, arguments in record(**CALLS[call], backward=call != case):
            found = compile_for(architecture, kernel, arguments)
            print(json.dumps({"case": case, "architecture": architecture, **found}), flush=True)


if __name__ == "__main__":
    main()
