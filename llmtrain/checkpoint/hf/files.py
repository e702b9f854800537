"""The files that hold the tensors of a foreign model: safetensors, or PyTorch's own where that is allowed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmtrain.checkpoint.weights import Stored
from llmtrain.utils.errors import ConfigError, DataError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
BIN = "pytorch_model.bin"
BIN_INDEX = "pytorch_model.bin.index.json"

SAFE_TORCH = (2, 10)
"""From this version on `weights_only=True` keeps what it promises."""


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        DataError: it does not, or cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"it cannot be read as JSON: {error}", str(path), "repair the file") from error
    if not isinstance(value, dict):
        raise DataError("it holds no JSON object", str(path), "repair the file")
    return value


def read_weights(path: Path, allow_bin: bool = False) -> dict[str, Stored]:
    """The tensors of a model directory, which may be spread over several files.

    Args:
        path: the directory.
        allow_bin: open PyTorch's own files where there are no safetensors.

    Raises:
        ConfigError: there are none that may be opened.
        DataError: a file is missing or broken.
    """
    for whole, index, read in ((WEIGHTS, INDEX, read_safetensors), (BIN, BIN_INDEX, read_bin)):
        if (path / whole).is_file():
            names = [whole]
        elif (path / index).is_file():
            names = shard_names(path / index, Path(whole).suffix)
        else:
            continue
        if read is read_bin and not allow_bin:
            raise ConfigError(
                f"there is no {WEIGHTS}, only {names[0]}, a kind of file that could execute code",
                str(path),
                "save the model as safetensors; or give allow_bin=true: nothing but tensors is read of it",
            )
        stored: dict[str, Stored] = {}
        for name in names:
            stored |= read(path / name)
        return stored
    raise ConfigError(f"there is no {WEIGHTS}", str(path), "save the model as safetensors")


def read_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of a file; each is read when it is asked for."""
    stored = {}
    with opened(path) as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            shape = torch.Size(file.get_slice(key).get_shape())
            stored[key] = Stored(shape, partial(read_tensor, path, key))
    return stored


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file.

    Raises:
        DataError: it is missing or broken.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise DataError(f"weights cannot be read: {error}", str(path), "get the file again") from error


def read_tensor(path: Path, key: str) -> Tensor:
    """One tensor of a safetensors file."""
    with opened(path) as file:
        tensor: Tensor = file.get_tensor(key)
        return tensor


def read_bin(path: Path) -> dict[str, Stored]:
    """The tensors of a file of `torch.save`, of which nothing but tensors is read.

    Raises:
        ConfigError: this PyTorch cannot do so safely.
        DataError: the file is missing or broken, or holds something else.
    """
    if torch.__version__ < SAFE_TORCH:  # type: ignore[operator]
        raise ConfigError(
            f"PyTorch {torch.__version__} cannot open such a file safely", str(path), "install torch >= 2.10"
        )
    try:
        mapped = zipfile.is_zipfile(path)  # files of early versions are no archives, and are read whole
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"weights cannot be read: {first}", str(path), "get the file again") from error
    if not isinstance(held, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in held.items()
    ):
        raise DataError("it holds other things than tensors by name", str(path), "save the weights alone")
    return {key: Stored(tensor.shape, partial(_itself, tensor)) for key, tensor in held.items()}


def _itself(tensor: Tensor) -> Tensor:
    return tensor.detach()


def shard_names(index: Path, suffix: str) -> list[str]:
    """Names of the files that an index lists; they lie beside it.

    Raises:
        DataError: the index names something else.
    """
    listed = read_object(index).get("weight_map")
    names = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
    if not names or any(Path(name).name != name or not name.endswith(suffix) for name in names):
        raise DataError(
            f"weight_map does not list {suffix[1:]} files beside it", str(index), "get the file again"
        )
    return names
