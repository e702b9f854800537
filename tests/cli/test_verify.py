"""`llmtrain verify`: names of layouts, what is changed, deviations, verdicts, and one real comparison."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import pytest

from llmtrain.command.children import Children
from llmtrain.command.completion import candidates
from llmtrain.command.deviation import Curve, deviation, read_curve, relative
from llmtrain.command.layouts import SELECTION, Layout, choose_layouts, named_layout, read_terms
from llmtrain.command.style import Style
from llmtrain.command.verification import Result, Verdict, Verification, read_problems
from llmtrain.command.verify import accumulated, make_plan
from llmtrain.compose.compose import compose
from llmtrain.schema.load import dump, flatten
from llmtrain.schema.parallel import Degrees, ParallelConfig, PipelineSchedule, resolve_degrees
from llmtrain.schema.verify import VerifyConfig
from llmtrain.utils.errors import ConfigError, DivergedError, ExitCode
from llmtrain.utils.signals import release_signals
from tests.helpers.command import llmtrain
from tests.helpers.paths import ROOT

Cli = Callable[..., Any]
STYLE = Style(colour=False)


@pytest.mark.parametrize(
    ("name", "degrees", "schedule"),
    [
        ("ddp2", {"dp_replicate": 2}, None),
        ("hsdp2x4", {"dp_replicate": 2, "dp_shard": 4}, None),
        ("cp2-tp16-fsdp3", {"cp": 2, "tp": 16, "dp_shard": 3}, None),
        ("pp2-zero-bubble", {"pp": 2}, PipelineSchedule.zero_bubble),
        ("1f1b-pp4-tp2", {"pp": 4, "tp": 2}, PipelineSchedule.one_forward_one_backward),
    ],
)
def test_names_of_layouts(name: str, degrees: dict[str, int], schedule: PipelineSchedule | None) -> None:
    assert read_terms(name) == (degrees, schedule)
    layout = named_layout(name, ParallelConfig())
    assert layout.degrees == Degrees(**degrees)
    assert resolve_degrees(layout.parallel, layout.processes)[1] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "no layout ''"),
        ("tp", "no layout"),
        ("tp2-", "no layout"),
        ("tp2_pp2", "no layout"),
        ("hsdp2", "no layout"),
        ("tp1", "a degree of 1"),
        ("tp2-tp4", "parallel.tp twice"),
        ("hsdp2x2-fsdp2", "parallel.dp_shard twice"),
        ("tp2-gpipe", "needs a degree of pp"),
        ("pp2-gpipe-interleaved", "one schedule only"),
    ],
)
def test_names_that_are_none(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_terms(name)


def test_a_named_layout_replaces_all_degrees_and_keeps_the_rest() -> None:
    base = ParallelConfig(dp_shard=-1, cuts=[1, 2, 3], stages_per_process=3, tp=4)
    layout = named_layout("ddp2-pp2", base)
    assert layout.parallel == ParallelConfig(dp_replicate=2, pp=2, stages_per_process=3)
    assert layout.words(base) == [
        "parallel.dp_replicate=2",
        "parallel.dp_shard=1",
        "parallel.tp=1",
        "parallel.pp=2",
        "parallel.cuts=null",
        "launch.num_processes=4",
    ]
    assert Layout("own", 4, base).words(ParallelConfig())[-2:] == [
        "parallel.cuts=[1,2,3]",
        "launch.num_processes=4",
    ]


def test_which_layouts_are_chosen() -> None:
    base = ParallelConfig()
    own = Layout("own", 2, ParallelConfig(dp_replicate=1, tp=2))
    chosen = {
        "nothing said": choose_layouts([], base, None),
        "a config with degrees": choose_layouts([], base, own),
        "all, of which one is own": choose_layouts(["all"], base, own),
        "the same twice": choose_layouts(["tp2-ddp2", "ddp2-tp2", "tp2"], base, None),
    }
    assert {what: [one.name for one in layouts] for what, (layouts, _) in chosen.items()} == {
        "nothing said": list(SELECTION),
        "a config with degrees": ["own"],
        "all, of which one is own": ["own", *(name for name in SELECTION if name != "tp2")],
        "the same twice": ["tp2-ddp2", "tp2"],
    }
    _, problems = choose_layouts(["own", "ttp2", "fsdp2"], base, None)
    assert ["takes one process" in one.what or "no layout 'ttp2'" in one.what for one in problems] == [
        True
    ] * 2
    assert "did you mean 'tp2'" in problems[1].fix


def test_relative_deviation() -> None:
    assert relative(2.0, 2.5) == relative(-2.0, -2.5) == 0.25
    assert relative(0.0, 0.0) == 0
    for expected, actual in ((0.0, 1e-9), (1.0, math.nan), (1.0, None), (math.inf, math.inf)):
        assert relative(expected, actual) == math.inf


def test_deviation_of_curves() -> None:
    told = VerifyConfig(loss_tolerance=1e-3, norm_tolerance=1e-2)
    reference = Curve({1: 4.0, 2: 2.0, 3: 1.0}, {1: 1.0, 2: 1.0, 3: 1.0}, 5.0)
    same = deviation(reference, Curve({1: 4.0, 2: 2.001, 3: 1.0}, {1: 1.0, 2: 1.0, 3: 0.995}, 5.0), told)
    assert same.loss == pytest.approx(5e-4)
    assert same.gradient_norm == pytest.approx(5e-3)
    assert (same.validation_loss, same.where) == (0.0, "")
    for losses, norms, validation, where in (
        ({1: 4.0, 2: 2.1, 3: 1.1}, reference.norms, 5.0, "at step 2"),
        (reference.losses, {1: 1.0, 2: 1.0, 3: 1.1}, 5.0, "at step 3"),
        (reference.losses, reference.norms, 5.1, "in validation"),
        (reference.losses, reference.norms, None, "in validation"),
        ({1: 4.0, 2: 2.0}, {1: 1.0, 2: 1.0}, 5.0, "at step 3"),
        ({}, {}, 5.0, "at step 1"),
    ):
        assert deviation(reference, Curve(losses, norms, validation), told).where == where


def test_reading_a_curve(tmp_path: Path) -> None:
    assert read_curve(tmp_path) == Curve()
    records = [
        {"kind": "train", "step": 1, "loss": 2.0, "gradient_norm": 1.0},
        {"kind": "validation", "step": 1, "validation_loss": 3.0, "validation_accuracy": 0.5},
        {"kind": "train", "step": 2, "loss": None, "gradient_norm": 1.0},
        {"kind": "validation", "step": 2, "validation_loss": 2.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    curve = read_curve(tmp_path)
    assert math.isnan(curve.losses[2])
    assert (curve.losses[1], dict(curve.norms), curve.validation_loss) == (2.0, {1: 1.0, 2: 1.0}, 2.5)
    assert not curve.finite


@pytest.mark.parametrize(
    ("given", "taken"), [("0.02", 0.5), ("0", 0.5), ("5", None), ("20", 0.5), ("0.7", None)]
)
def test_the_comparison_warms_up_so_that_roundings_stay_roundings(given: str, taken: float | None) -> None:
    plan = make_plan([f"schedule.warmup={given}", "verify.steps=20"], None)
    told = {change.key: change.new for change in plan.changes}
    assert told.get("schedule.warmup") == taken


def test_only_what_is_told_differs_from_the_user_s_config() -> None:
    words = ["model=bert/tiny", "objective=mlm", "tokenizer=wordpiece", "train.tokens=1e9", "run.name=mine"]
    words += ["schedule.warmup=1000", "precision=bf16", "parallel=fsdp", "launch.num_processes=2"]
    words += ["train.micro_batch_size=4", "optim.lr=0.003"]
    plan = make_plan([*words, "verify.steps=7", "verify.layouts=[own,tp2-ddp2]"], None)
    assert [layout.name for layout, _ in plan.layouts] == ["single", "own", "tp2-ddp2"]
    assert plan.verb == "pretrain"
    mine = flatten(dump(compose("pretrain", words)[0].config))
    told = {change.key: (change.old, change.new) for change in plan.changes}
    assert told["train.tokens"] == (1_000_000_000, None)
    assert told["model.dropout"] == (0.1, 0.0)
    assert told["schedule.warmup"] == (1000, 0.5)
    for layout, degrees in zip(
        (layout for layout, _ in plan.layouts),
        (Degrees(), Degrees(dp_shard=2), Degrees(dp_replicate=2, tp=2)),
        strict=True,
    ):
        verb, *child_words = plan.words_for(layout)
        (child,) = compose(verb, child_words)
        theirs = flatten(dump(child.config))
        differ = {key: (mine.get(key), theirs[key]) for key in theirs if theirs[key] != mine.get(key)}
        own = {key: differ.pop(key) for key in list(differ) if key.startswith(("parallel.", "launch."))}
        assert differ == told
        assert set(own) <= {f"parallel.{axis}" for axis in ("dp_replicate", "dp_shard", "tp")} | {
            "launch.num_processes",
            "launch.threads",
        }
        assert resolve_degrees(child.config.parallel, layout.processes) == (degrees, [])
        assert child.config.launch.num_processes == layout.processes


def test_dropout_of_fine_tuning_and_the_folder_of_configs(tmp_path: Path) -> None:
    plan = make_plan(["task.paths=[a.tsv]", "finetune", "init_from=run"], str(tmp_path))
    assert ("dropout", None, 0.0) in [(change.key, change.old, change.new) for change in plan.changes]
    words = plan.words_for(plan.layouts[1][0])
    assert words[0] == "finetune"
    assert words[-2:] == ["--config-dir", str(tmp_path)]


def test_combinations_that_cannot_work_are_refused_with_sizes() -> None:
    plan = make_plan(["model=gpt/debug", "verify.layouts=[ddp2,pp4,tp4,ddp3]"], None)
    refused = {layout.name: problems for layout, problems in plan.layouts if problems}
    assert refused.keys() == {"pp4", "tp4", "ddp3"}
    assert "4 stages of a model with 2 blocks" in refused["pp4"][0].what
    assert "2 attention heads" in refused["tp4"][0].what
    assert "train.batch_size=" in refused["ddp3"][0].fix


class Scripted(Children):
    """In place of real trainings: writes curves, or ends with an error."""

    def __init__(self, outcomes: dict[str, Any]) -> None:
        super().__init__()
        self.outcomes = outcomes
        self.ran: list[str] = []

    def run(
        self,
        command: Sequence[str],
        output: IO[bytes] | None = None,
        errors: IO[bytes] | None = None,
        watch: Callable[[], None] | None = None,
    ) -> tuple[int, float]:
        run = Path(command[-1].removeprefix("run.dir="))
        self.ran.append(run.name)
        outcome = self.outcomes[run.name]
        if isinstance(outcome, tuple):
            code, text = outcome
            assert errors is not None
            errors.write(text.encode())
            return code, 1.0
        if outcome == "signal":
            self.stopped_by = signal.SIGTERM
            return ExitCode.TERMINATED, 1.0
        ran = Degrees(dp_replicate=2) if run.name == "alone" else Degrees()
        checkpoint = run / "checkpoints/step-00000001"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").write_text(json.dumps({"layout": asdict(ran)}))
        losses = [json.dumps({"kind": "train", "step": 1, "loss": outcome, "gradient_norm": 1.0})]
        (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in losses))
        return 0, 1.0


REFUSAL = "warning: something\nerror: rank 1 failed with exit code 2: 3 heads\n  where: model\n  do: give 4\n"


def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **outcomes: Any) -> Verification:
    """A verification of `single` and others whose trainings end as it is said."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    results = [Result(Layout(name, 1, ParallelConfig()), ["pretrain"]) for name in outcomes]
    others = [result for result in results if result.layout.name != "accumulating"]
    accumulated = next((result for result in results if result not in others), None)
    return Verification(others, VerifyConfig(steps=1), STYLE, accumulated, Scripted(outcomes))


