"""What a user is told of a run that has ended, from its `summary.json`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any


def format_duration(seconds: float) -> str:
    """1:02:03 or 4:05."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def summary_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """What was reached, name and value; what the summary of an older run lacks is left out."""
    early = ", ended early" if summary.get("ended_early") else ""
    of = f" of {summary['total_steps']:,}" if "total_steps" in summary else ""
    rows = [("steps", f"{summary['steps']:,}{of}{early}")]
    metric = f"validation_{summary.get('metric', 'loss')}"
    for name, value in summary.items():
        if name.startswith("validation_") and value is not None:
            best = summary.get(f"best_{metric}") if name == metric else None
            note = "" if best is None else f" (best {best:.4f} at step {summary['best_step']:,})"
            rows.append((name.replace("_", " "), f"{value:.4f}{note}"))
    if "tokens" in summary:
        rows.append(("tokens", f"{summary['tokens']:,} in {format_duration(summary['seconds'])}"))
        rows.append(("speed", f"{summary['tokens_per_second']:,.0f} tokens/s"))
        rows.append(("peak memory", f"{summary['peak_memory_bytes'] / 1e9:.2f} GB per process"))
    return rows


def typed_path(path: Path) -> str:
    """A path as one would type it: relative where it is below here, quoted for the shell."""
    short = os.path.relpath(path)
    return shlex.quote(str(path) if short.startswith("..") else short)


def task_commands(path: str) -> list[str]:
    """What one may want to do with a fine-tuned model."""
    return [
        f"llmtrain predict init_from={path} input=FILE",
        f"llmtrain evaluate init_from={path} paths=[FILE]",
    ]


def answer_commands(path: str) -> list[str]:
    """What one may want to do with a model that was taught to answer."""
    return [
        f"llmtrain chat init_from={path}",
        f"llmtrain evaluate init_from={path} paths=[FILE]",
    ]


def text_commands(path: str, causal: bool) -> list[str]:
    """What one may want to do with a language model."""
    first = (
        f'llmtrain generate init_from={path} prompt="..."'
        if causal
        else f"llmtrain finetune task=classification/custom task.paths=[train.tsv] init_from={path}"
    )
    return [first, f"llmtrain evaluate init_from={path}"]
