"""Which path an operator takes."""

import pytest
import torch

from titan_motif import kernels
from titan_motif.kernels.launch import IS_INTERPRETED, MAX_COLUMNS, Tiling, runs_triton

WEIGHT = torch.ones(8)


def test_another_implementation_is_refused():
    with pytest.raises(ValueError, match="'cuda'; one of 'auto', 'triton', 'torch' is needed"):
        kernels.rms_norm(torch.ones(2, 8), WEIGHT, implementation="cuda")


def test_triton_is_never_replaced_silently():
    with pytest.raises(ValueError, match=r"'triton'; torch\.float64 is not served, only float32"):
        kernels.rms_norm(torch.ones(2, 8).double(), WEIGHT, implementation="triton")
    if not IS_INTERPRETED:
        with pytest.raises(ValueError, match="'triton'; a tensor on cpu needs 'torch'"):
            kernels.rms_norm(torch.ones(2, 8), WEIGHT, implementation="triton")


def test_cpu_tensors_take_the_reference_unless_interpreted():
    assert runs_triton(torch.ones(2, 8), "auto") == IS_INTERPRETED
    assert not runs_triton(torch.ones(2, 8), "torch")
    assert not runs_triton(torch.ones(2, 8).double(), "auto")


def test_rows_beyond_a_tile_are_refused(device):
    x = torch.ones(1, MAX_COLUMNS + 1, device=device)
    with pytest.raises(ValueError, match=f"{MAX_COLUMNS + 1} columns; the Triton kernels take at"):
        kernels.rms_norm(x, x[0])
    assert kernels.rms_norm(x, x[0], implementation="torch").shape == x.shape


def test_tilings_fit_a_multiprocessor():
    for columns in (1, 7, 256, 1536, 4096, 5120, 16384, 32768, 65536):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.empty(100_000, columns, dtype=dtype, device="meta")
            for elements in (32, 64):
                tiling = Tiling.of(x, elements, programs_per_core=2, stages=3)
                options = tiling.options(x, num_inputs=3)
                tile = options["ROWS"] * options["COLUMNS"]
                assert options["COLUMNS"] >= columns
                assert 1 <= options["num_warps"] <= 32
                assert tile <= 1 << 20
                ahead = options["STAGES"] - 1
                assert 3 * ahead * tile * x.element_size() <= 227 * 1024
