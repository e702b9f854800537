"""PyTorch's own files: only where they are allowed, and nothing but tensors."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest
import torch

from llmtrain.checkpoint.hf import files as weight_files
from llmtrain.checkpoint.hf.read import is_hf_directory, read_hf
from llmtrain.data import wordpiece
from llmtrain.data.batch import Batch
from llmtrain.model.heads.vocabulary import MaskedNextHead
from llmtrain.utils.errors import ConfigError, DataError
from tests.helpers import bert
from tests.helpers.models import make_model

TOKENS = [*wordpiece.SPECIAL_TOKENS, *(f"word{number}" for number in range(bert.VOCAB - 5))]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """BertForPreTraining with `pytorch_model.bin`."""
    model = bert.reference("BertForPreTraining")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in TOKENS))
    return tmp_path


def test_they_are_opened_only_where_it_is_allowed(saved):
    with pytest.raises(ConfigError, match="could execute code") as error:
        read_hf(saved)
    assert "allow_bin=true" in str(error.value)
    found = read_hf(saved, allow_bin=True)
    assert found.unknown == []
    assert (
        found.tensors.keys()
        == dict(make_model(found.config, build_head=MaskedNextHead).named_parameters()).keys()
    )


def test_an_old_form_and_shards_hold_the_same(saved):
    expected = {name: one.clone() for name, one in read_hf(saved, allow_bin=True).tensors.items()}
    held = torch.load(saved / "pytorch_model.bin", weights_only=True)
    torch.save(held, saved / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    found = read_hf(saved, allow_bin=True).tensors
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    (saved / "pytorch_model.bin").unlink()
    placed = {}
    for number, keys in enumerate((sorted(held)[::2], sorted(held)[1::2]), start=1):
        name = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({key: held[key] for key in keys}, saved / name)
        placed |= dict.fromkeys(keys, name)
    index = saved / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": placed}))
    found = read_hf(saved, allow_bin=True).tensors
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    index.write_text(json.dumps({"weight_map": {"a": "../pytorch_model.bin"}}))
    with pytest.raises(DataError, match="does not list bin files"):
        read_hf(saved, allow_bin=True)


class Touch:
    """Executes something when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_is_not_executed(saved, tmp_path):
    mark = tmp_path / "executed"
    torch.save({"a": torch.ones(1), "b": Touch(mark)}, saved / "pytorch_model.bin")
    with pytest.raises(DataError, match="weights cannot be read"):
        read_hf(saved, allow_bin=True)
    assert not mark.exists()


def test_broken_and_other_files_are_named(saved):
    path = saved / "pytorch_model.bin"
    for value in ({"a": 1}, [torch.ones(1)], {"model": {"a": torch.ones(1)}}):
        torch.save(value, path)
        with pytest.raises(DataError, match="other things than tensors"):
            read_hf(saved, allow_bin=True)
    torch.save(bert.reference("BertModel").state_dict(), path)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"PK"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="weights cannot be read"):
            read_hf(saved, allow_bin=True)


def test_an_old_pytorch_is_refused(saved, monkeypatch):
    monkeypatch.setattr(weight_files.torch, "__version__", torch.torch_version.TorchVersion("2.9.1"))
    with pytest.raises(ConfigError, match=r"PyTorch 2\.9\.1 cannot open such a file safely"):
        read_hf(saved, allow_bin=True)


@pytest.fixture(scope="module")
def rxnfp() -> Path:
    """A real model that lies in a package; the package's code is not run."""
    try:
        listed = files("rxnfp") or []
    except PackageNotFoundError:
        pytest.skip("the package rxnfp is not installed")
    (found,) = (
        Path(str(file.locate())) for file in listed if file.match("bert_pretrained/pytorch_model.bin")
    )
    return found.parent


@torch.no_grad()
def test_a_real_model_equals_transformers_with_both_heads(rxnfp):
    """rxnfp (Schwaller et al. 2021): BertForPreTraining on reactions; its config.json names no type."""
    import transformers

    assert is_hf_directory(rxnfp)
    found = read_hf(rxnfp, allow_bin=True)
    assert found.unknown == []
    model = make_model(found.config, build_head=MaskedNextHead).eval()
    assert found.tensors.keys() == dict(model.named_parameters()).keys()
    found.tensors.fill(dict(model.named_parameters()))
    settings = json.loads((rxnfp / "config.json").read_text())
    reference = transformers.BertForPreTraining(transformers.BertConfig(**settings)).eval()
    state = torch.load(rxnfp / "pytorch_model.bin", weights_only=True)
    state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"]
    assert not reference.load_state_dict(state, strict=False).missing_keys
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 591, (2, 60), generator=generator)
    segments = (torch.arange(60) > 30).long().expand(2, 60)
    theirs = reference(input_ids=ids, token_type_ids=segments)
    batch = Batch(ids, segments=segments, first=torch.zeros(2, 1, dtype=torch.int64))
    torch.testing.assert_close(model.predict(batch), theirs.prediction_logits, rtol=1e-5, atol=1e-5)
    following = model.head.predict_next(model.backbone(batch), batch)[:, 0]
    torch.testing.assert_close(following, theirs.seq_relationship_logits, rtol=1e-5, atol=1e-5)
