"""Where and with what a run was made: `environment.json`; and the choice of device, precision and determinism."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
import sys
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from nncompress.errors import ConfigError, without_user_info

PACKAGES = ("nncompress", "torch", "torchvision", "numpy", "hydra-core", "omegaconf", "pandas", "scikit-learn")


def choose_device(name: str) -> torch.device:
    """Choose the device of `auto`, `cpu`, `cuda` or `cuda:N`. Raises ConfigError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={name} needs that GPU, found {torch.cuda.device_count()} here; use device=auto or device=cpu"
        )
    return device


def choose_dtype(precision: str, default: str) -> torch.dtype:
    """Choose the floating-point type of `float32`, `float64`, `tf32` or `bf16`; `auto` is the solver's own choice.

    `tf32` is float32 with products that a GPU may round to ten bits of mantissa; else they stay exact. `bf16` is
    float32 with minibatches in bfloat16 where autocast allows it (`Computation.half`).
    """
    chosen = default if precision == "auto" else precision
    torch.set_float32_matmul_precision("high" if chosen == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = chosen == "tf32"
    return torch.float64 if chosen == "float64" else torch.float32


def make_deterministic(seed: int, deterministic: bool) -> None:
    """Seed torch's global generators and, if asked, allow deterministic algorithms only."""
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")  # read where a network is compiled
    torch.set_deterministic_debug_mode("error" if deterministic else "default")  # without importing the compiler
    torch.backends.cudnn.benchmark = not deterministic


def random_state(device: torch.device) -> list[torch.Tensor]:
    """Return the state of torch's global generators, on the CPU and on the run's GPU."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def restore_random_state(states: list[torch.Tensor], device: torch.device) -> None:
    """Set torch's global generators; a GPU's stays as it is when the states come from a CPU run."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def reset_peak_memory(device: torch.device) -> None:
    """Start counting `peak_memory` anew, where the system can (a GPU; Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Return the most bytes in use since `reset_peak_memory`: allocated on a GPU, resident of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe(device: torch.device, dtype: torch.dtype, seed: int) -> dict[str, Any]:
    """Describe versions, hardware, commit, command line, seed and the flags that decide if a run can be repeated."""
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": [without_user_info(word) for word in sys.orig_argv],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "precision": str(dtype).removeprefix("torch."),
        "seed": seed,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


@cache
def _commit() -> str | None:
    """Return the commit of the checkout the package runs from, `-dirty` behind it when files differ; None elsewhere."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=5)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")
