"""GPT: shapes, variants, documents, and parity with transformers."""

import math
from dataclasses import replace

import pytest
import torch
from transformers.activations import ACT2FN

from llmtrain.data.batch import Batch
from llmtrain.model.build import build_model, tied_names
from llmtrain.model.heads.vocabulary import LanguageModelHead
from llmtrain.model.layers.mlp import SquaredReLU, build_activation
from llmtrain.schema.model import Activation, GPTConfig, Norm, Position
from tests.helpers.models import make_model, random_batch, small_config

VARIANTS = {
    "gpt2": {},
    "llama": {
        "position": Position.rotary,
        "norm": Norm.rmsnorm,
        "activation": Activation.swiglu,
        "bias": False,
        "num_kv_heads": 2,
        "tie_embeddings": False,
    },
    "no_bias": {"bias": False, "activation": Activation.gelu},
    "multi_query": {"num_kv_heads": 1, "hidden_dim": 48},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns_to_copy_a_batch(name):
    model = make_model(small_config(**VARIANTS[name]))
    batch = random_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    count = batch.labels.numel()
    first = model.sums(batch)["loss"].item() / count
    for _ in range(60):
        loss = model.sums(batch)["loss"] / count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first == pytest.approx(math.log(50), abs=0.2)
    assert loss.item() < 0.5 * first


@pytest.mark.parametrize("name", VARIANTS)
def test_later_tokens_do_not_change_earlier_states(name):
    model = make_model(small_config(**VARIANTS[name])).eval()
    ids = random_batch().ids
    changed = ids.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 50
    before, after = model.backbone(Batch(ids)), model.backbone(Batch(changed))
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize("name", VARIANTS)
def test_isolated_documents_equal_documents_alone(name):
    model = make_model(small_config(**VARIANTS[name])).eval()
    ids = random_batch(rows=1).ids
    documents = torch.tensor([[0] * 7 + [1] * 9])
    positions = torch.cat([torch.arange(7), torch.arange(9)])[None]
    packed = model.backbone(Batch(ids, positions=positions, documents=documents))
    torch.testing.assert_close(packed[:, :7], model.backbone(Batch(ids[:, :7])), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed[:, 7:], model.backbone(Batch(ids[:, 7:])), rtol=1e-5, atol=1e-5)


def test_selected_positions_give_the_loss_of_these_positions():
    model = make_model(small_config())
    batch = random_batch()
    some = torch.tensor([[1, 4, 9], [0, 2, 15]])
    selected = Batch(batch.ids, batch.labels.gather(1, some), selected=some)
    masked = torch.full_like(batch.labels, -100).scatter(1, some, batch.labels.gather(1, some))
    torch.testing.assert_close(model.sums(selected)["loss"], model.sums(Batch(batch.ids, masked))["loss"])


@pytest.mark.parametrize(
    ("size", "millions"), [("small", 124.4), ("medium", 354.8), ("large", 774.0), ("xl", 1557.6)]
)
def test_published_gpt2_sizes(size, millions):
    import yaml

    from tests.helpers.paths import CONFIGS

    data = yaml.safe_load((CONFIGS / "model" / "gpt" / f"{size}.yaml").read_text())
    model = build_model(GPTConfig(**data, vocab_size=50257, vocab_multiple=1), LanguageModelHead)
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.06)


def test_first_weights_are_gpt2s():
    config = small_config(dim=256, num_layers=8, vocab_size=500)
    model = make_model(config)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    assert parameters["backbone.blocks.0.attention.query.weight"].std().item() == pytest.approx(
        0.02, rel=0.05
    )
    assert parameters["backbone.blocks.3.mlp.down.weight"].std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert parameters["backbone.blocks.3.attention.out.weight"].std().item() == pytest.approx(
        0.02 / 4, rel=0.05
    )
    assert parameters["backbone.embedding.weight"][500:].abs().max() == 0
    assert parameters["backbone.norm.weight"].eq(1).all()
    assert parameters["backbone.blocks.0.mlp.up.bias"].eq(0).all()


