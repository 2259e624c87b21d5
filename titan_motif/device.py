"""torchtitan on a machine without an accelerator.

torchtitan 0.2.2 decides its device while it is imported, falls back to "cuda" where there is none,
and copies the answer into several of its modules. Import this module before anything of torchtitan:
it answers "cpu" for the length of that first import, and hands torchtitan a small object with what
its trainer asks a device module for. With an accelerator it does nothing.
"""

import os
import platform
import resource
import sys
from types import SimpleNamespace

import torch


class CpuDeviceModule:
    """What torchtitan's trainer calls of `torch.cuda`, answered for the CPU."""

    @staticmethod
    def set_device(device: torch.device) -> None:
        """Do nothing: there is one CPU device."""

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def synchronize(device: torch.device | None = None) -> None:
        """Do nothing: work on the CPU has ended when the call returns."""

    @staticmethod
    def empty_cache() -> None:
        """Do nothing: there is no caching allocator."""

    @staticmethod
    def reset_peak_memory_stats(device: torch.device | None = None) -> None:
        """Do nothing: the kernel keeps the peak of the process's whole life."""

    @staticmethod
    def get_device_name(device: torch.device | None = None) -> str:
        return f"{platform.machine()} CPU, {os.cpu_count()} cores"

    @staticmethod
    def get_device_properties(device: torch.device | None = None) -> SimpleNamespace:
        pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return SimpleNamespace(total_memory=pages * page_bytes)

    @staticmethod
    def memory_stats(device: torch.device | None = None) -> dict[str, int]:
        """Return the peak resident memory of this process, under the allocator's names."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak_bytes = peak if sys.platform == "darwin" else peak * 1024
        return {
            "active_bytes.all.peak": peak_bytes,
            "reserved_bytes.all.peak": peak_bytes,
            "num_alloc_retries": 0,
            "num_ooms": 0,
        }


def _import_torchtitan_for_cpu() -> None:
    if "torchtitan.tools.utils" in sys.modules:
        if sys.modules["torchtitan.tools.utils"].device_type == "cpu":
            return
        raise ImportError(
            "torchtitan was imported before titan_motif.device, and there is no accelerator: "
            "import titan_motif.device first"
        )
    names = ("_get_available_device_type", "_get_device_module")
    original = {name: getattr(torch._utils, name) for name in names}
    torch._utils._get_available_device_type = lambda: "cpu"
    torch._utils._get_device_module = lambda device_type: CpuDeviceModule
    try:
        import torchtitan.tools.utils
    finally:
        for name, function in original.items():
            setattr(torch._utils, name, function)
    # A peak for a CPU would make torchtitan report an MFU that means nothing.
    torchtitan.tools.utils.get_peak_flops = lambda device_name: float("nan")


# Without the check, a build of torch for CUDA answers "cuda" on a machine that has no GPU.
if torch.accelerator.current_accelerator(check_available=True) is None:
    _import_torchtitan_for_cpu()

from torchtitan.tools.utils import device_module, device_type  # noqa: E402

__all__ = ["CpuDeviceModule", "device_module", "device_type"]
