"""What `log` asks for besides lines: norms, a profile, sample texts; and the report at the end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Set
from contextlib import AbstractContextManager, nullcontext

from llmtrain.data.loader import Rows
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.engine.engine import Hook
from llmtrain.engine.watch import Draw, NormsHook, ProfileHook, SampleHook
from llmtrain.metrics.report import write_report
from llmtrain.metrics.summary import typed_path
from llmtrain.optim.average import Average, standing
from llmtrain.parallel.layout import Layout
from llmtrain.recipe.samples import Texts, drawn, force_eager, make_draw, why_no_samples
from llmtrain.schema.fields import Compile
from llmtrain.schema.roots import TrainingConfig
from llmtrain.utils.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def watching_hooks(
    config: TrainingConfig,
    run: RunDirectory,
    layout: Layout,
    head: type,
    names: Set[str],
    tokenizer: Tokenizer,
    rows: Rows,
    max_positions: int,
    average: Average | None = None,
) -> list[Hook]:
    """The hooks that `log` asks for.

    Args:
        config: of the run.
        run: directory for the profile.
        layout: runs the model.
        head: class of the whole model's head.
        names: of the parameters of the whole model.
        tokenizer: of the model.
        rows: what is learned from.
        max_positions: tokens that the model can look back on.
        average: of the weights, which samples are drawn from where it is kept.
    """
    log = config.log
    hooks: list[Hook] = []
    if log.norms:
        hooks.append(NormsHook(log.every, names, config.optim.clip_norm))
    if log.profile:
        hooks.append(ProfileHook(log.profile[0], log.profile[-1], run.profile))
    if log.sample_every and not why_no_samples(log, layout, head):
        draw = make_draw(log, layout, head, tokenizer, rows, max_positions)
        eager = force_eager if config.compile is Compile.always else nullcontext
        hooks.append(SampleHook(log.sample_every, lambda: of_average(average, draw, layout, eager)))
    return hooks


def of_average(
    average: Average | None, draw: Draw, layout: Layout, eager: Callable[[], AbstractContextManager[object]]
) -> Texts:
    """See `drawn`; of the moving average of the weights, where there is one."""
    with standing(average):
        return drawn(draw, layout, eager)


def report_run(run: RunDirectory) -> list[str]:
    """Write `report.html` and `loss.png`; a run that is done does not fail for want of them.

    Returns:
        what to tell the user.
    """
    try:
        hint = write_report(run.path, ended=True)
    except Exception as error:  # a picture of the run is not worth its exit code
        logger.exception("the report could not be written")
        return [f"report.html could not be written: {error}"]
    return [f"report: {typed_path(run.report)}", *([hint] if hint else [])]