def test_first_weights_depend_on_name_and_seed_only():
    small, deep = make_model(small_config(num_layers=2)), make_model(small_config(num_layers=3))
    name = "backbone.blocks.1.attention.key.weight"
    assert torch.equal(small.get_parameter(name), deep.get_parameter(name))
    assert not torch.equal(small.get_parameter(name), make_model(small_config(), seed=1).get_parameter(name))
    other = small.get_parameter("backbone.blocks.0.attention.key.weight")
    assert not torch.equal(small.get_parameter(name), other)


def test_ties_survive_materialisation():
    tied = make_model(small_config())
    assert tied_names(tied) == [("backbone.embedding.weight", "head.projection.weight")]
    assert "head.projection.weight" not in dict(tied.named_parameters())
    assert tied_names(make_model(small_config(tie_embeddings=False))) == []


@pytest.mark.parametrize("documents", [False, True])
def test_with_a_window_a_token_looks_at_so_many(documents):
    """One layer: the hidden state of a token changes with those in its window and with no other."""
    model = make_model(small_config(num_layers=1, window=4)).eval()
    batch = random_batch(rows=1, length=12)
    if documents:
        batch = replace(batch, documents=torch.tensor([[0] * 7 + [1] * 5]))
    before = model.backbone(batch)
    for place in range(12):
        ids = batch.ids.clone()
        ids[0, place] = (ids[0, place] + 1) % 50
        changed = (model.backbone(replace(batch, ids=ids)) != before).any(-1)[0]
        end = 7 if documents and place < 7 else 12
        seers = range(place, min(place + 4, end))
        assert changed.nonzero()[:, 0].tolist() == list(seers)


def test_a_window_as_long_as_the_row_changes_nothing():
    batch = random_batch(length=16)
    wide, none = (make_model(small_config(window=window)) for window in (16, None))
    assert wide.sums(batch)["loss"].equal(none.sums(batch)["loss"])
    assert wide.flops_per_token(16, 1) == none.flops_per_token(16, 1)
    narrow = make_model(small_config(window=4))
    assert wide.flops_per_token(16, 1) - narrow.flops_per_token(16, 1) == 12 * 2 * 32 * 12


def test_squared_relu_is_that_of_transformers():
    """Its gradient too."""
    x = torch.linspace(-2, 2, 9, requires_grad=True)
    ours, theirs = (one(x) for one in (build_activation(Activation.relu_squared), ACT2FN["relu2"]))
    assert ours.equal(theirs)
    assert torch.autograd.grad(ours.sum(), x)[0].equal((2 * x.detach()).clamp(min=0))
    block = make_model(small_config(activation=Activation.relu_squared)).backbone.blocks["0"]
    assert isinstance(block.mlp.activation, SquaredReLU)
    assert block.mlp.up.out_features == 4 * 32


def test_output_projections_of_branches_start_at_zero_by_option():
    """Every block then passes on what it gets."""
    model = make_model(small_config(zero_init=True))
    batch = random_batch()
    stream = model.backbone.embed(batch)
    assert model.backbone.run(stream, batch, model.backbone.blocks).equal(stream)
    usual = dict(make_model(small_config()).named_parameters())
    for name, parameter in model.named_parameters():
        zero = name.endswith(("attention.out.weight", "mlp.down.weight"))
        assert not parameter.any() if zero else parameter.equal(usual[name])


def test_flops_follow_the_formula():
    config = small_config(num_layers=3, dim=64, vocab_size=100, bias=False, norm=Norm.rmsnorm)
    model = build_model(config, LanguageModelHead)
    blocks = 3 * (4 * 64 * 64 + 8 * 64 * 64 + 2 * 64)
    body = 6 * blocks + 12 * 3 * 64 * 128
    assert model.flops_per_token(128, labelled_share=1) == body + 6 * 100 * 64
    assert model.flops_per_token(128, labelled_share=0.25) == body + 6 * 100 * 64 / 4


