"""How fast llmtrain is beside what one would use instead; docs/benchmarks.md has what came out.

    python scripts/bench WORK... [--json FILE] [--rounds N] [--text FILES] [--sst2 FOLDER] ...
    python scripts/bench --all --json FILE      every work that FILE does not have yet
    python scripts/bench --short                a few works in a few minutes
    python scripts/bench --json FILE --write docs/benchmarks.md     only put its tables there

The others are a hand-written loop, Hugging Face's Trainer, litgpt and `datasets.map`. Works are timed in
rounds, each contender a turn in each; the table shows medians. Peers that are not
installed are told and left out: transformers and accelerate (`pip install 'llmtrain[bench]'`), litgpt (in an
environment of its own, `--litgpt-python`, with torch of the same version).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # for a checkout that is not installed
from machine import Bench, allocator_environment, describe
from quality import QUALITY
from rich.console import Console
from rich.table import Table
from table import Result, headings, log, markdown, put_between, work_rows
from training import WORKS, run
from wholes import WHOLES as RUNS

WHOLES = RUNS | QUALITY

SHORT = ("gpt_characters", "bert_mini", "tokenise", "startup")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("works", nargs="*", metavar="WORK")
    parser.add_argument("--all", action="store_true", help=f"all: {', '.join([*WORKS, *WHOLES])}")
    parser.add_argument("--short", action="store_true", help="small runs; alone: of " + ", ".join(SHORT))
    parser.add_argument("--json", type=Path, help="keep the results here; what it has is not run again")
    parser.add_argument("--again", action="store_true", help="run even what the file has")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put the tables between two comments of it"
    )
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--steps", type=int, help="of a turn")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--text", type=Path, nargs="+", default=[], help="files (default: Python's own prose)"
    )
    parser.add_argument("--sst2", type=Path, help="folder with SST-2's files (default: made-up sentences)")
    parser.add_argument("--shakespeare", type=Path, help="tiny-shakespeare's file (default: Python's prose)")
    parser.add_argument("--wikitext", type=Path, help="folder of WikiText-2 (default: Python's prose)")
    parser.add_argument("--gpt2", type=Path, help="folder of GPT-2's tokenizer (default: one learned here)")
    parser.add_argument("--litgpt-python", default=sys.executable, help="an interpreter that has litgpt")
    parser.add_argument("--allocator", default="auto", help="as launch.allocator, or the path of a library")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny models, not compiled: to try out the scripts"
    )
    parser.add_argument("--folder", type=Path, help="for temporary files")
    return parser.parse_args()


def show(name: str, result: Result) -> None:
    """A work's table on the terminal."""
    table = Table(*headings(result), title=f"{result['title']} ({name})", title_justify="left")
    for cells in work_rows(result):
        table.add_row(*cells)
    Console(width=max(150, Console().width)).print(table)


def main() -> int:
    """Run what is asked for; returns 1 where a work failed."""
    options = arguments()
    if options.write:
        put_between(options.write.read_text(encoding="utf-8"), "")  # better now than after an hour
    try:
        allocator_environment(options.allocator)
    except ValueError as error:
        sys.exit(f"--allocator: {error}")
    kept: dict[str, Any] = {"works": {}}
    if options.json and options.json.exists():
        kept = json.loads(options.json.read_text(encoding="utf-8"))
    if unknown := set(options.works) - {*WORKS, *WHOLES}:
        sys.exit(f"no such work: {', '.join(unknown)}; there are {', '.join([*WORKS, *WHOLES])}")
    names = options.works or ([*WORKS, *WHOLES] if options.all else SHORT if options.short else [])
    names = [name for name in names if options.again or name not in kept["works"]]
    base = options.folder or Path(tempfile.mkdtemp(prefix="llmtrain-bench-"))
    base.mkdir(parents=True, exist_ok=True)
    bench = Bench(
        base.resolve(),
        rounds=options.rounds or (2 if options.short else 4),
        steps=options.steps or (2 if options.short else 3),
        threads=options.threads,
        texts=[path.resolve() for path in options.text],
        sst2=options.sst2 and options.sst2.resolve(),
        shakespeare=options.shakespeare and options.shakespeare.resolve(),
        wikitext=options.wikitext and options.wikitext.resolve(),
        gpt2=options.gpt2 and options.gpt2.resolve(),
        litgpt_python=options.litgpt_python,
        allocator=options.allocator,
        short=options.short,
        tiny=options.tiny,
    )
    os.environ["HF_HUB_OFFLINE"] = "1"
    bad = []
    if names or "machine" not in kept:
        kept["machine"] = describe(bench)
    peak = kept["machine"]["peak_bf16"]
    for name in names:
        log(f"{name}:")
        started = time.perf_counter()
        try:
            result = run(name, bench, peak) if name in WORKS else WHOLES[name](bench, peak)
        except (RuntimeError, AssertionError) as error:
            log(f"  failed: {error}")
            bad.append(name)
            continue
        result["took"] = time.perf_counter() - started
        kept["works"][name] = result
        if options.json:
            options.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        show(name, result)
    if not names:
        for name, result in kept["works"].items():
            show(name, result)
    if options.write:
        text = options.write.read_text(encoding="utf-8")
        inner = markdown(kept["works"], kept["machine"])
        options.write.write_text(put_between(text, inner), encoding="utf-8")
    if bad:
        log(f"failed: {', '.join(bad)}; files are in {base}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
