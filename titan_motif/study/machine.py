"""The machine that is measured: its device, the network that fits it, and a CPU's one caveat."""

from collections.abc import Iterable

import torch

CPU_NOTE = "note: on a CPU these times mean nothing; they show that everything runs"


def choose_device() -> str:
    """Return cuda where there is a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(device: str) -> str:
    """Return what figures name a device by."""
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def told_machine(device: str) -> str:
    """Return device and torch, as tables begin with them."""
    return f"{device_name(device)}, torch {torch.__version__}"


def choose_flavor(name: str, device: str, allowed: Iterable[str]) -> str:
    """Return the flavor that was asked for; if none was, the one that fits the device.

    Raises: ValueError, one line, for one that is not allowed
    """
    flavor = name or ("12_7b" if device == "cuda" else "debug")
    if flavor not in (flavors := list(allowed)):
        raise ValueError(f"--flavor is {flavor!r}; one of {', '.join(flavors)} is needed")
    return flavor
