"""What compilers for GPUs make of the Triton kernels, with no GPU needed: registers suffice, no steps are spread over lanes, and
the loops hold as many instructions as the blocks were chosen for.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

SCRIPT = Path(__file__).parent.parent / "compile_triton.py"
NVIDIA = ("sm_80", "sm_90", "sm_100")
ARCHITECTURES = (*NVIDIA, "gfx942")
ALL_KERNELS = ("vmamba", "vmamba_detection", "vmamba_detection_backward", "vim")
QUICK = ("sm_90", "gfx942")
CALLS = (
    "vmamba", "vmamba_training", "vmamba_first_stage", "vmamba_third_stage", "vmamba_last_stage", "vmamba_float32",
    "vmamba_detection", "dense", "vim", "vim_detection", "mambavision", "groupmamba", "atrous", "many_states", "zoh",
)  # fmt: skip

# Registers of a lane on sm_90 and sm_100: with more, fewer warps would hide each other's latencies. 255 is all there are.
REGISTERS = {
    "tile_forward": 208, "pair_forward": 255, "walk_forward": 128, "chunk_scan": 40, "sum_paths": 40, "adjoint_states": 200,
    "tile_backward": 255,
}  # fmt: skip

# A dt rank of 48 takes more there; 8 warps share a processor instead of 9.
MORE_REGISTERS = {("vmamba_last_stage", "tile_forward", "sm_100"): 240}

# Bytes of local memory, where registers do not quite suffice. Nearly all is read between tiles, outside the innermost loops.
LOCAL_MEMORY = {
    "vim_backward": {"sm_80": 32, "sm_100": 8},
    "vim_detection_backward": {"sm_80": 32, "sm_100": 8},
    "mambavision_backward": {"sm_80": 32},
    "many_states_backward": {"sm_80": 32},
    "groupmamba_backward": {"sm_90": 8, "sm_100": 40},
    "vmamba_third_stage": {"sm_80": 24},
    "vmamba_training_backward": {"sm_90": 16},
    "vmamba_float32": {"sm_100": 16},
}


class Loop(NamedTuple):
    """Instructions that one lane may spend on one step of one channel (and one state, where the loop is over states)."""

    call: str
    kernel: str
    loop: int  # 0 is the shortest
    steps: int  # that one iteration computes
    instructions: float
    shuffles: float
    exponentials: float


LOOPS = (
    Loop("vmamba_detection", "tile_forward", 0, 32, 38, 0.5, 2),
    Loop("vmamba_detection_backward", "adjoint_states", 0, 32, 34, 1, 2),
    Loop("vmamba_detection_backward", "tile_backward", 0, 16, 70, 5, 2),
    Loop("vim", "walk_forward", 0, 1, 145, 0, 17),
    Loop("vim_backward", "tile_backward", 0, 32, 9, 0, 1),
    Loop("vim_backward", "tile_backward", 1, 16, 39, 5, 1),
    Loop("vmamba", "tile_forward", 0, 32, 32, 0.5, 2),  # states only
    Loop("vmamba", "pair_forward", 0, 32, 49, 2, 2),
    Loop("vmamba_training", "pair_forward", 0, 32, 51, 2, 2),
    Loop("vmamba_first_stage", "tile_forward", 0, 32, 38, 0.5, 2),
    Loop("vmamba_third_stage", "tile_forward", 0, 32, 48, 0, 2),
    Loop("dense", "tile_forward", 0, 32, 36, 0, 2),
    Loop("dense_backward", "tile_backward", 0, 16, 68, 5, 2),
    Loop("vim_detection", "walk_forward", 0, 1, 145, 0, 17),
    Loop("mambavision", "walk_forward", 0, 1, 100, 0, 9),
)


def compile_calls(calls, architectures):
    """Every launch of these calls for some architectures, compiled by two processes that do not interpret Triton."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    names = [f"{call}:{architecture}" for call in calls for architecture in architectures]

    def run(part):
        command = [sys.executable, str(SCRIPT), *part]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-3000:]
        return [json.loads(line) for line in result.stdout.splitlines()]

    with ThreadPoolExecutor(2) as pool:
        return [launch for part in pool.map(run, (names[::2], names[1::2])) for launch in part]


def check(launches):
    """Nothing above what is listed; without a disassembler, that it compiles is all there is to see."""
    over = {}
    for launch in launches:
        name = (launch["case"], launch["kernel"], launch["architecture"])
        allowed = LOCAL_MEMORY.get(launch["case"], {}).get(launch["architecture"], 0)
        if launch.get("stack", 0) > allowed:
            over[name] = f"{launch['stack']} bytes of local memory, {allowed} allowed"
        most_registers = MORE_REGISTERS.get(name, REGISTERS[launch["kernel"]])
        if launch.get("registers", 0) > most_registers and launch["architecture"] in ("sm_90", "sm_100"):
            over[name] = f"{launch['registers']} registers, at most {most_registers}"
        for limit in LOOPS:
            if "loops" in launch and limit[:2] == name[:2]:
                loop = launch["loops"][limit.loop]
                most = {"ALL": limit.instructions, "SHFL": limit.shuffles, "MUFU": limit.exponentials} | {
                    "LDL": 0,
                    "STL": 0,
                }
                per_step = {key: loop[key] / limit.steps for key in most}
                if any(per_step[key] > value for key, value in most.items()):
                    over[name] = f"{per_step} per step, at most {most}"
        # 64 states need four warps, whose sums meet.
        if name[1:] == ("walk_forward", "gfx942") and launch["crossing"] and launch["case"] != "many_states":
            over[name] = "steps or states are spread over lanes"
    assert over == {}


def test_every_kernel_compiles_and_fits_into_registers():
    launches = compile_calls(ALL_KERNELS, QUICK)
    kernels = {(launch["kernel"], launch["architecture"]) for launch in launches}
    on_both = ("tile_forward", "walk_forward", "chunk_scan", "sum_paths", "adjoint_states", "tile_backward")
    assert kernels == {(kernel, architecture) for kernel in on_both for architecture in QUICK} | {
        ("pair_forward", "sm_90")
    }
    check(launches)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_every_shape_fits_into_registers(call):
    check(compile_calls((call, f"{call}_backward"), ARCHITECTURES))
