"""The whole configuration of each verb."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from llmtrain.schema.adapt import AdaptConfig
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
    """What to take the first weights from: a run or checkpoint directory, a Hugging Face model directory, a
    .gguf file, or a name on the Hugging Face hub (owner/name)."""

    allow_bin: bool = False
    """Open pytorch_model.bin where a foreign model has no safetensors; nothing but tensors is read of it."""

    adapt: AdaptConfig | None = None
    """Learn small adapters of the pretrained model (`adapt=lora`) and leave the model itself as it is."""

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
    """Run or checkpoint directory (a run means its best checkpoint, else its newest), a Hugging Face model
    directory, a .gguf file, or a name on the Hugging Face hub (owner/name)."""

    allow_bin: bool = False
    """Open pytorch_model.bin where a foreign model has no safetensors; nothing but tensors is read of it."""

    run: RunConfig = field(default_factory=RunConfig)
    """Only `deterministic` and the plugins are used."""

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
    """`llmtrain generate`: texts from a language model, to the terminal or to a file."""

    prompt: str = ""
    """Text to continue. Empty: start as at the start of a document."""

    prompts: str | None = None
    """File of prompts: .jsonl with prompt_key, else one a line; - reads lines of standard input."""

    prompt_key: str = "prompt"
    """Where in a line of a .jsonl file the prompt stands."""

    chat: bool = False
    """Take each prompt as what a user says, and write the answer, by the chat template of the tokenizer."""

    system: str | None = None
    """What the conversation starts with, with chat=true: who the model is, how it shall answer."""

    output: str | None = None
    """File to write the texts to, as JSON lines. Default: standard output."""

    batch_size: int = 16
    """Texts that are written at once."""

    sample: SampleConfig = field(default_factory=SampleConfig)
    """How tokens are drawn."""


@dataclass
class ChatConfig(UseConfig):
    """`llmtrain chat`: talk with a language model, by the chat template of its tokenizer."""

    system: str | None = None
    """What the conversation starts with: who the model is, how it shall answer."""

    sample: SampleConfig = field(default_factory=SampleConfig)
    """How tokens are drawn; an answer has max_new_tokens at most."""


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


class Format(str, Enum):
    """Layout of a model directory."""

    hf = "hf"
    llmtrain = "llmtrain"
    peft = "peft"


class WeightFormat(str, Enum):
    """Number format of weights in files."""

    fp32 = "fp32"
    bf16 = "bf16"


@dataclass
class ConvertConfig:
    """`llmtrain convert`: a checkpoint for other tools, or a model of other tools as a checkpoint."""

    source: str | None = None
    """What is converted: a run or checkpoint directory (a run means its best checkpoint, else its newest), a
    Hugging Face model directory, a .gguf file, or a name on the Hugging Face hub (owner/name)."""

    target: str | None = None
    """Directory to make; it must not be there yet."""

    format: Format | None = None
    """What is made: hf, a Hugging Face model directory; llmtrain, a checkpoint; peft, adapters for Hugging
    Face's PEFT. Default: hf of what was trained here (peft, if it is adapters), else llmtrain."""

    merge: bool = False
    """Fold adapters into the model that they belong to, and write all of it."""

    base: str | None = None
    """Model that adapters of PEFT belong to. Default: the one that they name."""

    dtype: WeightFormat = WeightFormat.fp32
    """Number format of the weights of format=hf; a checkpoint is always fp32."""

    shard_size: float = 5.0
    """Size of one file of weights at most, in GB (10^9 bytes), for format=hf."""

    allow_bin: bool = False
    """Open pytorch_model.bin where a foreign model has no safetensors; nothing but tensors is read of it."""

    run: RunConfig = field(default_factory=RunConfig)
    """Only the plugins are used."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Free place for your own keys."""

    def __post_init__(self) -> None:
        require(self.shard_size > 0, "shard_size", "must be greater than 0")


ROOTS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "prepare": PrepareConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "generate": GenerateConfig,
    "chat": ChatConfig,
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
    "adapt",
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
