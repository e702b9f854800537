"""The whole configuration of each verb."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmtrain.schema.data import DataConfig
from llmtrain.schema.fields import (
    CheckpointConfig,
    Compile,
    EvalConfig,
    LaunchConfig,
    LogConfig,
    Precision,
    Resume,
    RunConfig,
    SampleConfig,
    TrainConfig,
    require,
)
from llmtrain.schema.load import DECIDED
from llmtrain.schema.model import ModelConfig
from llmtrain.schema.objective import ObjectiveConfig
from llmtrain.schema.optim import OptimConfig, ScheduleConfig
from llmtrain.schema.parallel import ParallelConfig
from llmtrain.schema.task import TaskConfig
from llmtrain.schema.tokenizer import TokenizerConfig


@dataclass
class TrainingConfig:
    """What every training has."""

    run: RunConfig = field(default_factory=RunConfig)
    """Name, directory, seed."""

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
    """Run or checkpoint directory, or a Hugging Face model directory, to take the first weights from."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Free place for your own keys (`+extra.note=...`); llmtrain does not read it."""


@dataclass
class PretrainConfig(TrainingConfig):
    """`llmtrain pretrain`: train a language model on text, from nothing or from a checkpoint."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Model family and size."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What is learned."""

    data: DataConfig = field(default_factory=DataConfig)
    """Where the text comes from."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """How text becomes tokens."""


@dataclass
class FinetuneConfig(TrainingConfig):
    """`llmtrain finetune`: train a pretrained model, with its tokenizer, for a task."""

    task: TaskConfig = field(default_factory=TaskConfig)
    """What is learned, and from which files."""

    model: ModelConfig | None = field(default=None, metadata=DECIDED)
    """That of init_from."""

    dropout: float | None = None
    """Dropout while fine-tuning. Default: that of the pretrained model."""

    reinitialise: bool = False
    """Take only the shape and the tokenizer of init_from and draw all weights anew, to see what the
    pretraining is worth."""

    def __post_init__(self) -> None:
        require(self.dropout is None or 0 <= self.dropout < 1, "dropout", "must be at least 0 and below 1")


@dataclass
class PrepareConfig(PretrainConfig):
    """`llmtrain prepare`: read, clean and tokenise data into the store that training reads.

    It takes whatever `pretrain` takes, so that any training command can be prepared ahead.
    """

    show: int = 0
    """Print so many packed rows, decoded, with document borders and labels."""


@dataclass
class UseConfig:
    """What the verbs that use a finished checkpoint have."""

    init_from: str | None = None
    """Run or checkpoint directory. A run means its best checkpoint, else its newest."""

    run: RunConfig = field(default_factory=RunConfig)
    """Only the plugins are used."""

    precision: Precision = Precision.fp32
    """Number format."""

    launch: LaunchConfig = field(default_factory=LaunchConfig)
    """Device and threads; one process is taken."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Free place for your own keys."""


@dataclass
class EvaluateConfig(UseConfig):
    """`llmtrain evaluate`: scores of a checkpoint: of a language model on a text, of a task on its files."""

    data: DataConfig | None = None
    """Text to evaluate a language model on, all of it. Default: the validation text of the run."""

    paths: list[str] = field(default_factory=list)
    """Files to evaluate a fine-tuned model on. Default: the validation examples of the run."""

    output: str | None = None
    """File to write the predictions of a fine-tuned model to, as JSON lines."""

    sequence_length: int | None = None
    """Tokens in a row. Default: as in training."""

    batch_size: int = 16
    """Rows (examples) at once."""


@dataclass
class GenerateConfig(UseConfig):
    """`llmtrain generate`: draw text from a checkpoint."""

    prompt: str = ""
    """Text to continue. Empty: start as at the start of a document."""

    sample: SampleConfig = field(default_factory=SampleConfig)
    """How tokens are drawn."""


@dataclass
class PredictConfig(UseConfig):
    """`llmtrain predict`: what a fine-tuned model says about each example of a file, as JSON lines."""

    input: str | None = None
    """File of examples: as for training (labels are not needed), or .txt with one text a line (a pair:
    two, parted by a tab); for questions .jsonl with question and context; - reads standard input, texts or
    questions in these forms."""

    output: str | None = None
    """File to write. Default: standard output."""

    batch_size: int = 32
    """Examples at once."""


@dataclass
class ConvertConfig:
    """`llmtrain convert`: write a checkpoint as a Hugging Face model directory."""

    source: str | None = None
    """Run or checkpoint directory. A run means its best checkpoint, else its newest."""

    target: str | None = None
    """Directory to make; it must not be there yet."""

    run: RunConfig = field(default_factory=RunConfig)
    """Only the plugins are used."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Free place for your own keys."""


ROOTS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "prepare": PrepareConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "generate": GenerateConfig,
    "convert": ConvertConfig,
}
"""The verbs that take a configuration."""

TRAINING: tuple[str, ...] = ("pretrain", "finetune")
"""The verbs that train: they have a run directory, resume, and may take several processes."""

FROZEN: tuple[str, ...] = (
    "model",
    "objective",
    "task",
    "dropout",
    "reinitialise",
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
