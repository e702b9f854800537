"""Writing models for Hugging Face: transformers load them and say the same."""

import json
import os
from functools import partial

import pytest
import torch

from llmtrain.checkpoint import disk
from llmtrain.checkpoint.hf.read import read_hf
from llmtrain.checkpoint.hf.write import Classes, write_hf
from llmtrain.data import wordpiece
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.model.heads.examples import SampleHead, SpanHead, TokenHead
from llmtrain.model.heads.vocabulary import MaskedHead, MaskedNextHead
from llmtrain.schema.model import Activation, Norm
from llmtrain.utils.errors import ConfigError, DiskFullError
from tests.helpers import bert
from tests.helpers.models import make_model

TOKENS = [*wordpiece.SPECIAL_TOKENS, "the", "mask", "##s", "stand", "here", "."]
TOKENS += [f"word{number}" for number in range(bert.VOCAB - len(TOKENS))]

HEADS = {
    "BertForPreTraining": MaskedNextHead,
    "BertForMaskedLM": MaskedHead,
    "BertForSequenceClassification": partial(SampleHead, num_outputs=3),
    "BertForTokenClassification": partial(TokenHead, num_labels=3),
    "BertForQuestionAnswering": SpanHead,
}


def tokenizer(lowercase: bool = True, end_token: str | None = None) -> Tokenizer:
    return Tokenizer.from_json(wordpiece.from_vocab(TOKENS, lowercase).to_str(), end_token=end_token)


def make(architecture: str, **changes):
    """A model with random numbers everywhere but in the padding of the vocabulary."""
    model = make_model(bert.config(**changes), build_head=HEADS[architecture]).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
            if name == "head.masked.projection.bias":
                parameter[bert.VOCAB :] = 0
    return model


def export(model, path, end_token=None, **more) -> str:
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return write_hf(path, model.backbone.config, tensors, tokenizer(end_token=end_token), **more)


