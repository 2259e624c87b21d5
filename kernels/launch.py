"""Which path an operator takes, and the tiles and grid that its Triton kernels get."""

import functools
from typing import Any, Literal, NamedTuple, get_args

import torch
import triton
from torch import Tensor

Implementation = Literal["auto", "triton", "torch"]
"""'auto': Triton for float32, bfloat16 and float16 on a GPU (and on CPU under TRITON_INTERPRET=1),
plain PyTorch for other dtypes and devices. 'triton' and 'torch': that path, or a ValueError."""

TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_COLUMNS = 65536
"""Longest row: a tile holds whole rows, and registers and compile time end somewhere."""

IS_INTERPRETED: bool = triton.knobs.runtime.interpret
"""TRITON_INTERPRET=1, as it stood when the kernels were made: they run on CPU tensors then."""

_SHARED_BYTES = 200 * 1024
"""Of a Hopper multiprocessor's 227 KB of shared memory, what tiles under way may take."""


def runs_triton(x: Tensor, implementation: str) -> bool:
    """Return whether an operator on x (..., columns) runs its Triton kernel.

    Raises: ValueError for another name, for 'triton' on what it cannot serve, and for rows that
            are too long for a tile
    """
    if implementation not in get_args(Implementation):
        allowed = ", ".join(map(repr, get_args(Implementation)))
        raise ValueError(f"implementation is {implementation!r}; one of {allowed} is needed")
    if implementation == "torch":
        return False
    problem = _problem(x)
    if problem is not None and implementation == "triton":
        raise ValueError(f"implementation is 'triton'; {problem}")
    if problem is None and x.shape[-1] > MAX_COLUMNS:
        raise ValueError(
            f"rows have {x.shape[-1]} columns; the Triton kernels take at most {MAX_COLUMNS}: "
            "use implementation 'torch'"
        )
    return problem is None


def check_rows(x: Tensor, eps: float) -> None:
    """Raise ValueError, one line, where x (..., columns) has no rows to be normalised."""
    if x.ndim == 0:
        raise ValueError("x is a scalar; a tensor with a last dimension is needed")
    if not eps > 0:
        raise ValueError(f"eps is {eps}; more than 0 is needed, or rows of zeros have no norm")


def default_implementation() -> Implementation:
    """Return what 'auto' means for training on this machine."""
    return "triton" if torch.cuda.is_available() or IS_INTERPRETED else "torch"


def _problem(x: Tensor) -> str | None:
    if x.dtype not in TRITON_DTYPES:
        return f"{x.dtype} is not served, only float32, bfloat16 and float16"
    if not x.is_cuda and not (x.device.type == "cpu" and IS_INTERPRETED):
        return f"a tensor on {x.device} needs 'torch'"
    return None


class Tiling(NamedTuple):
    """How a row-wise kernel cuts its tensors. Which one is fast is measured, a kernel at a time."""

    rows: int
    """Rows of a tile."""
    num_warps: int
    max_registers: int | None = None
    """Of a thread: with fewer, more programs share a core. None leaves it to the compiler."""
    programs_per_core: int = 0
    """Programs on each multiprocessor, which walk over all tiles; 0: a program for each tile."""
    stages: int = 1
    """Of a walk: n loads n - 1 tiles ahead through shared memory, as far as that suffices."""

    @classmethod
    def of(
        cls, x: Tensor, elements_per_thread: int, min_warps: int = 4, **more: int | None
    ) -> "Tiling":
        """Return tiles of one row, or of the rows that occupy so many warps and threads."""
        columns = column_block(x)
        rows = max(1, 32 * min_warps * elements_per_thread // columns)
        num_warps = min(max(rows * columns // (32 * elements_per_thread), 1), 32)
        return cls(rows, num_warps, **more)

    def grid(self, x: Tensor) -> tuple[int]:
        """Return the number of programs for x (..., columns)."""
        num_tiles = triton.cdiv(num_rows(x), self.rows)
        if self.programs_per_core == 0:
            return (num_tiles,)
        return (min(num_tiles, self.programs_per_core * _num_cores(x.device)),)

    def options(self, x: Tensor, num_inputs: int = 1) -> dict[str, Any]:
        """Return the kernel's constants and launch options."""
        columns = column_block(x)
        options = {"ROWS": self.rows, "COLUMNS": columns, "num_warps": self.num_warps}
        if self.programs_per_core:
            stage_bytes = num_inputs * self.rows * columns * x.element_size()
            options["STAGES"] = min(self.stages, 1 + _SHARED_BYTES // stage_bytes)
        if self.max_registers and can_use_ptx(x) and self.num_warps * self.max_registers <= 2048:
            options["maxnreg"] = self.max_registers
        return options


@functools.cache
def _num_cores(device: torch.device) -> int:
    if device.type != "cuda":
        return 1  # the interpreter: few programs, so that each has several tiles even in tests
    return torch.cuda.get_device_properties(device).multi_processor_count


def column_block(x: Tensor) -> int:
    """Return the width of a tile that holds whole rows of x (..., columns)."""
    return max(triton.next_power_of_2(x.shape[-1]), 16)


def num_rows(x: Tensor) -> int:
    """Return the rows of x (..., columns), which must not be empty."""
    return x.numel() // x.shape[-1]


def contiguous_like(x: Tensor) -> Tensor:
    """Return an uninitialised contiguous tensor of x's shape and dtype."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def can_use_ptx(x: Tensor) -> bool:
    """Return whether a kernel on x may hold NVIDIA assembly: not interpreted, not on ROCm."""
    return x.is_cuda and torch.version.hip is None
