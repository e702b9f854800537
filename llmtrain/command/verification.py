"""The trainings of `llmtrain verify`: run them, compare their curves, tell what was found."""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from llmtrain.command.children import Children
from llmtrain.command.deviation import Curve, Deviation, deviation, read_curve, within
from llmtrain.command.layouts import Layout
from llmtrain.command.style import Style
from llmtrain.schema.parallel import Degrees
from llmtrain.schema.verify import VerifyConfig
from llmtrain.utils.errors import EXIT_MEANING, DataError, DivergedError, ExitCode, Problem
from llmtrain.utils.io import read_json, write_json
from llmtrain.utils.run_directory import RunDirectory

OWN_ROUNDINGS = 10.0
"""A layout may deviate so many times as much as one process does from itself when it accumulates gradients:
both only add up in another order, but not by the same amount."""

EXPLAINED = (ExitCode.CONFIG, ExitCode.DATA)
"""Exit codes of a training that cannot work as it was asked for; one process has shown that all else can."""


class Verdict(str, Enum):
    """What became of a layout."""

    reference = "reference"
    equal = "equal"
    rounding = "equal but for roundings"
    differs = "differs"
    refused = "refused"
    failed = "failed"
    not_run = "not run"


@dataclass
class Result:
    """One line of the table.

    Attributes:
        layout: what was trained under.
        words: of the command line, without the run directory.
        problems: why it was refused or failed.
        deviation: from one process, where it ran.
        seconds: with starting and evaluating.
    """

    layout: Layout
    words: list[str]
    problems: list[Problem] = field(default_factory=list)
    verdict: Verdict = Verdict.not_run
    deviation: Deviation | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.problems:
            self.verdict = Verdict.refused

    @property
    def told(self) -> str:
        """The verdict in words."""
        if self.verdict is Verdict.differs and self.deviation is not None:
            return f"DIFFERS {self.deviation.where}"
        return self.verdict.value

    def cells(self) -> tuple[str, ...]:
        """Its row of the table."""
        found = self.deviation
        numbers = (None,) * 3 if found is None else (found.loss, found.gradient_norm, found.validation_loss)
        time = "-" if self.seconds is None else f"{self.seconds:.1f} s"
        texts = ("-" if value is None else f"{value:.1e}" for value in numbers)
        return self.layout.name, str(self.layout.processes), *texts, time, self.told

    def plain(self) -> dict[str, Any]:
        """For JSON, which knows no infinity."""
        found = {} if self.deviation is None else asdict(self.deviation)
        found = {
            name: None if isinstance(value, float) and math.isinf(value) else value
            for name, value in found.items()
        }
        return {
            "name": self.layout.name,
            "processes": self.layout.processes,
            "words": self.words,
            "verdict": self.verdict.value,
            "deviation": found or None,
            "seconds": self.seconds,
            "problems": [asdict(problem) for problem in self.problems],
        }


