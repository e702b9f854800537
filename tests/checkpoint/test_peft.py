"""Adapters to PEFT and back: the model there says what ours says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from llmtrain.adapt.lora import MergedWeights, add_adapters
from llmtrain.checkpoint.hf.families import FAMILIES, family_for
from llmtrain.checkpoint.hf.peft import PeftConfig, read_peft, write_peft
from llmtrain.checkpoint.hf.write import in_memory, tokenizer_files, write_hf
from llmtrain.checkpoint.weights import StoredTensors
from llmtrain.data.batch import Batch
from llmtrain.data.tokenizer_build import bytes_tokenizer
from llmtrain.model.assembled import Assembled
from llmtrain.model.build import build_model, materialise
from llmtrain.model.heads.examples import SampleHead
from llmtrain.model.heads.vocabulary import LanguageModelHead
from llmtrain.model.initialise import initialise
from llmtrain.model.layers.lora import is_adapter
from llmtrain.schema.adapt import LoRAConfig
from llmtrain.schema.model import Activation, BERTConfig, GPTConfig, ModelConfig, Norm, Position
from llmtrain.schema.tokenizer import BytesTokenizer
from llmtrain.utils.errors import ConfigError, DataError
from llmtrain.utils.io import read_json, write_json

peft = pytest.importorskip("peft")

SHAPE: dict[str, Any] = {
    "num_layers": 2,
    "num_heads": 4,
    "dim": 32,
    "max_positions": 64,
    "vocab_size": 257,
    "init_std": 0.1,  # that nothing is so small that an error in it would not show
}
LLAMA: dict[str, Any] = {
    "position": Position.rotary,
    "norm": Norm.rmsnorm,
    "activation": Activation.swiglu,
    "bias": False,
    "num_kv_heads": 2,
    "tie_embeddings": False,
    "norm_eps": 1e-6,
}
MODELS: dict[str, ModelConfig] = {
    "gpt2": GPTConfig(**SHAPE),
    "llama": GPTConfig(**SHAPE, **LLAMA),
    "bert": BERTConfig(**SHAPE, dropout=0.0),
}
TARGETS = {"all": ["attention.*", "mlp.*"], "some": ["attention.query", "attention.value"]}


def heads(backbone: Any) -> Any:
    return LanguageModelHead(backbone) if backbone.causal else SampleHead(backbone, 3)


def adapted(config: ModelConfig, lora: LoRAConfig | None) -> Assembled:
    model = build_model(config, heads)
    add_adapters(model, lora)
    materialise(model, torch.device("cpu"))
    initialise(model, 0)
    model.eval()
    chooser = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=chooser) / 5)
    return model


def values(model: Assembled, adapters: bool) -> dict[str, Tensor]:
    return {name: one.detach() for name, one in model.named_parameters() if is_adapter(name) == adapters}


def said(model: Assembled) -> Tensor:
    batch = Batch(IDS, first=torch.zeros((2, 1), dtype=torch.int64))
    with torch.no_grad():
        scores = model.predict(batch)
    return scores if model.backbone.causal else scores[:, 0]


IDS = torch.randint(0, 257, (2, 20), generator=torch.Generator().manual_seed(2))
TOKENIZER = bytes_tokenizer(BytesTokenizer())


def theirs(base: Path, causal: bool) -> Any:
    kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
    return kind.from_pretrained(base, dtype=torch.float32).eval()


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_peft_loads_what_was_learned_here(tmp_path: Path, name: str, targets: str) -> None:
    config, lora = MODELS[name], LoRAConfig(rank=3, alpha=5.0, targets=TARGETS[targets])
    model = adapted(config, lora)
    base, own = values(model, adapters=False), values(model, adapters=True)
    write_hf(tmp_path / "base", config, base, TOKENIZER)
    family = family_for(config, set(base), tokenizer_files(TOKENIZER, config).settings)
    assert family.model_type == name
    # A head that learned beside the adapters goes with them; the base has another one.
    learned = {key: one for key, one in base.items() if key.startswith("head.") and not config.causal}
    task = "CAUSAL_LM" if config.causal else "SEQ_CLS"
    write_peft(
        tmp_path / "adapters", own | learned, family, PeftConfig(lora, str(tmp_path / "base"), task), {}
    )
    foreign = theirs(tmp_path / "base", config.causal)
    if not config.causal:
        torch.nn.init.zeros_(foreign.classifier.weight)
    foreign = peft.PeftModel.from_pretrained(foreign, tmp_path / "adapters").eval()
    with torch.no_grad():
        torch.testing.assert_close(foreign(IDS).logits, said(model), rtol=1e-4, atol=2e-5)
        merged = foreign.merge_and_unload()(IDS).logits
    torch.testing.assert_close(merged, said(model), rtol=1e-4, atol=2e-5)
    plain = said(adapted(config, None))
    assert (said(model) - plain).abs().max() > 1e-2  # there was something to tell
    told = read_json(tmp_path / "adapters" / "adapter_config.json")
    assert all(module.count(".") < 3 for module in told["target_modules"])


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_what_peft_learned_is_folded_in(tmp_path: Path, name: str, rslora: bool) -> None:
    config = MODELS[name]
    model = adapted(config, None)
    base = values(model, adapters=False)
    write_hf(tmp_path / "base", config, base, TOKENIZER)
    torch.manual_seed(0)
    settings = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules="all-linear", use_rslora=rslora, init_lora_weights=False,
        alpha_pattern={"mlp.up_proj": 3}, task_type="CAUSAL_LM" if config.causal else "SEQ_CLS",
    )  # fmt: skip
    foreign = peft.get_peft_model(theirs(tmp_path / "base", config.causal), settings).eval()
    with torch.no_grad():
        for key, parameter in foreign.named_parameters():
            if "lora_B" in key:
                parameter.mul_(0.2)
    foreign.save_pretrained(tmp_path / "adapters")
    adapters = StoredTensors(read_peft(tmp_path / "adapters", FAMILIES[name]))
    merged = MergedWeights(StoredTensors(in_memory(base)), adapters, 1.0)
    merged.fill(dict(model.named_parameters()))
    with torch.no_grad():
        expected = foreign(IDS).logits
    torch.testing.assert_close(said(model), expected, rtol=1e-4, atol=2e-5)
    assert (expected - theirs(tmp_path / "base", config.causal)(IDS).logits).abs().max() > 1e-2


def test_unknown_adapters_are_refused(tmp_path: Path) -> None:
    config, lora = MODELS["llama"], LoRAConfig(rank=2)
    own = values(adapted(config, lora), adapters=True)
    write_peft(tmp_path / "a", own, FAMILIES["llama"], PeftConfig(lora, "x"), {})
    with pytest.raises(DataError, match="not of a gpt2: model"):
        read_peft(tmp_path / "a", FAMILIES["gpt2"])
    told = read_json(tmp_path / "a" / "adapter_config.json")
    for change, words in (({"use_dora": True}, "use_dora=True"), ({"peft_type": "IA3"}, "peft_type=IA3")):
        write_json(tmp_path / "a" / "adapter_config.json", told | change)
        with pytest.raises(ConfigError, match=words):
            read_peft(tmp_path / "a", FAMILIES["llama"])
