"""What a step does besides its sums: dropout, steps that are skipped, memory on the way to the first one."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker

from llmtrain.data.batch import IGNORE
from llmtrain.engine.step import Step
from llmtrain.model.build import build_model
from llmtrain.model.initialise import initialise
from llmtrain.model.kernels import linear_cross_entropy
from llmtrain.model.layers.dropout import Dropout
from llmtrain.parallel.apply import lay_out
from tests.helpers.layouts import ALONE, SETUPS, Found, here, local, prepare, run, share
from tests.helpers.processes import run_ranks
from tests.helpers.works import Work, bert, gpt, works

Together = list[dict[str, Any]]
DROPS = ["ddp2", "fsdp2", "tp2", "pp2", "pp2_gpipe", "pp2_interleaved"]
SKIPS = ["fsdp2", "tp2", "pp2", "cp2"]
PEAKS = ["fsdp2", "tp2", "pp2"]


def all_of_it(rank: int) -> dict[str, Any]:
    """What two processes do, started once for all tests."""
    return {
        "drops": drops(rank, DROPS),
        "skips": skips(rank, SKIPS),
        "peaks": peaks(rank, PEAKS),
        "blocks": in_blocks(rank),
        "terms": with_terms(rank),
    }


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Together:
    """What each of two processes found."""
    return run_ranks(all_of_it, 2, tmp_path_factory.mktemp("steps"), timeout=240)


def dropping() -> Work:
    """A classification with dropout everywhere, its head included."""
    work = works()["classify"]
    return replace(work, model=replace(work.model, dropout=0.3, num_layers=4))


def masks(step: Step) -> dict[str, list[str]]:
    """From now on, what each dropout layer has set to 0, call by call."""
    found: dict[str, list[str]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            zeros = (output == 0).numpy().tobytes()
            found.setdefault(name, []).append(hashlib.sha256(zeros).hexdigest())

        return hook

    for name, module in step.layout.model.named_modules():
        if isinstance(module, Dropout):
            module.register_forward_hook(note(name))
    return found


def drop(layout: str) -> dict[str, Any]:
    """The same two steps twice; all processes see the first share of the batch."""
    how, work = SETUPS[layout], dropping()
    results = []
    for _ in range(2):
        step = prepare(work, how)
        batches = share(work.batch(0), replace(step.layout.mesh, rank=0), how.microbatches)
        noted = masks(step)
        torch.rand(100)  # what ran before does not matter
        norms = []
        for number in range(2):
            result = step(batches, {"samples": 8.0}, number)
            norms.append(float(result.norm))
            step.clear_gradients()
        results.append((norms, float(result.stats["loss"]), noted))
    assert results[0] == results[1]
    norms, loss, noted = results[0]
    return {"norms": norms, "loss": loss, "masks": noted}


def drops(rank: int, layouts: list[str]) -> dict[str, dict[str, Any]]:
    return {layout: drop(layout) for layout in layouts}


EMBEDDED, HEAD = "backbone.dropout", "head.dropout"


@pytest.mark.parametrize("layout", ["ddp2", "fsdp2"])
def test_replicas_drop_differently(together: Together, layout: str) -> None:
    first, second = (answer["drops"][layout] for answer in together)
    for name, drawn in first["masks"].items():
        assert len({*drawn, *second["masks"][name]}) == 2 * len(drawn)
    assert first["loss"] != second["loss"]
    assert first["norms"] == second["norms"]
    assert first["norms"][0] != first["norms"][1]


def test_tensor_parallel_processes_drop_differently_but_in_heads(together: Together) -> None:
    first, second = (answer["drops"]["tp2"] for answer in together)
    assert not set(first["masks"][EMBEDDED]) & set(second["masks"][EMBEDDED])
    assert first["masks"][HEAD] == second["masks"][HEAD]
    assert len(set(first["masks"][HEAD])) == len(first["masks"][HEAD]) == 4
    assert first["loss"] == second["loss"]
    assert first["norms"] == second["norms"]


def test_stages_and_microbatches_drop_differently_in_any_schedule(together: Together) -> None:
    for layout in ("pp2", "pp2_gpipe", "pp2_interleaved"):
        drawn = [masks for answer in together for masks in answer["drops"][layout]["masks"].values()]
        assert len({mask for one in drawn for mask in one}) == sum(map(len, drawn))
    for answer in together:
        assert answer["drops"]["pp2"] == answer["drops"]["pp2_gpipe"]


@pytest.mark.slow
def test_heads_at_the_end_of_a_pipeline_drop_the_same_along_tp(tmp_path: Path) -> None:
    layout = "tp2_pp2"
    *_, one, other = (answer[layout] for answer in run_ranks(drops, 4, tmp_path, [layout], timeout=120))
    assert one["masks"][HEAD] == other["masks"][HEAD]
    assert len(set(one["masks"][HEAD])) == 2 * SETUPS[layout].microbatches
    for name, drawn in one["masks"].items():
        assert name == HEAD or not set(drawn) & set(other["masks"][name])
    assert one["loss"] == other["loss"]


def spoil(step: Step) -> None:
    """Let a number of a gradient that no other process has become infinite before it is clipped."""
    accumulate = step.layout.accumulate

    def accumulate_badly(*args: Any) -> Any:
        stats = accumulate(*args)
        name = next(name for name in step.layout.parameters if name.endswith("mlp.up.weight"))
        local(step.layout.parameters[name].grad).view(-1)[0] = torch.inf
        return stats

    step.layout.accumulate = accumulate_badly  # type: ignore[method-assign]


def skips(rank: int, layouts: list[str]) -> list[tuple[bool, bool, int]]:
    """Whether a step was taken for a bad one, whether all is as before, and names of bad gradients."""
    found = []
    for layout in layouts:
        for bad in range(2):
            work, how = works()["gpt"], SETUPS[layout]
            step = prepare(work, how)
            kept: list[Any] = list(step.layout.parameters.values())
            kept += [value for state in step.optimizer.state.values() for value in state.values()]
            before = [local(one).clone() for one in kept]
            if rank == bad:
                spoil(step)
            batches = share(work.batch(0), step.layout.mesh, how.microbatches)
            result = step(batches, work.objective.count(work.batch(0)), 0)
            same = all(map(torch.equal, before, map(local, kept)))
            found.append((bool(result.finite[1]), same, len(step.non_finite_gradients())))
    return found


def test_a_bad_gradient_in_one_process_leaves_all_as_they_are(together: Together) -> None:
    first, second = (answer["skips"] for answer in together)
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        for finite, same, _ in (one, other):
            assert not finite
            assert same
        assert (one, other)[number % 2][2] == 1  # infinite where it arose; elsewhere clipped away


def big_works() -> list[Work]:
    """Of whose parameters the greatest is a small part."""
    shape = {"num_layers": 4, "dim": 64}
    return [replace(works()["gpt"], model=gpt(**shape)), replace(works()["bert"], model=bert(**shape))]


def peaks(rank: int, layouts: list[str]) -> list[int]:
    """Most bytes at once in this process, from the model's description to its first values."""
    found = []
    for layout in layouts:
        how = SETUPS[layout]
        for work in big_works():
            mesh = here(how.parallel)
            with MemTracker() as tracker:
                model = build_model(work.model, work.objective.build_head)
                lay_out(model, mesh, how.parallel, "fp32")
                initialise(model, 0)
            found.append(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])
    return found


