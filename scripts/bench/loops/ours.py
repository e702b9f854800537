"""The engine in turns, with the words of a command: what `llmtrain VERB WORDS` trains, step for step.

python scripts/bench/loops/ours.py pretrain|finetune FOLDER WORDS...
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from turns import Turn

from llmtrain.compose.compose import compose
from llmtrain.engine.engine import Engine, Hook
from llmtrain.recipe.context import BUILDERS, Context
from llmtrain.recipe.finetune import task_work
from llmtrain.recipe.pretrain import text_work
from llmtrain.recipe.training import set_up
from llmtrain.schema.registry import builtin_registry
from llmtrain.utils.run_directory import RunDirectory
from llmtrain.utils.signals import StopFlag


class InTurn(Hook):
    """Trains only while it is its turn."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.waited = 0.0

    def start(self, engine: Engine) -> None:
        """Wait for the first turn."""
        self.turn.before()

    def after_step(self, engine: Engine) -> None:
        """Count the step, and wait where the turn is over."""
        self.turn.after()
        self.turn.before()


def main(verb: str, folder: Path, words: list[str]) -> None:
    """Set up, and train in turns."""
    turn = Turn()
    config = compose(verb, words, None, False)[0].config
    run = RunDirectory(folder)
    run.path.mkdir()
    context = Context(run, builtin_registry(), BUILDERS, StopFlag())
    engine, work, parameters = set_up(config, context, text_work if verb == "pretrain" else task_work)
    engine.hooks = [InTurn(turn)]
    rows = config.train.batch_size
    turn.ready(
        precision=config.precision.value,
        compile=config.compile.value == "always",
        parameters=parameters,
        flops=engine.throughput.flops_per_token * rows * work.mean_length,
        tokens=rows * work.mean_length,
    )
    engine.fit()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