def test_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    crash = (
        1,
        "error: RuntimeError: boom\n  where: rank 0, traceback in x\n  do: please report this as a bug\n",
    )
    done = scripted(
        tmp_path, monkeypatch, single=2.0, near=2.0000001, far=2.1, lost=None, no=(2, REFUSAL), crash=crash
    )
    assert done.run() == ExitCode.BUG
    assert [result.verdict.value for result in done.results] == [
        *("reference", "equal", "differs", "differs", "refused", "failed")
    ]
    printed = " ".join(capsys.readouterr().out.split())
    for words in (
        "far 1 5.0e-02 0.0e+00 - 1.0 s DIFFERS at step 1",
        "lost 1 inf",
        "no refused: 3 heads (give 4)",
        "crash failed: RuntimeError: boom",
        "to repeat far: llmtrain pretrain",
        "3 of 4 layouts that ran are not equal",
        "1 refused",
    ):
        assert words in printed
    (kept,) = tmp_path.iterdir()
    assert str(kept) in printed
    assert (kept / "far").is_dir()
    assert not (kept / "near").exists()
    done.write(tmp_path / "out.json", {"verb": "pretrain"})
    rows = json.loads((tmp_path / "out.json").read_text())["layouts"]
    assert rows[2]["deviation"]["where"] == "at step 1"
    assert rows[3]["deviation"]["loss"] is None
    assert rows[4]["problems"] == [{"what": "3 heads", "where": "model", "fix": "give 4"}]


