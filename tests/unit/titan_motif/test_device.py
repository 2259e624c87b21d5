"""Which device is chosen, whatever torch was built for."""

import subprocess
import sys


def test_a_cuda_build_without_a_gpu_is_a_cpu():
    """Such a torch names CUDA as its accelerator, unless it is asked for one that is there."""
    script = (
        "import torch\n"
        "cuda = torch.device('cuda')\n"
        "def named(check_available=False): return None if check_available else cuda\n"
        "torch.accelerator.current_accelerator = named\n"
        "from titan_motif.device import device_module, device_type\n"
        "print(device_type, device_module.device_count())\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert process.stdout == "cpu 1\n"


def test_a_configuration_is_read_without_a_word_on_devices():
    """Whoever imports the loading of jobs need not know what has to come before torchtitan."""
    script = "from titan_motif.config_loading import load_config; print(load_config([]).model.name)"
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert process.stdout == "motif2\n"
