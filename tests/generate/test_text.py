"""Sampling."""

import pytest
import torch

from llmtrain.data.batch import Batch
from llmtrain.generate.sampler import draw, next_token_probabilities
from llmtrain.generate.text import generate_tokens
from llmtrain.schema.fields import SampleConfig
from tests.helpers.models import make_model, small_config

LOGITS = torch.tensor([[0.5, 0.2, 0.2, 0.1]]).log()


def probabilities(**settings) -> list[float]:
    return next_token_probabilities(LOGITS, SampleConfig(**({"top_k": None, "temperature": 1.0} | settings)))[
        0
    ].tolist()


def test_temperature():
    assert probabilities() == pytest.approx([0.5, 0.2, 0.2, 0.1])
    assert probabilities(temperature=0.5) == pytest.approx(
        [0.25 / 0.34, 0.04 / 0.34, 0.04 / 0.34, 0.01 / 0.34]
    )
    assert probabilities(temperature=0) == [1, 0, 0, 0]


def test_top_k_and_top_p():
    assert probabilities(top_k=1) == pytest.approx([1, 0, 0, 0])
    assert probabilities(top_k=100) == pytest.approx([0.5, 0.2, 0.2, 0.1])
    assert probabilities(top_p=0.4) == pytest.approx([1, 0, 0, 0])
    assert probabilities(top_p=0.95)[3] == pytest.approx(0.1)
    kept = probabilities(top_p=0.6)
    assert kept[0] == pytest.approx(0.5 / 0.7)
    assert sum(kept) == pytest.approx(1)
    assert kept[3] == 0


def test_draws_follow_the_probabilities():
    generator = torch.Generator().manual_seed(0)
    rows = next_token_probabilities(LOGITS, SampleConfig(top_k=None, temperature=1.0)).expand(4000, -1)
    counts = torch.bincount(draw(rows, [generator] * 4000), minlength=4) / 4000
    # Four standard deviations of a share of 0.5 among 4,000 draws are 0.032.
    assert (counts - torch.tensor([0.5, 0.2, 0.2, 0.1])).abs().max() < 0.032


def sample(model, **settings) -> list[list[int]]:
    config = SampleConfig(**({"max_new_tokens": 40, "num_samples": 2} | settings))
    return generate_tokens(model, [1, 2, 3], config, end_id=49, max_positions=32, device=torch.device("cpu"))


def test_samples_depend_on_seed_and_number_only():
    model = make_model(small_config())
    two, three = sample(model), sample(model, num_samples=3)
    assert two == three[:2]
    assert two[0] != two[1]
    assert sample(model, seed=1) != two


def test_greedy_takes_the_likeliest_token_each_time():
    model = make_model(small_config())
    (tokens,) = sample(model, temperature=0, num_samples=1, max_new_tokens=5)
    ids = [1, 2, 3]
    for token in tokens:
        logits = model.predict(Batch(torch.tensor([ids])))[0, -1]
        assert token == logits.argmax()
        ids.append(token)
    assert len(tokens) == 5 or logits.argmax() == 49


def test_the_end_token_ends_a_sample_and_is_left_out():
    model = make_model(small_config())
    for tokens in sample(model, num_samples=20, temperature=5.0, top_k=None, max_new_tokens=100):
        assert 49 not in tokens
        assert len(tokens) <= 100


def test_beyond_the_last_position_the_window_moves():
    model = make_model(small_config(max_positions=8))
    config = SampleConfig(num_samples=1, max_new_tokens=30, temperature=5.0, top_k=None)
    (tokens,) = generate_tokens(model, [], config, end_id=0, max_positions=8, device=torch.device("cpu"))
    assert 1 <= len(tokens) <= 30
