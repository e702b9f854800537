"""Every family both ways: transformers' logits are ours, and ours are theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import models
from torch import Tensor

from llmtrain.checkpoint.hf.families import FAMILIES, family_for
from llmtrain.checkpoint.hf.read import HFModel, read_hf
from llmtrain.checkpoint.hf.write import Form, write_hf
from llmtrain.data.batch import Batch
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.data.tokenizer_build import bytes_tokenizer
from llmtrain.model.assembled import Assembled
from llmtrain.model.heads.examples import SampleHead, TokenHead
from llmtrain.model.heads.vocabulary import LanguageModelHead, MaskedHead
from llmtrain.schema.model import Activation, BERTConfig, GPTConfig, Norm, Position, RotaryScaling, Scaling
from llmtrain.schema.tokenizer import BytesTokenizer
from llmtrain.utils.errors import ConfigError, DataError
from tests.helpers.models import make_model

VOCAB, LENGTH = 261, 40
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "rope_theta": 10000.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}

THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"vocab_size": VOCAB, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt2_wide_untied": (
        "GPT2",
        {
            "vocab_size": VOCAB,
            "n_embd": 48,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "n_inner": 80,
            "activation_function": "gelu",
            "tie_word_embeddings": False,
        },
    ),
    "llama": ("Llama", GROUPED),
    "llama_tied_theta_eps": (
        "Llama",
        {
            **SMALL,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 777.0},
        },
    ),
    "llama_attention_bias": ("Llama", {**GROUPED, "attention_bias": True}),
    "llama_mlp_bias_head_dim": ("Llama", {**GROUPED, "mlp_bias": True, "head_dim": 20}),
    "llama_all_biases": ("Llama", {**GROUPED, "mlp_bias": True, "attention_bias": True}),
    "llama_linear": ("Llama", {**GROUPED, "rope_parameters": LINEAR}),
    "llama_llama3": ("Llama", {**GROUPED, "rope_parameters": LLAMA3}),
    "llama_yarn": ("Llama", {**GROUPED, "rope_parameters": YARN}),
    "mistral": ("Mistral", {**GROUPED, "sliding_window": None, "head_dim": 16}),
    "mistral_window": ("Mistral", {**GROUPED, "sliding_window": 5}),
    "qwen2": ("Qwen2", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 20}),
    "qwen3_bias": ("Qwen3", {**GROUPED, "head_dim": 20, "attention_bias": True}),
}
"""Model classes of transformers without ForCausalLM, and their settings."""


def reference(name: str, seed: int = 0) -> Any:
    """A model of transformers with random weights, biases and norms among them."""
    family, settings = THEIRS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**settings)
    head = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    model = getattr(transformers, f"{family}{head}")(config).eval()
    return scatter(model)


def scatter(model: Any) -> Any:
    """Move what starts at 0 or 1, and let all weights matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
            else:
                parameter.mul_(4)
    return model


def tokenizer() -> Tokenizer:
    return bytes_tokenizer(BytesTokenizer())


def save(model: Any, path: Path, **more: Any) -> Path:
    """A directory of transformers, with a tokenizer."""
    model.save_pretrained(path, **more)
    for name, text in tokenizer().files().items():
        (path / name).write_text(text)
    return path


def tokens() -> Tensor:
    return torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def filled(found: HFModel, build_head: Any = LanguageModelHead) -> Assembled:
    """Our model with what was read."""
    model = make_model(found.config, seed=1, build_head=build_head).eval()
    assert found.tensors.keys() == dict(model.named_parameters()).keys()
    found.tensors.fill(dict(model.named_parameters()))
    return model