def load(path, architecture):
    """What transformers make of a directory; nothing may be missing or left over."""
    import transformers

    model, report = getattr(transformers, architecture).from_pretrained(path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize("activation", [Activation.gelu, Activation.gelu_tanh])
@pytest.mark.parametrize("architecture", HEADS)
def test_transformers_say_the_same(tmp_path, architecture, activation):
    model = make(architecture, activation=activation)
    assert export(model, tmp_path / "out") == architecture
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [architecture]
    reference = load(tmp_path / "out", architecture)
    assert reference.config.vocab_size == bert.VOCAB
    batch = bert.padded()
    real = batch.documents == 0
    with torch.no_grad():
        theirs = reference(**bert.theirs(batch))
        ours = model.predict(batch)
        if architecture == "BertForPreTraining":
            torch.testing.assert_close(ours[real], theirs.prediction_logits[real], rtol=1e-5, atol=1e-5)
            ours = model.head.predict_next(model.backbone(batch), batch)[:, 0]
            torch.testing.assert_close(ours, theirs.seq_relationship_logits, rtol=1e-5, atol=1e-5)
        elif architecture == "BertForSequenceClassification":
            torch.testing.assert_close(ours[:, 0], theirs.logits, rtol=1e-5, atol=1e-5)
        elif architecture == "BertForQuestionAnswering":
            expected = torch.stack([theirs.start_logits, theirs.end_logits], dim=-1)
            torch.testing.assert_close(ours[real], expected[real], rtol=1e-5, atol=1e-5)
        else:
            torch.testing.assert_close(ours[real], theirs.logits[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", HEADS)
def test_what_is_written_comes_back(tmp_path, architecture):
    model = make(architecture)
    export(model, tmp_path / "out")
    found = read_hf(tmp_path / "out")
    assert found.unknown == []
    assert found.tensors.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(found.tensors[name], parameter), name
    assert found.tokenizer.to_json() == tokenizer().to_json()
    assert found.config == model.backbone.config


def test_files_have_the_rights_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        export(make("BertForMaskedLM"), tmp_path / "out")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {0o640}, modes


def test_an_end_token_that_is_not_the_usual_one_travels(tmp_path):
    model = make("BertForMaskedLM")
    export(model, tmp_path / "usual")
    assert read_hf(tmp_path / "usual").tokenizer.end_token == "[SEP]"
    export(model, tmp_path / "own", end_token="[MASK]")
    assert read_hf(tmp_path / "own").tokenizer.end_token == "[MASK]"


def test_a_backbone_alone_is_a_bert_model(tmp_path):
    model = make("BertForPreTraining")
    kept = ("backbone.", "head.pooler.")
    tensors = {name: value for name, value in model.named_parameters() if name.startswith(kept)}
    assert write_hf(tmp_path / "out", bert.config(), tensors, tokenizer()) == "BertModel"
    reference, batch = load(tmp_path / "out", "BertModel"), bert.padded()
    with torch.no_grad():
        states = model.backbone(batch)
        theirs = reference(**bert.theirs(batch))
        torch.testing.assert_close(
            model.head.pooler(states[:, 0]), theirs.pooler_output, rtol=1e-5, atol=1e-5
        )


def test_a_model_without_segments_gets_one_of_zeros(tmp_path):
    model = make("BertForMaskedLM", num_segments=0)
    export(model, tmp_path / "out")
    reference, batch = load(tmp_path / "out", "BertForMaskedLM"), bert.padded()
    arguments = bert.theirs(batch) | {"token_type_ids": torch.zeros_like(batch.ids)}
    real = batch.documents == 0
    with torch.no_grad():
        theirs = reference(**arguments).logits
    torch.testing.assert_close(model.predict(batch)[real], theirs[real], rtol=1e-5, atol=1e-5)


def test_labels_travel_in_order(tmp_path):
    model = make("BertForTokenClassification")
    export(model, tmp_path / "named", classes=Classes(["O", "B-PER", "I-PER"]))
    assert load(tmp_path / "named", "BertForTokenClassification").config.id2label == {
        0: "O",
        1: "B-PER",
        2: "I-PER",
    }
    model = make("BertForSequenceClassification")
    export(model, tmp_path / "numbered", classes=Classes(problem_type="multi_label_classification"))
    config = load(tmp_path / "numbered", "BertForSequenceClassification").config
    assert config.num_labels == 3
    assert config.problem_type == "multi_label_classification"


@pytest.mark.parametrize("lowercase", [True, False])
def test_the_tokenizer_gives_the_same_ids_there(tmp_path, lowercase):
    import transformers

    model = make("BertForMaskedLM")
    tensors = dict(model.named_parameters())
    write_hf(tmp_path / "out", bert.config(), tensors, tokenizer(lowercase))
    texts = ["The masks stand here.", "stand\u00e9 真 word7 masks"]
    ours = tokenizer(lowercase)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in texts:
        expected = [ours.cls_id, *ours.encode(text).tolist(), ours.sep_id]
        assert theirs(text)["input_ids"] == expected
    pair = theirs(texts[0], texts[1])
    assert pair["token_type_ids"][-1] == 1
    assert theirs.pad_token_id == ours.pad_id
    assert theirs.mask_token_id == ours.mask_id
    (tmp_path / "out" / "tokenizer.json").unlink()  # vocab.txt and the settings say the same
    again = read_hf(tmp_path / "out").tokenizer
    assert [again.encode(text).tolist() for text in texts] == [ours.encode(text).tolist() for text in texts]


@pytest.mark.parametrize(
    "changes", [{"norm_first": True}, {"norm": Norm.rmsnorm}, {"bias": False}, {"local_window": 8}]
)
def test_what_their_bert_cannot_express_is_refused(tmp_path, changes):
    model = make("BertForMaskedLM", **changes)
    with pytest.raises(ConfigError, match=f"has no {next(iter(changes))}="):
        export(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_other_heads_are_refused(tmp_path):
    model = make("BertForMaskedLM")
    with pytest.raises(ConfigError, match=r"bert has no head\.mine"):
        write_hf(
            tmp_path / "out",
            bert.config(),
            dict(model.named_parameters()) | {"head.mine": torch.ones(1)},
            tokenizer(),
        )


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="something already"):
        export(make("BertForMaskedLM"), tmp_path / "out")


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    model = make("BertForMaskedLM")

    def fail(*arguments, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "write_durably", fail)
    with pytest.raises(DiskFullError):
        export(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
