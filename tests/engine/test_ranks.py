"""A bad loss on one rank: nobody updates, and everybody knows whose it was."""

from __future__ import annotations

import torch

from llmtrain.engine.engine import Engine
from llmtrain.engine.step import Step
from llmtrain.objective.causal import Causal
from llmtrain.optim.optimizer import build_optimizer
from llmtrain.parallel.layout import Replicated
from llmtrain.parallel.mesh import Mesh
from llmtrain.schema.optim import AdamWConfig
from llmtrain.schema.parallel import Degrees
from tests.helpers.models import make_model, random_batch, small_config
from tests.helpers.processes import run_ranks


class Poisoned(Causal):
    """The loss is not finite on one rank in one step."""

    def __init__(self, bad: bool) -> None:
        super().__init__(isolate_documents=False)
        self.bad = bad

    def loss(self, sums, counts):
        sums = {"loss": sums["loss"] * (float("nan") if self.bad else 1.0)}
        return super().loss(sums, counts)


def one_bad_step(rank: int) -> dict:
    cpu = torch.device("cpu")
    model = make_model(small_config())
    optimizer = build_optimizer(AdamWConfig(lr=1e-2), model)
    objective = Poisoned(rank == 1)
    layout = Replicated(model, Mesh.here(Degrees(dp_replicate=2), cpu), "fp32")
    layout.start()
    step = Step(layout, optimizer, objective, clip_norm=1.0, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = step([random_batch(seed=rank)], {"labels": 64.0}, 0)
    unchanged = all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    votes = Engine._loss_votes(bool(result.finite[0]))
    step.clear_gradients()
    objective.bad = False
    good = step([random_batch(seed=rank)], {"labels": 64.0}, 1)
    changed = not torch.equal(before["backbone.embedding.weight"], model.backbone.embedding.weight)
    total = sum(value.double().sum().item() for value in model.state_dict().values())
    return {
        "finite": result.finite.tolist(),
        "unchanged": unchanged,
        "votes": votes,
        "good": good.finite.tolist(),
        "changed": changed,
        "total": total,
    }


def test_nobody_updates_and_the_rank_is_known(tmp_path):
    first, second = run_ranks(one_bad_step, 2, tmp_path)
    assert first["finite"] == [True, False]
    assert second["finite"] == [False, False]
    for answer in (first, second):
        assert answer["unchanged"]
        assert answer["votes"] == [True, False]
        assert answer["good"] == [True, True]
        assert answer["changed"]
    assert first["total"] == second["total"]