class Verification:
    """Trains and compares.

    Args:
        results: one process first; those with problems are not run.
        told: steps and tolerances.
        style: for the terminal.
        accumulated: one process that accumulates, which is trained where a layout differs: a training may
            magnify roundings so much that one process differs from itself. None where a batch is one row.
        children: runs the commands.
    """

    def __init__(
        self,
        results: Sequence[Result],
        told: VerifyConfig,
        style: Style,
        accumulated: Result | None = None,
        children: Children | None = None,
    ) -> None:
        self.results = list(results)
        self.accumulated = accumulated
        self.told = told
        self.style = style
        self.children = children or Children()
        self.live = sys.stdout.isatty()

    @property
    def trained(self) -> list[Result]:
        """One process first; and once more where it was needed."""
        single, *others = self.results
        again = self.accumulated
        return [single, *([again] if again is not None and again.deviation is not None else []), *others]

    def run(self) -> int:
        """Train under all layouts and print the table.

        Returns:
            the exit code, see `command.verify.verify`.

        Raises:
            DivergedError: there is nothing to compare with, since the numbers of one process are not finite.
            DataError: there is no place for the runs.
        """
        folder = make_folder()
        single, *others = self.results
        with self.children:
            code = self._train(single, folder)
            if code == ExitCode.OK:
                reference = self._reference(single, folder)
                for result in others:
                    if result.verdict is Verdict.not_run and not self.children.stopped_by:
                        self._compare(result, folder, reference)
                self._judge_again(folder, reference)
        if code == ExitCode.OK:
            print(self.report())
            code = self.exit_code()
        elif not self.children.stopped_by:
            single.verdict = Verdict.refused if code in EXPLAINED else Verdict.failed
            print(_read(folder / f"{single.layout.name}.err"), file=sys.stderr)
        if any(result.verdict in (Verdict.differs, Verdict.failed) for result in self.results):
            print(f"what these trainings have left is in {folder}", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        return self.children.exit_code or code

    def exit_code(self) -> int:
        """Of the verdicts."""
        verdicts = {result.verdict for result in self.results}
        if verdicts & {Verdict.differs, Verdict.failed}:
            return ExitCode.BUG
        return ExitCode.OK if verdicts & {Verdict.equal, Verdict.rounding} else ExitCode.CONFIG

    def _train(self, result: Result, folder: Path) -> int:
        """Run one training; returns its exit code."""
        name = result.layout.name
        run = folder / name
        command = [sys.executable, "-m", "llmtrain", *result.words, f"run.dir={run}"]
        with open(folder / f"{name}.out", "wb") as output, open(folder / f"{name}.err", "wb") as errors:
            watch = (lambda: self._show_step(name, run)) if self.live else None
            code, result.seconds = self.children.run(command, output, errors, watch)
        return code

    def _show_step(self, name: str, run: Path) -> None:
        step = max(read_curve(run).losses, default=0)
        print(f"\r\x1b[K  {name}: step {step} of {self.told.steps}", end="", flush=True)

    def _say(self, result: Result) -> None:
        """One line for a training that is over."""
        start = "\r\x1b[K" if self.live else ""
        print(f"{start}  {result.layout.name}: {result.told}, {result.seconds:.1f} s", flush=True)

    def _reference(self, single: Result, folder: Path) -> Curve:
        """The curve of one process."""
        curve = read_curve(folder / single.layout.name)
        if not curve.losses or not curve.finite:
            raise DivergedError(
                "there is nothing to compare with: loss or gradient norm of one process are not finite",
                str(folder / single.layout.name),
                "lower optim.lr, or lengthen schedule.warmup",
            )
        single.verdict = Verdict.reference
        self._say(single)
        return curve

    def _compare(self, result: Result, folder: Path, reference: Curve) -> None:
        """Train under one layout and judge it."""
        code = self._train(result, folder)
        name = result.layout.name
        if self.children.stopped_by:
            return
        if code != ExitCode.OK:
            result.verdict = Verdict.refused if code in EXPLAINED else Verdict.failed
            result.problems = read_problems(_read(folder / f"{name}.err"), code)
        elif (ran := read_degrees(folder / name)) != result.layout.degrees:
            result.verdict = Verdict.failed
            result.problems = [Problem(f"it ran as {ran}, not as {result.layout.degrees}")]
        else:
            result.deviation = deviation(reference, read_curve(folder / name), self.told)
            result.verdict = Verdict.differs if result.deviation.where else Verdict.equal
        if result.verdict in (Verdict.equal, Verdict.refused):
            shutil.rmtree(folder / name, ignore_errors=True)  # checkpoints may be large
        self._say(result)

    def _judge_again(self, folder: Path, reference: Curve) -> None:
        """Where layouts differ, see by how much one process differs from itself."""
        differing = [result for result in self.results if result.verdict is Verdict.differs]
        if not differing or self.accumulated is None or self.children.stopped_by:
            return
        if self._train(self.accumulated, folder) != ExitCode.OK:
            return
        found = deviation(reference, read_curve(folder / self.accumulated.layout.name), self.told)
        self.accumulated.deviation, self.accumulated.verdict = found, Verdict.reference
        self._say(self.accumulated)
        for result in differing:
            if result.deviation is not None and within(result.deviation, found, OWN_ROUNDINGS):
                result.verdict = Verdict.rounding
                shutil.rmtree(folder / result.layout.name, ignore_errors=True)
        shutil.rmtree(folder / self.accumulated.layout.name, ignore_errors=True)

    def report(self) -> str:
        """The table, why layouts were refused or failed, how to repeat what is wrong, and the verdict."""
        header = ("layout", "processes", "loss", "gradient norm", "validation loss", "time", "verdict")
        lines = ["", self.style.table(header, [result.cells() for result in self.trained])]
        reasons = [
            (result.layout.name, f"{result.told}: {'; '.join(map(in_a_line, result.problems))}")
            for result in self.results
            if result.problems
        ]
        if reasons:
            lines += ["", self.style.entries(reasons)]
        for result in self.results:
            if result.verdict in (Verdict.differs, Verdict.failed):
                lines.append(f"  to repeat {result.layout.name}: llmtrain {shlex.join(result.words)}")
        return "\n".join([*lines, "", self.style.bold(self.conclusion())])

    def conclusion(self) -> str:
        """All in a sentence."""
        counts = {verdict: sum(one.verdict is verdict for one in self.results) for verdict in Verdict}
        bad = counts[Verdict.differs] + counts[Verdict.failed]
        ran = bad + counts[Verdict.equal] + counts[Verdict.rounding]
        tolerances = f"{self.told.loss_tolerance:g} (loss) and {self.told.norm_tolerance:g} (gradient norm)"
        if ran == 0:
            text = "no layout could be compared"
        elif bad:
            text = f"{bad} of {ran} layouts that ran {'is' if bad == 1 else 'are'} not equal"
        else:
            text = "the layout that ran is equal" if ran == 1 else f"all {ran} layouts that ran are equal"
        if ran:
            text += f" to one process within {tolerances}"
        if counts[Verdict.rounding]:
            text += (
                f", {counts[Verdict.rounding]} of them but for roundings: one process that accumulates "
                "differs as much from itself (a lower optim.lr makes the comparison sharper)"
            )
        rest = [f"{counts[one]} {one.value}" for one in (Verdict.refused, Verdict.not_run) if counts[one]]
        return "; ".join([text, *rest])

    def write(self, path: Path, about: dict[str, Any]) -> None:
        """Write everything as JSON.

        Args:
            path: of the file.
            about: what was verified.

        Raises:
            DataError: it cannot be written.
        """
        told = {key: value for key, value in asdict(self.told).items() if key not in ("json", "layouts")}
        try:
            write_json(path, {**about, **told, "layouts": [result.plain() for result in self.trained]})
        except OSError as error:
            raise DataError(
                f"cannot write the results: {error.strerror}", str(path), "give another verify.json"
            ) from error


def make_folder() -> Path:
    """A place for the runs, which are deleted where all is well.

    Raises:
        DataError: there is none.
    """
    try:
        return Path(tempfile.mkdtemp(prefix="llmtrain-verify-"))
    except OSError as error:
        fix = "free some space there, or set TMPDIR"
        raise DataError(f"cannot make a folder: {error.strerror}", str(error.filename), fix) from error


def _read(path: Path) -> str:
    """A text that a child has left, if any."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip()
    return ""


def read_degrees(run: Path) -> Degrees | None:
    """Under which layout a run was saved: what its workers say, not what they were asked for."""
    for path in RunDirectory(run).checkpoints.glob("step-*/state.json"):
        return Degrees(**read_json(path)["layout"])
    return None


def in_a_line(problem: Problem) -> str:
    """A problem in one line."""
    return f"{problem.what} ({problem.fix})" if problem.fix else problem.what


def read_problems(text: str, code: int) -> list[Problem]:
    """The problems that a training has printed; where it printed none, how it ended."""
    problems: list[Problem] = []
    for line in text.splitlines():
        key, _, value = line.partition(": ")
        if key == "error":
            problems.append(Problem(re.sub(r"^rank \d+ failed with exit code \d+: ", "", value)))
        elif problems and key in ("  where", "  do"):
            last = problems.pop()
            where, fix = (value, last.fix) if key == "  where" else (last.where, value)
            problems.append(Problem(last.what, where, fix))
    ended = f"ended with exit code {code} ({EXIT_MEANING.get(code, 'killed')})"
    return problems or [Problem(text.splitlines()[-1] if text else ended)]