def test_all_equal_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = scripted(tmp_path, monkeypatch, single=2.0, one=2.0, no=(3, REFUSAL))
    assert done.run() == ExitCode.OK
    assert "the layout that ran is equal" in done.conclusion()
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_magnifies_roundings_is_compared_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = scripted(tmp_path, monkeypatch, single=2.0, near=2.0, shaky=2.0008, far=2.1, accumulating=2.0002)
    assert done.run() == ExitCode.BUG
    assert [result.verdict.value for result in done.results] == [
        *("reference", "equal", "equal but for roundings", "differs")
    ]
    printed = " ".join(capsys.readouterr().out.split())
    assert "accumulating 1 1.0e-04 0.0e+00 - 1.0 s reference near" in printed
    assert "1 of 3 layouts that ran is not equal to one process" in printed
    assert "1 of them but for roundings: one process that accumulates differs as much" in printed
    assert [path.name for path in next(tmp_path.iterdir()).iterdir() if path.is_dir()] == ["single", "far"]


def test_where_all_are_equal_one_process_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = scripted(tmp_path, monkeypatch, single=2.0, one=2.0, accumulating=2.5)
    assert done.run() == ExitCode.OK
    assert isinstance(done.children, Scripted)
    assert done.children.ran == ["single", "one"]