def test_gpt2_equals_transformers():
    """Logits and loss against an implementation that we did not write, with random weights copied."""
    transformers = pytest.importorskip("transformers")
    reference = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=211,
            n_positions=64,
            n_embd=48,
            n_layer=3,
            n_head=4,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
    ).eval()
    with torch.no_grad():  # the published initialisation leaves biases 0: give them values that matter
        for name, parameter in reference.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.02)
    config = small_config(dim=48, num_layers=3, vocab_size=211, max_positions=64)
    model = make_model(config).eval()
    with torch.no_grad():
        copy_gpt2(reference, model)
    batch = random_batch(vocab=211, rows=3, length=64)
    with torch.no_grad():
        logits = model.predict(batch)
        expected = reference(batch.ids, labels=batch.ids)
        torch.testing.assert_close(logits, expected.logits, rtol=1e-5, atol=1e-5)
        labels = torch.nn.functional.pad(batch.ids[:, 1:], (0, 1), value=-100)
        loss = model.sums(Batch(batch.ids, labels))["loss"] / (labels != -100).sum()
    torch.testing.assert_close(loss, expected.loss, rtol=1e-6, atol=1e-6)


def copy_gpt2(reference, model) -> None:
    """Copy the weights of transformers' GPT-2, which stores matrices transposed and q, k, v joined."""
    theirs = dict(reference.named_parameters())
    model.backbone.embedding.weight[: theirs["transformer.wte.weight"].shape[0]] = theirs[
        "transformer.wte.weight"
    ]
    model.backbone.position.weight.copy_(theirs["transformer.wpe.weight"])
    for index, block in enumerate(model.backbone.blocks.values()):
        prefix = f"transformer.h.{index}."
        for kind in ("weight", "bias"):
            joined = theirs[f"{prefix}attn.c_attn.{kind}"]
            parts = (joined.T if kind == "weight" else joined).chunk(3, dim=0)
            for layer, part in zip(
                (block.attention.query, block.attention.key, block.attention.value), parts, strict=True
            ):
                getattr(layer, kind).copy_(part)
            for layer, name in (
                (block.attention.out, "attn.c_proj"),
                (block.mlp.up, "mlp.c_fc"),
                (block.mlp.down, "mlp.c_proj"),
            ):
                value = theirs[f"{prefix}{name}.{kind}"]
                getattr(layer, kind).copy_(value.T if kind == "weight" else value)
            for layer, name in ((block.attention_norm, "ln_1"), (block.mlp_norm, "ln_2")):
                getattr(layer, kind).copy_(theirs[f"{prefix}{name}.{kind}"])
    for kind in ("weight", "bias"):
        getattr(model.backbone.norm, kind).copy_(theirs[f"transformer.ln_f.{kind}"])


def test_llama_variant_equals_transformers():
    transformers = pytest.importorskip("transformers")
    reference = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=211,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
        )
    ).eval()
    config = small_config(dim=48, vocab_size=211, max_positions=64, hidden_dim=96, **VARIANTS["llama"])
    model = make_model(config).eval()
    names = {
        "self_attn.q_proj": "attention.query",
        "self_attn.k_proj": "attention.key",
        "self_attn.v_proj": "attention.value",
        "self_attn.o_proj": "attention.out",
        "mlp.gate_proj": "mlp.gate",
        "mlp.up_proj": "mlp.up",
        "mlp.down_proj": "mlp.down",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "mlp_norm",
    }
    theirs = dict(reference.named_parameters())
    with torch.no_grad():
        model.backbone.embedding.weight[:211] = theirs["model.embed_tokens.weight"]
        model.head.projection.weight[:211] = theirs["lm_head.weight"]
        model.backbone.norm.weight.copy_(theirs["model.norm.weight"])
        for index, block in enumerate(model.backbone.blocks.values()):
            for name, own in names.items():
                block.get_parameter(f"{own}.weight").copy_(theirs[f"model.layers.{index}.{name}.weight"])
        ids = random_batch(vocab=211, rows=2, length=40).ids
        logits = model.predict(Batch(ids))
        torch.testing.assert_close(logits, reference(ids).logits, rtol=1e-5, atol=1e-5)