def test_nobody_ever_holds_the_whole_model(together: Together) -> None:
    by_rank = [answer["peaks"] for answer in together]
    models = [build_model(work.model, work.objective.build_head) for work in big_works()] * len(PEAKS)
    for number, model in enumerate(models):
        sizes = [one.nbytes for one in model.parameters()]
        for peak in by_rank:
            # The halves of a pipeline differ: one has the positions, both have a tied embedding.
            assert peak[number] < 0.54 * sum(sizes) + max(sizes)


SPLIT = ("gpt", "few_tokens", "bert")


def in_blocks(rank: int) -> list[Found]:
    """With so few logits at once that the labels of a microbatch take several blocks of them."""
    usual = linear_cross_entropy.MAX_LOGITS
    linear_cross_entropy.MAX_LOGITS = 5 * 32
    found = [run(works()[name], SETUPS["tp2"], steps=1) for name in SPLIT]
    linear_cross_entropy.MAX_LOGITS = usual
    return found


def test_blocks_of_logits_are_the_same_wherever_the_padding_is(together: Together) -> None:
    for number, name in enumerate(SPLIT):
        expected = run(works()[name], ALONE, steps=1)
        for answer in together:
            assert answer["blocks"][number].losses == pytest.approx(expected.losses, rel=1e-6)
            assert answer["blocks"][number].norms == pytest.approx(expected.norms, rel=1e-5)


TERMS = linear_cross_entropy.LossTerms(label_smoothing=0.1, z_loss=1e-2)


def inputs_of_the_loss() -> tuple[torch.Tensor, ...]:
    """Hidden states, weight and bias of 12 classes of which 5 are padding, and labels."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((9, 4), (12, 4), (12,))
    )
    labels = torch.randint(0, 7, (9,), generator=generator)
    labels[4] = IGNORE
    return hidden, weight, bias, labels


def with_terms(rank: int) -> list[torch.Tensor]:
    """Loss and gradients of smoothed labels with a z-loss, each process with half of the classes.

    The second process has one real class.
    """
    hidden, weight, bias, labels = inputs_of_the_loss()
    shard = linear_cross_entropy.VocabularyShard(dist.group.WORLD, 6 * rank, 7)
    own = slice(6 * rank, 6 * rank + 6)
    loss, correct = linear_cross_entropy.linear_cross_entropy(
        hidden, weight[own], labels, (6, 1)[rank], bias[own], True, shard, TERMS
    )
    assert correct is not None
    return [loss.detach(), correct, *torch.autograd.grad(loss, (hidden, weight, bias))]


def test_terms_of_the_loss_are_the_same_over_shared_classes(together: Together) -> None:
    hidden, weight, bias, labels = inputs_of_the_loss()
    loss, correct = linear_cross_entropy.linear_cross_entropy_reference(
        hidden, weight, labels, 7, bias, True, TERMS
    )
    grads = torch.autograd.grad(loss, (hidden, weight, bias))
    for rank, answer in enumerate(together):
        own_loss, own_correct, grad_hidden, grad_weight, grad_bias = answer["terms"]
        torch.testing.assert_close(own_loss, loss.detach())
        assert own_correct == correct
        torch.testing.assert_close(grad_hidden, grads[0])
        own = slice(6 * rank, 6 * rank + 6)
        torch.testing.assert_close(grad_weight[own], grads[1][own])
        torch.testing.assert_close(grad_bias[own], grads[2][own])