@pytest.mark.parametrize(
    ("words", "smaller"),
    [
        (["train.batch_size=16"], 8),
        (["train.micro_batch_size=9", "train.batch_size=9"], 3),
        (["train.batch_size=7"], 1),
    ],
)
def test_one_process_accumulates_over_a_smaller_part(words: list[str], smaller: int) -> None:
    again = accumulated(make_plan(words, None))
    assert again is not None
    assert f"train.micro_batch_size={smaller}" in again.words
    assert accumulated(make_plan(["train.batch_size=1"], None)) is None


def test_nothing_to_compare_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scripted(tmp_path, monkeypatch, single=2.0, no=(2, REFUSAL)).run() == ExitCode.CONFIG
    with pytest.raises(DivergedError, match="not finite"):
        scripted(tmp_path, monkeypatch, single=None, one=2.0).run()


def test_where_one_process_fails_nothing_else_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = scripted(tmp_path, monkeypatch, single=(3, "error: no file\n"), one=2.0)
    assert done.run() == ExitCode.DATA
    assert isinstance(done.children, Scripted)
    assert done.children.ran == ["single"]
    assert capsys.readouterr().err == "error: no file\n"
    assert list(tmp_path.iterdir()) == []


def test_a_run_under_another_layout_is_no_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = scripted(tmp_path, monkeypatch, single=2.0, alone=2.0)
    assert done.run() == ExitCode.BUG
    assert done.results[1].problems[0].what == "it ran as dp_replicate=2, not as single"


