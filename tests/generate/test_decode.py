"""Drawing tokens: what transformers draw greedily, rows as alone, the end, the window."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from llmtrain.data.batch import Batch
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.data.tokenizer_build import bytes_tokenizer
from llmtrain.generate.decode import Finish, Memory
from llmtrain.generate.products import use_vector_products
from llmtrain.generate.text import Sample, Writer
from llmtrain.model.assembled import Assembled
from llmtrain.schema.fields import SampleConfig
from llmtrain.schema.model import Activation, GPTConfig, Norm, Position
from llmtrain.schema.tokenizer import BytesTokenizer
from tests.helpers.models import make_model

CPU = torch.device("cpu")
VOCAB = 257
GREEDY = SampleConfig(num_samples=1, temperature=0, max_new_tokens=30)
DRAWN = SampleConfig(num_samples=1, temperature=1.0, top_k=None, max_new_tokens=30)
LLAMA = {
    "position": Position.rotary,
    "norm": Norm.rmsnorm,
    "activation": Activation.swiglu,
    "bias": False,
    "num_kv_heads": 2,
    "hidden_dim": 48,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return bytes_tokenizer(BytesTokenizer())


def model_of(max_positions: int = 128, **changes: object) -> Assembled:
    """A model whose weights are large enough for texts of their own."""
    shape = {"num_layers": 2, "num_heads": 4, "dim": 32, "vocab_size": VOCAB, "max_positions": max_positions}
    model = make_model(GPTConfig(**(shape | changes))).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    with torch.no_grad():
        model.backbone.embedding.weight[VOCAB:] = 0
    return model


def writer_of(tokenizer: Tokenizer, max_positions: int = 128, **changes: object) -> Writer:
    return Writer(model_of(max_positions, **changes), tokenizer, max_positions, CPU)


def prompts_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


def write(
    writer: Writer, prompts: list[list[int]], config: SampleConfig, batch_size: int = 16
) -> list[Sample]:
    return list(writer.write(prompts, config, batch_size))


def their_llama(model: Assembled) -> transformers.PreTrainedModel:
    """The same weights in transformers."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=256, pad_token_id=256,
    )  # fmt: skip
    table = {
        "input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm",
        "self_attn.q_proj": "attention.query", "self_attn.k_proj": "attention.key",
        "self_attn.v_proj": "attention.value", "self_attn.o_proj": "attention.out",
        "mlp.gate_proj": "mlp.gate", "mlp.up_proj": "mlp.up", "mlp.down_proj": "mlp.down",
    }  # fmt: skip
    ours = model.backbone.state_dict()
    embedding = ours["embedding.weight"][:VOCAB]
    weights = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}
    weights["model.norm.weight"] = ours["norm.weight"]
    for block in range(2):
        for there, here in table.items():
            weights[f"model.layers.{block}.{there}.weight"] = ours[f"blocks.{block}.{here}.weight"]
    found = transformers.LlamaForCausalLM(config).eval()
    found.load_state_dict(weights)
    return found


