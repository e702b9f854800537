"""The whole configuration of each verb."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmtrain.schema.fields import (
    CheckpointConfig,
    Compile,
    EvalConfig,
    LaunchConfig,
    LogConfig,
    ParallelConfig,
    Precision,
    Resume,
    RunConfig,
    SampleConfig,
    TrainConfig,
)
from llmtrain.schema.groups import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    ScheduleConfig,
    TokenizerConfig,
)


@dataclass
class PretrainConfig:
    """`llmtrain pretrain`: train a language model on text, from nothing or from a checkpoint."""

    run: RunConfig = field(default_factory=RunConfig)
    """Name, directory, seed."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Model family and size."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What is learned."""

    data: DataConfig = field(default_factory=DataConfig)
    """Where the text comes from."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """How text becomes tokens."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """Length and batch."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over time."""

    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Degrees of parallelism."""

    launch: LaunchConfig = field(default_factory=LaunchConfig)
    """Processes and devices."""

    eval: EvalConfig = field(default_factory=EvalConfig)
    """Evaluation."""

    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""

    log: LogConfig = field(default_factory=LogConfig)
    """Reports."""

    precision: Precision = Precision.auto
    """Number format. auto takes bf16 where the hardware multiplies it fast, else fp32."""

    compile: Compile = Compile.auto
    """Compile the blocks. auto compiles where the run is long enough to pay for it."""

    resume: Resume = Resume.auto
    """auto continues a run that is there; never refuses to; must refuses to start anew."""

    init_from: str | None = None
    """Run or checkpoint directory to take the first weights from."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Free place for your own keys (`+extra.note=...`); llmtrain does not read it."""


@dataclass
class PrepareConfig(PretrainConfig):
    """`llmtrain prepare`: read, clean and tokenise data into the store that training reads.

    It takes whatever `pretrain` takes, so that any training command can be prepared ahead.
    """

    show: int = 0
    """Print so many packed rows, decoded, with document borders and labels."""


@dataclass
class EvaluateConfig:
    """`llmtrain evaluate`: perplexity and bits per byte of a checkpoint on a text."""

    init_from: str | None = None
    """Run or checkpoint directory. A run means its best checkpoint, else its newest."""

    data: DataConfig | None = None
    """Text to evaluate on, all of it. Default: the validation text of the run."""

    run: RunConfig = field(default_factory=RunConfig)
    """Only the plugins are used."""

    sequence_length: int | None = None
    """Tokens in a row. Default: as in training."""

    batch_size: int = 16
    """Rows at once."""

    precision: Precision = Precision.fp32
    """Number format."""

    launch: LaunchConfig = field(default_factory=LaunchConfig)
    """Device and threads; evaluation takes one process."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Free place for your own keys."""


@dataclass
class GenerateConfig:
    """`llmtrain generate`: draw text from a checkpoint."""

    init_from: str | None = None
    """Run or checkpoint directory. A run means its best checkpoint, else its newest."""

    prompt: str = ""
    """Text to continue. Empty: start as at the start of a document."""

    sample: SampleConfig = field(default_factory=SampleConfig)
    """How tokens are drawn."""

    run: RunConfig = field(default_factory=RunConfig)
    """Only the plugins are used."""

    precision: Precision = Precision.fp32
    """Number format."""

    launch: LaunchConfig = field(default_factory=LaunchConfig)
    """Device and threads; generation takes one process."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Free place for your own keys."""


ROOTS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "prepare": PrepareConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
}
"""The verbs that take a configuration."""

FROZEN: tuple[str, ...] = (
    "model",
    "objective",
    "data",
    "tokenizer",
    "optim",
    "schedule",
    "precision",
    "init_from",
    "run.seed",
    "train.batch_size",
    "train.sequence_length",
)
"""Keys that make a run what it is: they name it, and may not change when it is resumed."""