def test_a_signal_ends_it_with_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = scripted(tmp_path, monkeypatch, single=2.0, one=2.0, two="signal", three=2.0)
    assert done.run() == ExitCode.TERMINATED
    assert [result.verdict for result in done.results][2:] == [Verdict.not_run] * 2
    assert "2 not run" in done.conclusion()
    assert list(tmp_path.iterdir()) == []


def test_problems_of_a_training_without_words() -> None:
    assert read_problems("", 137)[0].what == "ended with exit code 137 (killed)"
    assert read_problems("Traceback\nValueError: x", 1)[0].what == "ValueError: x"


def test_a_signal_is_passed_on_to_the_child() -> None:
    release_signals()  # a command of another test may have held them
    children = Children()
    sent: list[int] = []

    def send() -> None:
        if not sent:
            sent.append(signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    with children:
        code, seconds = children.run([sys.executable, "-S", "-c", "import time; time.sleep(30)"], watch=send)
    assert (code, children.exit_code) == (128 + signal.SIGUSR1, ExitCode.REQUEUE)
    assert seconds < 20
    assert signal.getsignal(signal.SIGUSR1) is before


def test_all_mistakes_at_once(cli: Cli) -> None:
    words = ["verfy.steps=3", "verify.steps=0", "verify.layotus=all", "modle.dim=3", "evaluate", "prtrain"]
    result = cli("verify", *words)
    assert result.code == 2
    assert result.err.count("error:") == 6
    for text in ("did you mean 'verify.steps'", "did you mean 'verify.layouts'", "unknown key 'modle.dim'"):
        assert text in result.err
    for text in ("verify.steps must be greater than 0", "evaluate trains nothing", "did you mean 'pretrain'"):
        assert text in result.err
    result = cli("verify", "verify.layouts=[tpp2,own]", "verify.json=missing/out.json")
    assert result.code == 2
    assert "where: command line: verify.layouts=[tpp2,own]" in result.err
    assert "there is no folder" in result.err
    assert "your config has no layout of its own" in result.err
    assert cli("verify", "parallel.tp=3", "launch.num_processes=2").code == 2


def test_help_config_and_dry_run(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "verify" in cli("--help").out
    text = cli("verify", "--help").out
    for word in ("verify.loss_tolerance", "[1e-06]", "zero-bubble", "hsdp2x4", "pretrain|finetune"):
        assert word in text
    config = cli("verify", "experiment=debug", "verify.steps=3", "--cfg", "job").out
    assert "precision: fp32" in config
    assert "steps: 3" in config
    shown = cli("verify", "experiment=debug", "verify.layouts=[tp2,tp4]", "--dry-run")
    assert shown.code == 0
    assert "auto -> fp32" in shown.out
    assert "parallel.tp=2 launch.num_processes=2" in shown.out
    assert "refused:" in shown.out
    assert list(tmp_path.iterdir()) == []
    assert cli("verify", "-m", "train.steps=1,2").code == 2
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert "starts its own processes" in cli("verify").err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["veri"], {"verify"}),
        (["verify", "f"], {"finetune"}),
        (["verify", "verify.l"], {"verify.layouts=", "verify.loss_tolerance="}),
        (["verify", "verify.layouts=ddp2-t"], {"verify.layouts=ddp2-tp2", "verify.layouts=ddp2-tp2-pp2"}),
        (["verify", "finetune", "task=classification/ss"], {"task=classification/sst2"}),
        (["verify", "model=gpt/d"], {"model=gpt/debug"}),
    ],
)
def test_completion(words: list[str], expected: set[str]) -> None:
    assert set(candidates(words)) == expected


