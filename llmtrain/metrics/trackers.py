"""Reports to TensorBoard and to Weights & Biases: both extras, imported only where they are asked for."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmtrain.metrics.history import NORMS, VALIDATION, is_number
from llmtrain.schema.fields import LogConfig
from llmtrain.utils.errors import ConfigError, Problem

logger = logging.getLogger(__name__)

Record = dict[str, Any]

PACKAGES = ("tensorboard", "wandb")
"""Keys of `log`, extras of ours, and packages, all of one name."""

NOT_SHOWN = ("kind", "step", "total_steps", "eta_seconds")


def check_packages(log: LogConfig) -> None:
    """See that what is asked for is installed.

    Raises:
        ConfigError: it is not.
    """
    problems = [
        Problem(f"log.{name}=true needs the package {name}", f"log.{name}", f"pip install 'llmtrain[{name}]'")
        for name in PACKAGES
        if getattr(log, name) and importlib.util.find_spec(name) is None
    ]
    if problems:
        raise ConfigError(problems)


def named_numbers(record: Record) -> dict[str, float]:
    """The numbers of a record, with the group that they are shown in before their names."""
    group = {VALIDATION: "validation/", NORMS: ""}.get(record["kind"], "train/")
    return {
        group + name.removeprefix("validation_"): float(value)
        for name, value in record.items()
        if name not in NOT_SHOWN and is_number(value)
    }


class TensorBoard:
    """Writes event files that `tensorboard --logdir runs` shows.

    What an earlier start of the run has written beyond the step it goes on from is purged by TensorBoard
    when it reads the files.

    Args:
        folder: of the event files.
        last_step: step that the run continues from.
        config: text of the run's config.
    """

    def __init__(self, folder: Path, last_step: int, config: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = last_step + 1 if folder.exists() else None
        self.writer = SummaryWriter(str(folder), purge_step=purge)
        self.writer.add_text("config", "".join(f"    {line}\n" for line in config.splitlines()), last_step)

    def metrics(self, record: Record) -> None:
        """Add the numbers; written at once, so that a kill loses none that the run will not report again."""
        for name, value in named_numbers(record).items():
            self.writer.add_scalar(name, value, record["step"])
        self.writer.flush()

    def event(self, record: Record) -> None:
        """Sample texts are shown, other events are not."""
        if record.get("event") == "sample":
            text = f"{record.get('prompt', '')}{record['sample']}"
            name = f"samples/{record.get('number', 0)}"
            self.writer.add_text(name, "".join(f"    {line}\n" for line in text.splitlines()), record["step"])

    def close(self) -> None:
        """Close the files."""
        self.writer.close()


class WeightsAndBiases:
    """Reports to Weights & Biases, or offline to its files in the run directory.

    A run there cannot be cut back offline. So each start of ours is a run there, of one group, which
    begins with all that was reported up to the step it goes on from: the newest one has the whole curve.

    Args:
        folder: run directory.
        config: as plain data.
        before: records up to the step that the run continues from.

    Raises:
        ConfigError: wandb refuses to start.
    """

    def __init__(self, folder: Path, config: dict[str, Any], before: Iterable[Record]) -> None:
        import wandb

        try:
            self.run = wandb.init(
                dir=os.environ.get("WANDB_DIR", str(folder)),
                project=os.environ.get("WANDB_PROJECT", "llmtrain"),
                group=os.environ.get("WANDB_RUN_GROUP", folder.name),
                name=os.environ.get("WANDB_NAME", folder.name),
                config=config,
                settings=wandb.Settings(silent=True, console="off", save_code=False, disable_git=True),
            )
        except (wandb.Error, OSError, ValueError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"wandb does not start: {first}",
                "log.wandb",
                "set WANDB_MODE=offline, or log in once with `wandb login`",
            ) from error
        self.waiting: Record = {}
        for record in before:
            self.metrics(record)

    def metrics(self, record: Record) -> None:
        """Report the numbers; those of one step go together, since wandb's steps only go forward."""
        numbers = named_numbers(record)
        if self.waiting and self.waiting["step"] != record["step"]:
            self._send()
        self.waiting = {**self.waiting, **numbers, "step": record["step"]}

    def _send(self) -> None:
        self.run.log(self.waiting, step=self.waiting["step"])
        self.waiting = {}

    def event(self, record: Record) -> None:
        """Sample texts are reported, other events are not."""
        if record.get("event") == "sample":
            text = f"{record.get('prompt', '')}{record['sample']}"
            if self.waiting and self.waiting["step"] != record["step"]:
                self._send()
            self.waiting |= {f"samples/{record.get('number', 0)}": text, "step": record["step"]}

    def close(self) -> None:
        """Report what waits, and end the run there; what is wrong then does not end ours."""
        try:
            if self.waiting:
                self._send()
            self.run.finish()
        except Exception:  # of its service or of the network; all numbers are in our own files too
            logger.exception("the run at wandb was not ended")
