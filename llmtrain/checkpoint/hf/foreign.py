"""Models that were not made here: a directory in Hugging Face's layout, or a GGUF file."""

from __future__ import annotations

from pathlib import Path

from llmtrain.checkpoint.hf.gguf import SUFFIX, read_gguf
from llmtrain.checkpoint.hf.read import HFModel, is_hf_directory, read_hf


def is_foreign(path: Path) -> bool:
    """Whether a path is a model that was not made here."""
    return (path.suffix == SUFFIX and path.is_file()) or is_hf_directory(path)


def read_foreign(path: Path, allow_bin: bool = False) -> HFModel:
    """Read such a model; see `read_hf` and `read_gguf`.

    Args:
        path: for which `is_foreign` holds.
        allow_bin: open PyTorch's own files where there are no safetensors.
    """
    return read_gguf(path) if path.suffix == SUFFIX else read_hf(path, allow_bin=allow_bin)
