"""Hooks that only look: what they report is right in every layout, and no bit of a training changes."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmtrain.engine.watch import NormsHook, ProfileHook, group_of, num_shards
from llmtrain.model.build import build_model
from llmtrain.recipe.pretrain import text_work
from llmtrain.recipe.training import train
from llmtrain.schema.roots import PretrainConfig
from tests.helpers.command import tensor_bytes
from tests.helpers.layouts import ALONE, CLIP_NORM, SETUPS, Setup, prepare, share
from tests.helpers.processes import run_ranks
from tests.helpers.recipes import call, context, pretrain
from tests.helpers.trainings import composed_config
from tests.helpers.works import Work, works

LAYOUTS = ["ddp2", "fsdp2", "tp2", "pp2"]
TEXT = "The cat sat on the mat.\n\nThe dog ran to the house and sat down.\n\n"


def norms(work: Work, how: Setup, steps: int = 2) -> list[dict[str, Any]]:
    """What the hook reports of each step."""
    with torch.device("meta"):
        whole = build_model(work.model, work.objective.build_head)
    step, records = prepare(work, how), list[dict[str, Any]]()
    hook = NormsHook(1, dict(whole.named_parameters()), CLIP_NORM)
    engine: Any = SimpleNamespace(
        step=step, state=SimpleNamespace(step=0), total_steps=steps, report=records.append
    )
    hook.start(engine)
    for number in range(steps):
        batch = work.batch(number)
        own = share(batch, step.layout.mesh, how.microbatches)
        result = step(own, work.objective.count(batch), number)
        engine.state.step += 1
        hook.before_clear(engine, result)
        total = sum(v**2 for name, v in records[-1].items() if name.startswith("gradient_norm/")) ** 0.5
        assert total == pytest.approx(float(result.norm), rel=1e-4), (
            "together they are the norm that is clipped"
        )
        step.clear_gradients()
    return records


def in_layouts(rank: int, trainings: list[tuple[PretrainConfig, Path]]) -> dict[str, list[dict[str, Any]]]:
    """What two processes do, started once for all tests."""
    for config, run in trainings:
        assert train(config, context(run), text_work) == 0
    return {name: norms(work_of(name), SETUPS[name], steps=1) for name in LAYOUTS}


def work_of(layout: str) -> Work:
    return works()["llama" if layout == "tp2" else "gpt"]


@dataclass
class Together:
    """What two processes reported in each layout, and the folder of what they trained."""

    norms: list[dict[str, list[dict[str, Any]]]]
    folder: Path


SPREAD = {"ddp2": [], "fsdp2": ["parallel.dp_shard=2"], "pp2": ["parallel.pp=2"], "tp2": ["parallel.tp=2"]}
SAMPLED = ["train.steps=1", "precision=fp32", "log.sample_every=1", "log.sample_tokens=6", "compile=never"]


def sampled_config(folder: Path, objective: str, *words: str) -> PretrainConfig:
    """A short training that draws samples."""
    data = ["data=text", f"data.paths=[{folder / 'text.txt'}]", "data.validation_fraction=0"]
    model = ["model=gpt/debug"] if objective == "causal" else ["model=bert/debug", "tokenizer=wordpiece"]
    shape = ["tokenizer.vocab_size=300", "train.batch_size=8", "train.sequence_length=32"]
    shape += ["train.micro_batch_size=2"] if "parallel.pp=2" in words else []
    return composed_config(*data, f"objective={objective}", *model, *shape, *SAMPLED, *words)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Together:
    folder = tmp_path_factory.mktemp("watched")
    (folder / "text.txt").write_text(TEXT * 60)
    jobs = [
        (sampled_config(folder, objective, *words, "launch.num_processes=2"), folder / f"{objective}-{name}")
        for objective, name, words in (
            *(("causal", name, words) for name, words in SPREAD.items()),
            ("mlm", "pp2", SPREAD["pp2"]),
        )
    ]
    return Together(run_ranks(in_layouts, 2, folder, jobs, timeout=240), folder)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """What happened in a run."""
    lines = (run / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.mark.parametrize("objective", ["causal", "mlm"])
def test_samples_are_the_same_in_every_layout(together: Together, objective: str) -> None:
    folder = together.folder
    assert train(sampled_config(folder, objective), context(folder / objective), text_work) == 0
    (alone,) = events(folder / objective, "sample")
    assert alone["sample"]
    for name in SPREAD if objective == "causal" else ["pp2"]:
        found = events(folder / f"{objective}-{name}", "sample")
        if name == "tp2":
            (started,) = events(folder / f"{objective}-{name}", "started")
            assert not found
            assert "log.sample_every is left out: no process has the scores" in started["text"]
        else:
            assert [(one["prompt"], one["sample"]) for one in found] == [(alone["prompt"], alone["sample"])]


def test_norms_are_those_of_torch() -> None:
    work = works()["gpt"]
    (first, second) = norms(work, ALONE)
    step = prepare(work, ALONE)
    batch = work.batch(0)
    step([batch], work.objective.count(batch), 0)
    expected: dict[str, float] = {}
    for name, parameter in step.layout.parameters.items():
        key = f"weight_norm/{group_of(name)}"
        expected[key] = expected.get(key, 0.0) + float(parameter.detach().double().square().sum())
    assert {name: value for name, value in first.items() if name in expected} == pytest.approx(
        {name: value**0.5 for name, value in expected.items()}, rel=1e-5
    )
    assert {"kind", "step", "gradient_norm/block_01", "weight_norm/embedding"} <= first.keys()
    assert second["step"] == 2


def test_norms_are_the_same_in_every_layout(together: Together) -> None:
    for name in LAYOUTS:
        alone = norms(work_of(name), ALONE, steps=1)
        for records in (found[name] for found in together.norms):
            for record, expected in zip(records, alone, strict=True):
                numbers = {key: value for key, value in record.items() if key != "kind"}
                assert numbers == pytest.approx({key: expected[key] for key in numbers}, rel=1e-4), name
                assert numbers.keys() == expected.keys() - {"kind"}


def test_parts_of_a_model_have_names() -> None:
    assert group_of("backbone.blocks.3.attention.query.weight") == "block_03"
    assert group_of("backbone.embedding.weight") == "embedding"
    assert group_of("head.masked.dense.bias") == "head"
    assert num_shards(torch.nn.Parameter(torch.zeros(2))) == 1


def test_watching_changes_no_bit(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 30)
    watched = [
        "log.every=1",
        "log.norms=true",
        "log.sample_every=1",
        "log.sample_tokens=5",
        "log.profile=[1,2]",
    ]
    runs = [
        pretrain(tmp_path / name, text, "objective=causal", "model=gpt/debug", "model.dropout=0.1", *words)
        for name, words in (("plain", []), ("watched", [*watched, "log.sample_prompts=[the cat,'']"]))
    ]
    checkpoints = [tensor_bytes(run / "checkpoints/step-00000002") for run in runs]
    assert checkpoints[0] == checkpoints[1]
    events = [json.loads(line) for line in (runs[1] / "events.jsonl").read_text().splitlines()]
    samples = [(one["step"], one["prompt"]) for one in events if one["event"] == "sample"]
    assert samples == [(1, "the cat"), (1, ""), (2, "the cat"), (2, "")]
    kinds = [json.loads(line)["kind"] for line in (runs[1] / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("norms") == 2
    with gzip.open(runs[1] / "profile/rank0.trace.json.gz", "rt") as file:
        trace = json.load(file)
    assert any(event.get("name") == "aten::mm" for event in trace["traceEvents"])
    assert "Self CPU" in (runs[1] / "profile/rank0.operations.txt").read_text()
    page = (runs[1] / "report.html").read_text()
    assert "gradient norm of each part" in page
    assert "the cat" in page


def test_a_model_of_masked_tokens_fills_masks(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 30)
    words = ["objective=mlm", "model=bert/debug", "log.sample_every=2", "log.every=1"]
    given = pretrain(tmp_path / "given", text, *words, "log.sample_prompts=['the [MASK] sat [MASK]']")
    (event,) = [
        one
        for line in (given / "events.jsonl").read_text().splitlines()
        if (one := json.loads(line))["event"] == "sample"
    ]
    assert event["prompt"] == "the [MASK] sat [MASK]"
    assert event["sample"].startswith(" -> the [")
    own = pretrain(tmp_path / "own", text, *words)
    events = (own / "events.jsonl").read_text()
    assert "[MASK]" in events
    assert ", not " in events
    code = [*words, "log.sample_prompts=['no mask']", "data=text", f"data.paths=[{text}]"]
    with pytest.raises(Exception, match="has no"):
        call("pretrain", *code, "tokenizer=wordpiece", "tokenizer.vocab_size=120", run=tmp_path / "wrong")


def test_a_profile_covers_the_steps_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    engine: Any = SimpleNamespace(state=SimpleNamespace(step=0), total_steps=9)
    monkeypatch.setattr(ProfileHook, "_write", lambda self, engine: calls.append(("end", engine.state.step)))
    profiler = SimpleNamespace(start=lambda: calls.append(("start", engine.state.step)))
    monkeypatch.setattr(torch.profiler, "profile", lambda **options: profiler)
    engine.step = SimpleNamespace(device=torch.device("cpu"))
    hook = ProfileHook(3, 4, tmp_path)
    hook.start(engine)
    while engine.state.step < 4:
        engine.state.step += 1
        hook.after_step(engine)
    assert calls == [("start", 2), ("end", 4)]