def test_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from llmtrain.cli import main; main(['verify', 'experiment=debug', '--dry-run']);"
        "assert not {'torch', 'numpy', 'datasets'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, timeout=60, check=True)


@pytest.fixture
def equivalence() -> ModuleType:
    """`scripts/equivalence.py` as a module."""
    spec = importlib.util.spec_from_file_location("equivalence", ROOT / "scripts/equivalence.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["equivalence"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def test_the_table_of_the_readme(equivalence: ModuleType) -> None:
    def row(name: str, verdict: str, loss: float | None = None) -> dict[str, Any]:
        problems = [{"what": "no cp", "where": "", "fix": ""}] if verdict == "refused" else []
        found = None if verdict == "refused" else {"loss": loss, "gradient_norm": 2e-7}
        return {"name": name, "processes": 2, "verdict": verdict, "deviation": found, "problems": problems}

    told = {"steps": 20, "loss_tolerance": 1e-6, "norm_tolerance": 1e-5}
    results = [
        {
            **told,
            "layouts": [row("single", "reference"), row("tp2", "equal", 1e-7), row("cp2", "equal", 0.0)],
        },
        {**told, "layouts": [row("single", "reference"), row("tp2", "differs"), row("cp2", "refused")]},
    ]
    text = equivalence.table([equivalence.Work("A", []), equivalence.Work("B", [])], results)
    assert "| layout | processes | A | B |" in text
    assert "| `tp2` | 2 | ✓ 1.0e-07, 2.0e-07 | ✗ not finite, 2.0e-07 |" in text
    assert "| `cp2` | 2 | ✓ 0.0e+00, 2.0e-07 | refused |" in text
    assert "B, `cp2`: no cp." in text
    begin, end = equivalence.BEGIN, equivalence.END
    assert equivalence.put_between(f"a\n{begin}\nold\n{end}\nb", "new") == f"a\n{begin}\nnew\n{end}\nb"
    with pytest.raises(ValueError, match="must be one line"):
        equivalence.put_between("a", "new")
    equivalence.put_between((ROOT / "README.md").read_text(encoding="utf-8"), "")


def test_the_trainings_of_the_table_can_have_every_layout(equivalence: ModuleType) -> None:
    for words in (equivalence.GPT, equivalence.BERT):
        plan = make_plan([*words, "verify.layouts=all"], None)
        assert [layout.name for layout, problems in plan.layouts if problems] == []
        assert len(plan.layouts) == 1 + len(SELECTION)


@pytest.mark.slow
def test_two_processes_are_equal_to_one(tmp_path: Path, sentences: Path) -> None:
    words = ["model=gpt/debug", "tokenizer=bytes", "data=text", f"data.paths=[{sentences}]"]
    words += ["data.max_tokens=4000", "data.validation_fraction=0.1", "data.documents=paragraph"]
    words += ["train.batch_size=4", "train.sequence_length=32", "launch.threads=1"]
    words += ["verify.layouts=[ddp2,tp4]", "verify.steps=3", "verify.json=out.json"]
    done = llmtrain("verify", *words, cwd=tmp_path, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    single, ddp, refused = json.loads((tmp_path / "out.json").read_text())["layouts"]
    assert [one["verdict"] for one in (single, ddp, refused)] == ["reference", "equal", "refused"]
    assert 0 <= ddp["deviation"]["loss"] < 1e-6
    assert ddp["deviation"]["validation_loss"] < 1e-6
    assert "2 attention heads" in done.stdout
    assert "the layout that ran is equal to one process" in done.stdout
    assert not list(tmp_path.glob("llmtrain-verify-*"))


def test_a_wrong_layout_of_a_config_is_an_error() -> None:
    with pytest.raises(ConfigError, match="attention heads"):
        make_plan(["model=gpt/debug", "parallel.tp=4"], None)
