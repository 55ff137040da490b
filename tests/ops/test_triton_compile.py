"""What compilers for GPUs make of the Triton kernels, none of which need be there: it fits into registers, no steps are spread
over lanes, and the loops hold as many instructions as the blocks were chosen for.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

SCRIPT = Path(__file__).parent.parent / "compile_triton.py"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
EVERY_KERNEL = ("vmamba_detection", "vmamba_detection_backward", "vim", "vim_backward")
ALL_CALLS = (
    "vmamba", "vmamba_first_stage", "vmamba_third_stage", "vmamba_last_stage", "vmamba_float32", "vmamba_detection", "dense", "vim",
    "vim_detection", "mambavision", "groupmamba", "atrous", "many_states", "zoh",
)  # fmt: skip

REGISTERS = {"sm": 255, "gfx942": 256}


def compiled(calls):
    """Every launch of these calls on every architecture, from two processes that do not interpret Triton."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    names = [f"{call}:{architecture}" for call in calls for architecture in ARCHITECTURES]

    def run(part):
        command = [sys.executable, str(SCRIPT), *part]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-3000:]
        return [json.loads(line) for line in result.stdout.splitlines()]

    with ThreadPoolExecutor(2) as pool:
        return [launch for part in pool.map(run, (names[::2], names[1::2])) for launch in part]