def their_gpt2(model: Assembled) -> transformers.PreTrainedModel:
    """The same weights in transformers, transposed, with queries, keys and values joined."""
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=128, n_embd=32, n_layer=2, n_head=4,
        bos_token_id=None, eos_token_id=256, pad_token_id=256,
    )  # fmt: skip
    found = transformers.GPT2LMHeadModel(config).eval()
    ours = model.backbone.state_dict()
    weights = {"wte.weight": ours["embedding.weight"][:VOCAB], "wpe.weight": ours["position.weight"]}
    for kind in ("weight", "bias"):
        weights[f"ln_f.{kind}"] = ours[f"norm.{kind}"]
        for block in range(2):
            there, here = f"h.{block}.", f"blocks.{block}."
            joined = [ours[f"{here}attention.{part}.{kind}"] for part in ("query", "key", "value")]
            weights[f"{there}attn.c_attn.{kind}"] = torch.cat(joined).t()
            for theirs, mine in {
                "attn.c_proj": "attention.out", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"
            }.items():  # fmt: skip
                weights[f"{there}{theirs}.{kind}"] = ours[f"{here}{mine}.{kind}"].t()
            weights[f"{there}ln_1.{kind}"] = ours[f"{here}attention_norm.{kind}"]
            weights[f"{there}ln_2.{kind}"] = ours[f"{here}mlp_norm.{kind}"]
    found.transformer.load_state_dict(weights)
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_greedy_is_that_of_transformers(tokenizer: Tokenizer, family: str, penalty: float) -> None:
    writer = writer_of(tokenizer, **(LLAMA if family == "llama" else {}))
    theirs = (their_llama if family == "llama" else their_gpt2)(writer.decoder.model)
    prompts = prompts_of(7, 1, 19, 12)
    config = replace(GREEDY, repetition_penalty=penalty)
    found = write(writer, prompts, config)
    for prompt, sample in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False,
            repetition_penalty=penalty,
        )[0, len(prompt) :].tolist()  # fmt: skip
        ended = expected[-1] == 256
        assert sample.ids == expected[: -1 if ended else None]
        assert sample.finish is (Finish.end if ended else Finish.length)
    assert len({tuple(sample.ids) for sample in found}) == 4


@pytest.mark.parametrize("settings", [LLAMA, {}])
@pytest.mark.parametrize("config", [GREEDY, replace(DRAWN, num_samples=3, repetition_penalty=1.1)])
def test_texts_do_not_depend_on_those_beside_them(
    tokenizer: Tokenizer, settings: dict[str, object], config: SampleConfig
) -> None:
    writer = writer_of(tokenizer, **settings)
    prompts = prompts_of(3, 17, 1, 9, 9)
    alone = [sample for prompt in prompts for sample in write(writer, [prompt], config, batch_size=1)]
    for batch_size in (2, 4, 64):
        assert write(writer, prompts, config, batch_size) == alone
    fewer = write(writer, prompts, replace(config, num_samples=1))
    assert fewer == alone[:: config.num_samples]


def test_samples_depend_on_seed_and_number_only(tokenizer: Tokenizer) -> None:
    writer = writer_of(tokenizer)
    (prompt,) = prompts_of(3)
    three = write(writer, [prompt], replace(DRAWN, num_samples=3))
    assert write(writer, [prompt], replace(DRAWN, num_samples=2)) == three[:2]
    assert three[0] != three[1]
    assert write(writer, [prompt], replace(DRAWN, seed=1)) != three[:1]


def test_the_end_token_ends_a_text_and_is_left_out(tokenizer: Tokenizer) -> None:
    writer = writer_of(tokenizer)
    config = replace(DRAWN, num_samples=30, max_new_tokens=100, temperature=3.0)
    found = write(writer, prompts_of(3), config)
    assert {sample.finish for sample in found} == {Finish.end, Finish.length}
    for sample in found:
        assert 256 not in sample.ids
        assert (len(sample.ids) == 100) == (sample.finish is Finish.length)
    # any other token may be one that ends
    other = found[0].ids[5]
    writer.stop_ids = frozenset({256, other})
    assert write(writer, prompts_of(3), config)[0].ids == found[0].ids[: found[0].ids.index(other)]


@pytest.mark.parametrize("settings", [LLAMA, {}])
def test_a_text_that_outgrows_the_model_goes_on_from_its_last_half(
    tokenizer: Tokenizer, settings: dict[str, object]
) -> None:
    writer = writer_of(tokenizer, max_positions=16, **settings)
    prompts = prompts_of(5, 30, 16, 15, 1)
    found = write(writer, prompts, replace(GREEDY, max_new_tokens=60))
    for prompt, sample in zip(prompts, found, strict=True):
        ids, start = list(prompt), 0
        for token in sample.ids:
            if len(ids) - start > 16:
                start = len(ids) - 8
            with torch.no_grad():
                logits = writer.decoder.model.predict(Batch(torch.tensor([ids[start:]])))[0, -1]
            assert logits[token] == pytest.approx(float(logits.max()), abs=1e-4)
            ids.append(token)
    narrow = writer_of(tokenizer, max_positions=1)
    assert len(write(narrow, prompts_of(1), replace(DRAWN, temperature=0.1))) == 1


