"""BERT: sizes, variants, documents, and parity with transformers."""

import math

import pytest
import torch
import yaml

from llmtrain.data.batch import Batch
from llmtrain.model.build import build_model
from llmtrain.model.heads.vocabulary import MaskedHead, MaskedNextHead
from llmtrain.schema.model import Activation, BERTConfig, Norm, Position
from tests.helpers import bert
from tests.helpers.models import make_model, random_batch, small_bert
from tests.helpers.paths import CONFIGS

MODERN = {
    "norm_first": True,
    "position": Position.rotary,
    "bias": False,
    "activation": Activation.geglu,
    "num_segments": 0,
    "local_window": 6,
    "global_every": 2,
}
VARIANTS = {
    "bert": {},
    "modern": MODERN,
    "rmsnorm_swiglu": {"norm": Norm.rmsnorm, "activation": Activation.swiglu, "norm_first": True},
    "post_norm_rotary": {"position": Position.rotary, "num_segments": 3, "activation": Activation.gelu_tanh},
}
DOCUMENTS = torch.tensor([[0] * 7 + [1] * 9])
POSITIONS = torch.cat([torch.arange(7), torch.arange(9)])[None]


def make(name: str, **changes):
    return make_model(small_bert(**(VARIANTS[name] | changes)), build_head=MaskedHead)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns_masked_tokens(name):
    model = make(name)
    batch = random_batch()
    selected = torch.tensor([[1, 4, 9], [0, 2, 15]])
    batch = Batch(batch.ids, batch.labels.gather(1, selected), selected=selected)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(25):
        loss = model.sums(batch)["loss"] / selected.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(50), abs=0.3)
    assert losses[-1] < 0.5 * losses[0]
    assert model.sums(batch)["correct"] >= 4


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_gets_a_gradient(name):
    model = make(name)
    batch = random_batch()
    batch.segments = torch.arange(16)[None].expand(2, -1) % max(1, model.backbone.config.num_segments)
    batch.documents = torch.zeros_like(batch.ids)
    model.sums(batch)["loss"].backward()
    still = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
    # A key's bias moves all scores of a query alike, and the softmax does not see it.
    assert all(name.endswith("key.bias") for name in still)


@pytest.mark.parametrize("name", ["bert", "rmsnorm_swiglu", "post_norm_rotary"])
def test_a_token_sees_both_sides(name):
    model = make(name).eval()
    ids = random_batch().ids
    changed = ids.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 50
    difference = (model.backbone(Batch(ids)) - model.backbone(Batch(changed))).abs().amax(dim=(0, 2))
    assert (difference > 1e-5).all()


def test_a_local_layer_sees_half_a_window_to_each_side():
    model = make("modern", num_layers=2, global_every=2).eval()
    block = model.backbone.blocks["1"]
    x = torch.randn(1, 16, 32)
    changed = x.clone()
    changed[0, 8] = -x[0, 8]
    mask = model.backbone.masks(Batch(torch.zeros(1, 16, dtype=torch.long)))["1"]
    difference = (block(x, mask, None) - block(changed, mask, None)).abs().amax(dim=-1)[0]
    assert [place for place in range(16) if difference[place] > 1e-6] == list(range(5, 12))
    assert [model.backbone.is_local(number) for number in range(4)] == [False, True, False, True]
    assert not make("bert").backbone.is_local(1)


@pytest.mark.parametrize("name", VARIANTS)
def test_isolated_documents_equal_documents_alone(name):
    model = make(name).eval()
    ids = random_batch(rows=1).ids
    packed = model.backbone(Batch(ids, positions=POSITIONS, documents=DOCUMENTS))
    torch.testing.assert_close(packed[:, :7], model.backbone(Batch(ids[:, :7])), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed[:, 7:], model.backbone(Batch(ids[:, 7:])), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "modern"])
def test_bf16_packed_equals_alone(name):
    """The same by way of the explicit attention kernel, within what bf16 can tell apart."""
    model = make(name).eval()
    ids = random_batch(rows=1).ids
    with torch.autocast("cpu", dtype=torch.bfloat16):
        packed = model.backbone(Batch(ids, positions=POSITIONS, documents=DOCUMENTS)).float()
        first, second = (model.backbone(Batch(part)).float() for part in (ids[:, :7], ids[:, 7:]))
    torch.testing.assert_close(packed, torch.cat([first, second], dim=1), rtol=0.05, atol=0.05)


def test_segments_matter_and_none_means_the_first():
    model = make("bert").eval()
    ids = random_batch().ids
    plain = model.backbone(Batch(ids))
    torch.testing.assert_close(model.backbone(Batch(ids, segments=torch.zeros_like(ids))), plain)
    assert not torch.allclose(model.backbone(Batch(ids, segments=torch.ones_like(ids))), plain)
    without = make("bert", num_segments=0).eval()
    assert torch.equal(
        without.backbone(Batch(ids, segments=torch.ones_like(ids))), without.backbone(Batch(ids))
    )
    single = make("bert", num_segments=1).eval()  # pairs have segments 0 and 1 all the same
    assert torch.equal(
        single.backbone(Batch(ids, segments=torch.ones_like(ids))), single.backbone(Batch(ids))
    )


def test_dropout_acts_in_training_only():
    model = make("bert", dropout=0.2)
    ids = random_batch().ids
    assert not torch.equal(model.backbone(Batch(ids)), model.backbone(Batch(ids)))
    model.eval()
    assert torch.equal(model.backbone(Batch(ids)), model.backbone(Batch(ids)))


