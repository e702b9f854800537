"""Where a model is that the user names: a path, or a name on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from llmtrain.utils.errors import ConfigError, DataError
from llmtrain.utils.hub import hub_name

WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.jinja", "*.model")
"""Files of a model on the hub that are of use here."""

WANTED_BIN = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
"""Those that are fetched only where `allow_bin` is given."""

IGNORED = ("*/*", "consolidated*")
"""The same model in other forms."""


def locate(text: str, allow_bin: bool = False) -> Path:
    """The path of what the user names; from the hub it is fetched unless it lies in the cache.

    What is a name on the hub, `hub_name` says.

    Args:
        text: path or name.
        allow_bin: fetch PyTorch's own files too.

    Raises:
        ConfigError: a package is needed for it.
        DataError: the hub does not have the model, or cannot be reached.
    """
    named = hub_name(text)
    if named is None:
        return Path(text).expanduser()
    return fetch(f"{named['owner']}/{named['name']}", named["revision"], allow_bin)


def fetch(name: str, revision: str | None, allow_bin: bool) -> Path:
    """The folder in the cache that has the files of a model on the hub; see `locate`."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise ConfigError(
            f"there is no {name} here, and models of the hub need the package huggingface_hub",
            "init_from",
            "give a path that exists, or install it: pip install 'llmtrain[hub]'",
        ) from None
    patterns = [*WANTED, *(WANTED_BIN if allow_bin else ())]
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=patterns, ignore_patterns=list(IGNORED)
        )
    except GatedRepoError as error:
        raise DataError(
            f"the hub gives {name} only to those who have accepted its terms",
            "init_from",
            "accept them on its page and log in: hf auth login (or set HF_TOKEN)",
        ) from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"there is no {name} here, and none on the hub (or it is not public)",
            "init_from",
            "correct the path or the name, or log in: hf auth login",
        ) from error
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"there is no {name} here nor in the cache, and the hub cannot be reached: {why}",
            "init_from",
            f"correct the path; or fetch it where there is a network (hf download {name}) and give the "
            "folder, or set HF_HOME to a cache that has it",
        ) from error
    return Path(folder)