def test_stop_strings_across_tokens(tokenizer: Tokenizer) -> None:
    writer = writer_of(tokenizer)
    prompts = prompts_of(4, 6)
    config = replace(DRAWN, max_new_tokens=80)
    whole = write(writer, prompts, config)
    text = whole[0].text
    place = next(i for i in range(20, 60) if text[i : i + 3].isascii() and text[i : i + 3].isprintable())
    stop = text[place : place + 3]
    first = text.index(stop)
    ended, other = write(writer, prompts, replace(config, stop=[stop, "never to be seen"]))
    assert (ended.text, ended.finish) == (text[:first], Finish.stop)
    assert whole[0].ids[: len(ended.ids)] == ended.ids
    assert tokenizer.decode(ended.ids) == text[: first + 3]
    assert other == whole[1]
    row = writer.row(prompts[0], 0, replace(config, stop=[stop]))
    assert "".join(writer.stream(row, config)) == ended.text


def test_what_is_streamed_is_what_a_batch_writes(tokenizer: Tokenizer) -> None:
    writer = writer_of(tokenizer, **LLAMA)
    prompts = prompts_of(4, 11)
    batch = write(writer, prompts, DRAWN)
    for prompt, sample in zip(prompts, batch, strict=True):
        row = writer.row(prompt, 0, DRAWN)
        pieces = list(writer.stream(row, DRAWN))
        assert len(pieces) > 5
        assert "".join(pieces) == sample.text == tokenizer.decode(sample.ids)
        assert Sample.of(row) == sample


@pytest.mark.parametrize("max_positions", [128, 24])
def test_a_memory_changes_nothing_but_what_is_read(tokenizer: Tokenizer, max_positions: int) -> None:
    writer = writer_of(tokenizer, max_positions, **LLAMA)
    config = replace(GREEDY, max_new_tokens=12)
    memory = Memory()
    prompt, *more = prompts_of(5, 3, 2, 4)
    new: list[int] = []
    for number, turn in enumerate(more):
        expected = write(writer, [prompt], config)[0]
        row = writer.row(prompt, 0, config)
        read = []
        writer.decoder.model.backbone.embedding.register_forward_hook(
            lambda module, inputs, output, read=read: read.append(inputs[0].shape[1])
        )
        assert "".join(writer.stream(row, config, memory=memory)) == expected.text
        assert row.ids == expected.ids
        if number and max_positions == 128:
            # the last token of an answer was not read, nor was what is new
            assert read[0] == len(new) + 1
        new = turn
        prompt = prompt + row.ids + turn
    # a conversation that starts otherwise is read anew
    other = prompts_of(6)[0][::-1]
    row = writer.row(other, 0, config)
    assert "".join(writer.stream(row, config, memory=memory)) == write(writer, [other], config)[0].text


def test_vector_products_are_products(tokenizer: Tokenizer) -> None:
    for settings in (LLAMA, {"tie_embeddings": False}):
        model = model_of(**settings).to(torch.bfloat16)
        expected = model.predict(Batch(torch.tensor([[3, 4, 5]])))
        use_vector_products(model)
        assert torch.equal(model.predict(Batch(torch.tensor([[3, 4, 5]]))), expected)
        x = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
        layers = [model.backbone.blocks["0"].attention.query, model.backbone.blocks["1"].mlp.up]
        for layer in (*layers, model.head.projection):
            plain = type(layer).forward(layer, x)
            assert layer(x).shape == plain.shape
            torch.testing.assert_close(layer(x), plain, rtol=2e-2, atol=2e-2)
