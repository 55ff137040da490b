"""Calls that reach every branch of the Triton kernels, small for the interpreter's sake. `benchmarks/gpu.py` runs them too."""

import torch
from scan_cases import make_case

from visionssm.ops import paths

ATROUS = paths.atrous(3, 5)
PADDED = paths.pad(paths.forward_backward(2, 4), 11).roll(2, 1)

CASES = {
    "four_paths": lambda: make_case(batch=1, grid=(3, 5), N=1),
    "four_unlike_paths": lambda: make_case(batch=1, path=paths.raster_transposed(3, 5), grid=(3, 5), N=1),
    "one_path": lambda: make_case(path=paths.raster(3, 5), grid=(3, 5), N=1, initial_state=True),
    "unmerged": lambda: make_case(batch=1, grid=(3, 3), N=1, merge=False),
    "input_per_path": lambda: make_case(batch=1, path=PADDED, grid=(2, 4), N=1, input_per_path=True),
    "incomplete": lambda: make_case(batch=1, path=ATROUS, grid=(3, 5), N=1, initial_state=True),
    "padding": lambda: make_case(batch=1, path=PADDED, grid=(2, 4), N=3),
    "one_pixel": lambda: make_case(grid=(1, 1), N=2),
    "more_than_a_tile": lambda: make_case(batch=1, path=paths.transposed(5, 7), grid=(5, 7), N=1),
    "two_blocks": lambda: make_case(batch=1, path=paths.raster(2, 4), grid=(2, 4), E=70, N=1),
    "three_blocks": lambda: make_case(batch=1, path=paths.raster(2, 4), grid=(2, 4), E=96, N=2),
    "low_rank": lambda: make_case(batch=1, path=PADDED, grid=(2, 4), N=1, rank=20),
    "high_rank": lambda: make_case(batch=1, path=paths.raster(2, 4), grid=(2, 4), N=1, rank=40),
    "eight_states": lambda: make_case(batch=1, path=paths.forward_backward(1, 9), grid=(1, 9), N=8, rank=3),
    "nine_states": lambda: make_case(batch=1, path=PADDED, grid=(2, 4), N=9, initial_state=True),
    "no_skip_no_bias": lambda: make_case(batch=1, path=paths.raster(2, 4), grid=(2, 4), N=2, skip=False, bias=False),
    "zoh": lambda: make_case(batch=1, path=paths.raster(2, 5), grid=(2, 5), N=2, discretization="zoh"),
    "zoh_eight_states": lambda: make_case(batch=1, path=paths.raster(1, 6), grid=(1, 6), N=8, discretization="zoh"),
}

# A path and its reversal on one tile, where that is asked for.
PAIRS = {
    "one_pixel": lambda: make_case(batch=1, grid=(1, 1), N=1, initial_state=True),
    "one_pair": lambda: make_case(batch=1, path=paths.forward_backward(1, 16), grid=(1, 16), N=1),
    "short_tile_first": lambda: make_case(batch=1, grid=(3, 7), N=1, rank=3, initial_state=True),
    "whole_tiles": lambda: make_case(
        batch=1, path=paths.rotations(4, 8), grid=(4, 8), E=33, N=1, skip=False, bias=False
    ),
    "two_blocks": lambda: make_case(batch=1, path=paths.bidirectional(3, 6), grid=(3, 6), E=40, N=1),
    "zoh": lambda: make_case(batch=1, grid=(2, 5), N=1, discretization="zoh"),
}

LARGER = {
    "vmamba": lambda: make_case(grid=(5, 7), E=33, N=1, rank=6, initial_state=True),
    "vanilla_vmamba": lambda: make_case(grid=(3, 5), N=16, rank=2),
    "vim": lambda: make_case(
        path=paths.forward_backward(1, 33), grid=(1, 33), N=16, E=40, input_per_path=True, merge=False
    ),
    "eight_paths": lambda: make_case(path=torch.cat([paths.cross(5, 7), paths.rotations(5, 7)]), N=1),
    "localmamba": lambda: make_case(path=paths.windows(5, 7, 2), N=4, merge=False),
    "efficient_vmamba": lambda: make_case(path=paths.atrous(5, 7), N=4, rank=2),
    "many_states": lambda: make_case(batch=1, path=paths.raster(1, 5), grid=(1, 5), N=64, E=3),
    "long": lambda: make_case(batch=1, path=paths.raster(13, 25), grid=(13, 25), N=8, E=5, rank=3, initial_state=True),
}
