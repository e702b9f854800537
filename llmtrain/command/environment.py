"""What a run ran on: written beside its config, so that numbers can be compared later."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from typing import Any

from llmtrain import __version__
from llmtrain.compose.resolve import is_secret
from llmtrain.utils.machine import processor_name

PACKAGES = ("torch", "numpy", "datasets", "tokenizers", "safetensors", "hydra-core", "omegaconf")
VARIABLES = (
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "LD_PRELOAD",
    "GLIBC_TUNABLES",
    "MALLOC_CONF",
)
PREFIXES = ("SLURM_", "LLMTRAIN_", "MASTER_", "NCCL_", "TORCH_")


def describe_environment() -> dict[str, Any]:
    """Versions, machine and the environment variables that matter, without secrets."""
    return {
        "llmtrain": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": {"model": processor_name(), "count": os.cpu_count()},
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "git_commit": _git_commit(),
        "variables": {
            name: "<redacted>" if is_secret(name) else value
            for name, value in sorted(os.environ.items())
            if name in VARIABLES or name.startswith(PREFIXES)
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of the current directory, with `+` where files differ from it."""
    try:
        command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