def deviation(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference of logits, as a share of the largest of them."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
def compare(ours: Assembled, theirs: Any) -> float:
    ids = tokens()
    return deviation(ours.predict(Batch(ids)), theirs(input_ids=ids).logits)


@pytest.mark.parametrize("name", THEIRS)
def test_their_models_say_the_same_here(name, tmp_path):
    theirs = reference(name)
    found = read_hf(save(theirs, tmp_path))
    assert found.unknown == []
    assert compare(filled(found), theirs) < 2e-6


ROTARY = {"position": Position.rotary, "norm": Norm.rmsnorm, "activation": Activation.swiglu, "bias": False}
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2_relu_squared": ("gpt2", {"activation": Activation.relu_squared}),
    "gpt2_untied": ("gpt2", {"tie_embeddings": False, "activation": Activation.gelu, "hidden_dim": 80}),
    "llama": ("llama", {**ROTARY, "num_kv_heads": 2, "rotary_theta": 500.0}),
    "llama_untied_biases": ("llama", {**ROTARY, "tie_embeddings": False, "bias": True}),
    "llama_attention_bias": ("llama", {**ROTARY, "qkv_bias": True, "out_bias": True, "head_dim": 16}),
    "llama_geglu": ("llama", {**ROTARY, "activation": Activation.geglu, "norm_eps": 1e-3}),
    "llama_linear": ("llama", {**ROTARY, "rotary_scaling": RotaryScaling(Scaling.linear, 2.0)}),
    "llama_llama3": ("llama", {**ROTARY, "rotary_scaling": RotaryScaling(Scaling.llama3, 4.0, 16)}),
    "llama_yarn": (
        "llama",
        {**ROTARY, "rotary_scaling": RotaryScaling(Scaling.yarn, 4.0, 16, attention_factor=1.5)},
    ),
    "mistral": ("mistral", {**ROTARY, "window": 5, "num_kv_heads": 2}),
    "qwen2": ("qwen2", {**ROTARY, "qkv_bias": True, "num_kv_heads": 2}),
    "qwen3": ("qwen3", {**ROTARY, "query_key_norm": True, "num_kv_heads": 2, "head_dim": 20}),
    "qwen3_bias": ("qwen3", {**ROTARY, "query_key_norm": True, "qkv_bias": True, "out_bias": True}),
}
"""The family that a model of ours becomes, and its settings."""


def own(name: str) -> Assembled:
    """A model of ours with random weights."""
    settings = {"num_layers": 2, "num_heads": 4, "dim": 48, "max_positions": 64, "vocab_size": VOCAB}
    model = make_model(GPTConfig(**(settings | OURS[name][1]))).eval()
    torch.manual_seed(2)
    scatter(model)
    with torch.no_grad():
        model.backbone.embedding.weight[VOCAB:] = 0
        if not model.backbone.tie_embeddings:
            model.head.projection.weight[VOCAB:] = 0
    return model


def write(model: Assembled, path: Path, **more: Any) -> str:
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return write_hf(path, model.backbone.config, tensors, tokenizer(), **more)


