"""`llmtrain prepare`: make the token store that training reads, and look into it."""

from __future__ import annotations

from rich.table import Table

from llmtrain.data.prepare import PrepareReport
from llmtrain.data.show import render_rows
from llmtrain.objective.build import build_objective
from llmtrain.recipe.context import Context
from llmtrain.recipe.data import open_data
from llmtrain.recipe.terminal import make_console
from llmtrain.schema.roots import PrepareConfig


def prepare_data(config: PrepareConfig, context: Context) -> int:
    """Prepare, print the report, and `show` packed rows if asked to."""
    prepared = open_data(config.data, config.tokenizer, config.run.seed, context)
    console = make_console()
    console.print(report_table(prepared.report))
    for warning in prepared.report.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    if config.show:
        objective = build_objective(config.objective, config.data, context.builders)
        rows = objective.rows(
            prepared.train,
            sequence_length=config.train.sequence_length,
            seed=config.run.seed,
            shuffle=True,
        )
        text = render_rows(prepared.tokenizer, rows, config.show)
        console.print(text, markup=False, soft_wrap=not console.is_terminal)
    return 0


def report_table(report: PrepareReport) -> Table:
    """What came out, one line each."""
    table = Table(box=None, show_header=False)
    seconds = "found prepared" if report.cached else f"{report.seconds:.1f} s"
    rows = {
        "documents": f"{report.documents:,}",
        "text": f"{report.bytes:,} bytes",
        "tokens": f"{report.tokens:,} ({report.bytes_per_token:.2f} bytes each)",
        "vocabulary": f"{report.vocab_size:,}",
        "train / validation": f"{report.train_tokens:,} / {report.validation_tokens:,} tokens",
        "time": seconds,
        "store": report.path,
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table
