"""Every layout against one process, for three kinds of training, by `llmtrain verify`; makes a table of it.

    python scripts/equivalence.py [--write README.md] [--sst2 FOLDER] [--layouts ddp2,tp2] [--steps 20]

Trained are a GPT (causal, grouped-query heads, documents kept apart, so that label counts are uneven), a BERT
(masked tokens and next sentences) and that BERT on a classification in the form of SST-2: on SST-2 itself
where `--sst2` names the folder of its files, else on sentences of our own making. `--write` puts the table
into a file, between two comments that are there. Exits with 1 where a layout differs or fails.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- layouts: written by `make equivalence` -->", "<!-- end of layouts -->"

COMMON = ["data=python_prose", "data.max_tokens=200_000", "eval.max_tokens=8192"]
BATCH = ["train.batch_size=16", "train.sequence_length=64"]
GPT = [
    *COMMON,
    *BATCH,
    *["model=gpt/debug", "model.num_layers=4", "model.num_heads=8", "model.num_kv_heads=4", "model.dim=128"],
    *["data.isolate_documents=true", "tokenizer.vocab_size=1000"],
]
BERT = [
    *COMMON,
    *BATCH,
    *["model=bert/debug", "model.num_layers=4", "model.num_heads=4"],
    *["objective=mlm_nsp", "tokenizer=wordpiece", "tokenizer.vocab_size=1000"],
]

GOOD = [
    "a moving and graceful film",
    "the actors shine",
    "wise , funny and warm",
    "one of the best this year",
]
BAD = ["a dull and clumsy film", "the plot never wakes up", "loud , long and empty", "not worth the ticket"]
REST = [
    "from the first scene",
    "in spite of its length",
    "and so is the music",
    "as i expected",
    "to the end",
]


@dataclass(frozen=True)
class Work:
    """A training that is verified.

    Attributes:
        title: of its column.
        words: after `llmtrain verify`.
    """

    title: str
    words: list[str]


def llmtrain(*words: str) -> int:
    """Run the command; returns its exit code."""
    return subprocess.run([sys.executable, "-m", "llmtrain", *words], check=False).returncode


def write_reviews(folder: Path) -> Path:
    """Sentences of various lengths in the form of SST-2's files, positive (1) and negative (0)."""
    chooser = random.Random(0)
    folder.mkdir()
    for name, rows in (("train.tsv", 800), ("dev.tsv", 100)):
        lines = ["sentence\tlabel"]
        for _ in range(rows):
            label = chooser.randrange(2)
            parts = [chooser.choice((BAD, GOOD)[label]), *chooser.choices(REST, k=chooser.randrange(4))]
            lines.append(f"{' '.join(parts)}\t{label}")
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def make_works(folder: Path, sst2: Path | None) -> list[Work]:
    """The three trainings; the third starts from a BERT that is trained here, for a moment."""
    bert = folder / "bert"
    if code := llmtrain("pretrain", *BERT, "train.steps=20", "eval.every=0", f"run.dir={bert}"):
        sys.exit(code)
    reviews = sst2 or write_reviews(folder / "reviews")
    finetuning = [
        "finetune",
        "task=classification/sst2",
        f"task.folder={reviews}",
        f"init_from={bert}",
        *BATCH,
    ]
    return [
        Work("GPT, causal", GPT),
        Work("BERT, MLM and NSP", BERT),
        Work("SST-2 fine-tuning" if sst2 else "fine-tuning, SST-2 form", finetuning),
    ]


def verify(work: Work, layouts: str, steps: int, path: Path) -> dict[str, Any]:
    """The results of one training."""
    told = [f"verify.layouts=[{layouts}]", f"verify.steps={steps}", f"verify.json={path}"]
    code = llmtrain("verify", *work.words, *told)
    if not path.exists():
        sys.exit(code or 1)
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def table(works: Sequence[Work], results: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each layout, a column for each training, and below why layouts were refused."""
    first = results[0]
    limits = f"{first['loss_tolerance']:g} and {first['norm_tolerance']:g}"
    lines = [
        f"Greatest relative deviation from one process over {first['steps']} steps, of the loss and of the "
        f"gradient norm; ✓ is within {limits} (fp32, AdamW, no dropout, uneven label counts, torch "
        f"{importlib.metadata.version('torch')}):",
        "",
        f"| layout | processes | {' | '.join(work.title for work in works)} |",
        "|---|---|" + "---|" * len(works),
    ]
    reasons: dict[tuple[str, str], list[str]] = {}
    columns = [
        {row["name"]: row for row in one["layouts"] if row["verdict"] != "reference"} for one in results
    ]
    for name, row in columns[0].items():
        cells = [cell(column[name]) for column in columns]
        lines.append(f"| `{name}` | {row['processes']} | {' | '.join(cells)} |")
        for work, column in zip(works, columns, strict=True):
            for problem in column[name]["problems"]:
                reasons.setdefault((work.title, problem["what"].rstrip(".")), []).append(f"`{name}`")
    lines += [f"\n{title}, {', '.join(names)}: {what}." for (title, what), names in reasons.items()]
    return "\n".join(lines)


def cell(row: dict[str, Any]) -> str:
    """One layout of one training."""
    if row["verdict"] not in ("equal", "differs"):
        return str(row["verdict"])
    found = row["deviation"]
    numbers = [found["loss"], found["gradient_norm"]]
    texts = ["not finite" if number is None else f"{number:.1e}" for number in numbers]
    return f"{'✓' if row['verdict'] == 'equal' else '✗'} {', '.join(texts)}"


def put_between(text: str, inner: str) -> str:
    """The text with what stands between the two comments replaced.

    Raises:
        ValueError: they are not there.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"there must be one line {BEGIN} and one line {END}")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{inner}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Verify all, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the comments of it")
    parser.add_argument(
        "--sst2", type=Path, metavar="FOLDER", help="folder with SST-2's train.tsv and dev.tsv"
    )
    parser.add_argument("--layouts", default="all", help="names, parted by commas")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps that are compared")
    options = parser.parse_args()
    if options.write:
        put_between(options.write.read_text(encoding="utf-8"), "")  # better now than after an hour
    folder = Path(tempfile.mkdtemp(prefix="llmtrain-equivalence-"))
    works = make_works(folder, options.sst2 and options.sst2.resolve())
    results = [
        verify(work, options.layouts, options.steps, folder / f"{number}.json")
        for number, work in enumerate(works)
    ]
    text = table(works, results)
    print(f"\n{text}")
    if options.write:
        options.write.write_text(
            put_between(options.write.read_text(encoding="utf-8"), text), encoding="utf-8"
        )
    bad = {row["verdict"] for one in results for row in one["layouts"]} & {"differs", "failed", "not run"}
    if bad:
        print(f"what they started from is in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
