"""What the user names: paths, and names on the hub."""

from __future__ import annotations

import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from llmtrain.checkpoint.hf.locate import locate
from llmtrain.utils.errors import ConfigError, DataError


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Calls that would have gone to the hub."""
    calls = []

    def fetch(name, **settings):
        calls.append((name, settings))
        return str(tmp_path / "cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    return calls


def test_paths_are_paths(asked, tmp_path):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    assert locate("runs/one") == Path("runs/one")
    assert locate(str(tmp_path / "runs")) == tmp_path / "runs"
    for missing in ("runs/two", "one", "a/b/c", "./a/b", "/a/b", "../a", "model.gguf"):
        assert locate(missing) == Path(missing)
    assert asked == []


def test_names_are_fetched(asked, tmp_path):
    assert locate("owner/model-1.5B") == tmp_path / "cached"
    locate("owner/model@v1", allow_bin=True)
    (first, usual), (second, allowed) = asked
    assert (first, usual["revision"]) == ("owner/model-1.5B", None)
    assert (second, allowed["revision"]) == ("owner/model", "v1")
    assert "*.safetensors" in usual["allow_patterns"]
    assert not any(pattern.endswith(".bin") for pattern in usual["allow_patterns"])
    assert "pytorch_model*.bin" in allowed["allow_patterns"]


def test_without_a_network_it_is_said_what_to_do(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def fail(name, **settings):
        raise LocalEntryNotFoundError("nothing in the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(DataError, match="nor in the cache") as error:
        locate("owner/model")
    assert "hf download owner/model" in str(error.value)


def test_without_the_package_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match="need the package huggingface_hub") as error:
        locate("owner/model")
    assert "llmtrain[hub]" in str(error.value)