@pytest.mark.parametrize("name", OURS)
def test_our_models_say_the_same_there_and_come_back(name, tmp_path):
    model = own(name)
    architecture = write(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == OURS[name][0]
    theirs, told = getattr(transformers, architecture).from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert compare(model, theirs.eval()) < 2e-6
    found = read_hf(tmp_path / "out")
    assert found.unknown == []
    for key, parameter in model.named_parameters():
        assert torch.equal(found.tensors[key], parameter), key


ENCODERS = ["RobertaForMaskedLM", "RobertaForSequenceClassification", "RobertaForTokenClassification"]


def roberta(name: str) -> Any:
    """Theirs, with random weights; ids 0 to 3 are special, 1 is padding."""
    torch.manual_seed(0)
    settings = {**SMALL, "max_position_embeddings": 66, "type_vocab_size": 1, "num_labels": 3}
    config = transformers.RobertaConfig(**settings, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    return scatter(getattr(transformers, name)(config).eval())


def roberta_tokenizer() -> Tokenizer:
    inner = tokenizers.Tokenizer(models.WordLevel({f"word{n}": n for n in range(4, VOCAB)}, "word9"))
    inner.add_special_tokens(["<s>", "<pad>", "</s>", "<mask>"])
    text = inner.to_str()  # special tokens got the last ids: they are the first ones in RoBERTa
    for number, token in enumerate(["<s>", "<pad>", "</s>", "<mask>"]):
        old = inner.token_to_id(token)
        text = text.replace(f'"id":{old},', f'"id":{number},')
    return Tokenizer.from_json(text)


def encoder_heads() -> dict[str, Any]:
    return {
        "RobertaForMaskedLM": MaskedHead,
        "RobertaForSequenceClassification": lambda backbone: SampleHead(backbone, 3),
        "RobertaForTokenClassification": lambda backbone: TokenHead(backbone, 3),
    }


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_roberta_goes_both_ways(name, tmp_path):
    theirs = roberta(name)
    theirs.save_pretrained(tmp_path / "theirs")
    for file, text in roberta_tokenizer().files().items():
        (tmp_path / "theirs" / file).write_text(text)
    found = read_hf(tmp_path / "theirs")
    assert found.unknown == []
    assert found.config.max_positions == 64
    model = filled(found, encoder_heads()[name])
    ids = tokens() % (VOCAB - 4) + 4
    expected = theirs(input_ids=ids).logits
    ours = model.predict(Batch(ids, first=torch.zeros(2, 1, dtype=torch.int64)))
    assert deviation(ours.reshape(expected.shape), expected) < 2e-6

    written = write_hf(tmp_path / "ours", found.config, found.tensors, roberta_tokenizer())
    assert written == name
    again = getattr(transformers, name).from_pretrained(tmp_path / "ours").eval()
    assert deviation(again(input_ids=ids).logits, expected) < 2e-6
    padded = torch.cat([ids, torch.ones_like(ids[:, :5])], dim=1)  # positions do not count padding
    answer = again(input_ids=padded, attention_mask=padded != 1).logits
    assert deviation(answer[:, :LENGTH] if answer.ndim == 3 else answer, expected) < 2e-6


def test_a_bert_with_next_sentences_stays_one(tmp_path):
    config = BERTConfig(num_segments=1, vocab_size=VOCAB)
    told = {"pad_token_id": 1}
    assert family_for(config, {"head.masked.dense.weight"}, told).model_type == "roberta"
    assert family_for(config, {"head.next.weight"}, told).model_type == "bert"
    assert family_for(config, set(), {"pad_token_id": None}).model_type == "bert"
    assert family_for(BERTConfig(vocab_size=VOCAB), set(), told).model_type == "bert"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"norm": Norm.rmsnorm}, "gpt2 has no norm=rmsnorm"),
        ({"bias": False}, "gpt2 has no bias=False"),
        ({**ROTARY, "qkv_bias": True, "head_dim": 20}, "qwen2 has no head_dim=20"),
        ({**ROTARY, "query_key_norm": True, "qkv_bias": True}, "qwen2 has no query_key_norm=True"),
        ({**ROTARY, "activation": Activation.gelu}, "llama has no activation=gelu"),
    ],
)
def test_what_no_family_can_express_is_said(changes, told):
    settings = {"num_layers": 2, "num_heads": 4, "dim": 48, "vocab_size": VOCAB}
    with pytest.raises(ConfigError, match="no model type of Hugging Face can express") as error:
        family_for(GPTConfig(**(settings | changes)), set(), {})
    assert told in str(error.value)


@pytest.mark.parametrize("name", ["qwen3", "gpt2_untied"])
def test_shards_and_half_precision(name, tmp_path):
    model = own(name)
    write(model, tmp_path / "out", form=Form(torch.bfloat16, shard_bytes=30_000))
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")]
    assert index["metadata"]["total_size"] <= sum(sizes)
    found = read_hf(tmp_path / "out")
    for key, parameter in model.named_parameters():
        assert torch.equal(found.tensors[key], parameter.bfloat16().float()), key
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype is torch.bfloat16
    assert compare(filled(found), theirs.float().eval()) < 2e-6


def test_a_failed_check_leaves_nothing(tmp_path):
    def check(path: Path) -> None:
        assert (path / "model.safetensors").exists()
        raise DataError("not the same")

    with pytest.raises(DataError, match="not the same"):
        write(own("gpt2"), tmp_path / "out", form=Form(check=check))
    assert list(tmp_path.iterdir()) == []


def test_what_files_do_not_say_is_what_transformers_take(tmp_path):
    """A config.json with its model type only."""
    for model_type, family in FAMILIES.items():
        if model_type in ("bert", "roberta"):
            continue
        full = transformers.AutoConfig.for_model(model_type).to_dict()
        assert family.read_config({}, "here") == family.read_config(full, "here"), model_type