def test_first_weights_are_berts():
    model = make("bert", dim=256, num_layers=8, vocab_size=500)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.eq(0).all(), name
        elif parameter.ndim == 1:
            assert parameter.eq(1).all(), name
        else:
            assert parameter[:500].std().item() == pytest.approx(0.02, rel=0.1), name
    assert model.backbone.embedding.weight[500:].eq(0).all()


@pytest.mark.parametrize(
    ("size", "millions"),
    [("tiny", 4.4), ("mini", 11.2), ("small", 28.8), ("medium", 41.4), ("base", 109.5), ("large", 335.1)],
)
def test_published_sizes(size, millions):
    """With BERT's vocabulary and the pooler, as they are published (Turc et al. 2019; Devlin et al. 2019)."""
    data = yaml.safe_load((CONFIGS / "model" / "bert" / f"{size}.yaml").read_text())
    model = build_model(BERTConfig(**data, vocab_size=30522, vocab_multiple=1), MaskedNextHead)
    count = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if name.startswith(("backbone.", "head.pooler."))
    )
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


def test_modern_config_builds():
    data = yaml.safe_load((CONFIGS / "model" / "bert" / "modern_mini.yaml").read_text())
    model = build_model(BERTConfig(**data, vocab_size=100), MaskedHead)
    assert not any(name.endswith("bias") for name, _ in model.backbone.named_parameters())


def test_flops_follow_the_formula():
    config = small_bert(num_layers=3, dim=64, vocab_size=100, local_window=16, global_every=2)
    model = build_model(config, MaskedHead)
    blocks = 3 * (4 * (64 * 64 + 64) + 2 * 4 * 64 * 64 + 4 * 64 + 64 + 2 * 2 * 64)
    body = 6 * blocks + 12 * 64 * (128 + 17 + 128)
    assert model.flops_per_token(128, labelled_share=0.5) == body + (6 * 64 * 64 + 6 * 100 * 64) / 2


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_hidden_states_equal_transformers(activation):
    """Padded, packed and one by one."""
    reference = bert.reference("BertModel", hidden_act=activation)
    ours = Activation.gelu if activation == "gelu" else Activation.gelu_tanh
    model = bert.copy_of(reference, MaskedNextBackbone, activation=ours)
    padded = bert.padded()
    with torch.no_grad():
        expected = bert.by_sample(padded, reference(**bert.theirs(padded)).last_hidden_state)
        arrangements = {
            "padded": bert.by_sample(padded, model.backbone(padded)),
            "packed": bert.by_sample(bert.packed(), model.backbone(bert.packed())),
            "alone": [model.backbone(batch)[0] for batch in bert.alone()],
        }
    for found in arrangements.values():
        assert [len(states) for states in found] == list(bert.LENGTHS)
        for states, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(states, truth, rtol=1e-5, atol=1e-5)


class MaskedNextBackbone(MaskedHead):
    """A head without parameters: the test looks at hidden states."""

    def __init__(self, backbone) -> None:
        super(MaskedHead, self).__init__()


def test_modern_variant_equals_transformers():
    import transformers

    torch.manual_seed(0)
    theta = {"rope_type": "default", "rope_theta": 10000.0}
    reference = transformers.ModernBertModel(
        transformers.ModernBertConfig(
            vocab_size=bert.VOCAB,
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=64,
            local_attention=6,
            layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={"full_attention": theta, "sliding_attention": theta},
            attn_implementation="eager",
            **dict.fromkeys(
                ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0
            ),
        )
    ).eval()
    config = bert.config(**(MODERN | {"num_layers": 4, "hidden_dim": 80, "norm_eps": 1e-5}))
    model = make_model(config, build_head=MaskedHead).eval()
    theirs = reference.state_dict()
    with torch.no_grad():
        copy_modern(theirs, model.backbone)
        ids = random_batch(vocab=bert.VOCAB, rows=2, length=30).ids
        expected = reference(input_ids=ids).last_hidden_state
        torch.testing.assert_close(model.backbone(Batch(ids)), expected, rtol=1e-5, atol=1e-5)


def copy_modern(theirs, backbone) -> None:
    """Copy transformers' ModernBERT, which joins q, k, v and gate with up, and has no first norm."""
    backbone.embedding.weight[: bert.VOCAB] = theirs["embeddings.tok_embeddings.weight"]
    backbone.embedding_norm.weight.copy_(theirs["embeddings.norm.weight"])
    backbone.norm.weight.copy_(theirs["final_norm.weight"])
    for number, block in enumerate(backbone.blocks.values()):
        prefix = f"layers.{number}."
        parts = theirs[f"{prefix}attn.Wqkv.weight"].chunk(3)
        for layer, part in zip(
            (block.attention.query, block.attention.key, block.attention.value), parts, strict=True
        ):
            layer.weight.copy_(part)
        block.attention.out.weight.copy_(theirs[f"{prefix}attn.Wo.weight"])
        for layer, part in zip(
            (block.mlp.gate, block.mlp.up), theirs[f"{prefix}mlp.Wi.weight"].chunk(2), strict=True
        ):
            layer.weight.copy_(part)
        block.mlp.down.weight.copy_(theirs[f"{prefix}mlp.Wo.weight"])
        block.mlp_norm.weight.copy_(theirs[f"{prefix}mlp_norm.weight"])
        if number:
            block.attention_norm.weight.copy_(theirs[f"{prefix}attn_norm.weight"])
        else:
            block.attention_norm = torch.nn.Identity()