def test_a_sliding_window_is_that_of_all_layers_or_limits_the_rows(tmp_path, caplog):
    settings = {**GROUPED, "sliding_window": 48}
    for window, ours in ((48, 48), (64, None), (None, None)):
        found = FAMILIES["mistral"].read_config(settings | {"sliding_window": window}, "here")
        assert (found.window, found.max_positions) == (ours, 64)
    assert FAMILIES["qwen2"].read_config(settings, "here").max_positions == 64
    assert FAMILIES["qwen2"].read_config(settings | {"use_sliding_window": True}, "x").max_positions == 48
    assert "sliding window" in caplog.text


@pytest.mark.parametrize(
    ("family", "changes", "told"),
    [
        ("llama", {"hidden_act": "relu"}, "known are silu"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type=dynamic"),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type=longrope"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ("qwen2", {"rope_scaling": {**YARN, "mscale": 1.0}}, "mscale=1.0"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"activation_function": "relu"}, "known are gelu_new"),
        ("roberta", {"hidden_act": "gelu_new"}, "only hidden_act=gelu"),
        ("qwen3", {"num_attention_heads": "many"}, "num_heads"),
    ],
)
def test_settings_without_a_counterpart_are_said(family, changes, told):
    with pytest.raises(ConfigError) as error:
        FAMILIES[family].read_config({**GROUPED, **changes}, "config.json")
    assert told in str(error.value)
    assert "config.json" in str(error.value)


def test_broken_joined_weights_are_named(tmp_path):
    theirs = reference("gpt2")
    save(theirs, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for shape in ((48, 143), (48,), (1, 48, 144)):
        bad = {**weights, "transformer.h.1.attn.c_attn.weight": torch.zeros(shape)}
        save_file(bad, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(DataError, match=r"attention\.query\.weight"):
            read_hf(tmp_path)


def test_keys_of_early_files(tmp_path):
    """OpenAI's own GPT-2 has no prefix, and masks among the tensors."""
    expected = dict(read_hf(save(reference("gpt2"), tmp_path)).tensors)
    weights = load_file(tmp_path / "model.safetensors")
    old = {key.removeprefix("transformer."): value for key, value in weights.items()}
    old |= {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.0.attn.masked_bias": torch.ones(1)}
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    found = read_hf(tmp_path)
    assert found.unknown == []
    assert all(torch.equal(found.tensors[name], expected[name]) for name in expected)


def test_quantised_weights_are_refused(tmp_path):
    save(reference("llama"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    with pytest.raises(ConfigError, match="the weights are quantised"):
        read_hf(tmp_path)


def test_the_licence_of_a_card_is_read(tmp_path):
    save(reference("llama"), tmp_path)
    assert read_hf(tmp_path).licence is None
    for front, licence in (
        ("license: apache-2.0\ntags: []", "apache-2.0"),
        ("license: unknown", None),
        ("tags: []", None),
    ):
        (tmp_path / "README.md").write_text(f"---\n{front}\n---\n\nlicense: mit\n")
        assert read_hf(tmp_path).licence == licence


def test_what_a_tokenizer_came_with_travels(tmp_path):
    """Special tokens with their properties, the chat template, the settings of generation; no places."""
    inner = tokenizers.Tokenizer.from_str(tokenizer().to_json())
    inner.add_special_tokens(["<pad>", "<begin>", "<turn>"])
    pad = {"__type": "AddedToken", "content": "<pad>", "lstrip": False, "special": True}
    settings = {
        "pad_token": pad,
        "bos_token": "<begin>",
        "chat_template": "{{ x }}",
        "name_or_path": "/home/me",
    }
    generation = {"eos_token_id": [256, 259], "temperature": 0.7}
    foreign = Tokenizer.from_json(inner.to_str(), settings=settings, generation=generation)
    model = own("gpt2")
    write_hf(tmp_path / "out", model.backbone.config, dict(model.named_parameters()), foreign)
    told = json.loads((tmp_path / "out/config.json").read_text())
    assert [told[f"{name}_token_id"] for name in ("pad", "bos", "eos")] == [257, 258, 256]
    kept = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert kept == generation | {"pad_token_id": 257, "bos_token_id": 258}
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (theirs.pad_token, theirs.bos_token) == ("<pad>", "<begin>")
    assert theirs.chat_template == "{{ x }}"
    assert "/home/me" not in (tmp_path / "out/tokenizer_config.json").read_text()
    again = read_hf(tmp_path / "out").tokenizer
    assert again.end_ids == {256, 259}
    assert again.chat_template == "{{ x }}"
