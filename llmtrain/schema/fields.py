"""The choices and sections of a configuration that have one shape only.

Every field carries a docstring (meaning, unit, reason of the default): the help and the reference are
made from them. `null` means "decided for you"; what was decided is written to the run's `config.yaml`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Precision(str, Enum):
    """Number format of the training step."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Compile(str, Enum):
    """Whether blocks are compiled with `torch.compile`."""

    auto = "auto"
    always = "always"
    never = "never"


class ActivationCheckpointing(str, Enum):
    """What of a forward pass is computed again in the backward pass instead of being kept."""

    none = "none"
    selective = "selective"
    full = "full"


class Device(str, Enum):
    """Kind of device that the workers use."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Allocator(str, Enum):
    """Memory allocator of the workers."""

    auto = "auto"
    system = "system"
    glibc = "glibc"
    jemalloc = "jemalloc"
    tcmalloc = "tcmalloc"


class Resume(str, Enum):
    """What to do when the run directory holds a run already."""

    auto = "auto"
    never = "never"
    must = "must"


class Panel(str, Enum):
    """How progress is shown."""

    auto = "auto"
    live = "live"
    lines = "lines"


def require(condition: bool, key: str, message: str) -> None:
    """Raise a ValueError whose text starts with the key, for the reports of `schema.load`."""
    if not condition:
        raise ValueError(f"{key}: {message}")


@dataclass
class RunConfig:
    """Who this run is and where its files go."""

    name: str | None = None
    """Name of the run. Default: verb-model-data-8 hex digits of the frozen keys, so that the same
    command finds its own run again."""

    dir: str | None = None
    """Directory of the run. Default: `runs/<name>` below the current directory."""

    seed: int = 1337
    """Seed of everything random: weights, order of rows, dropout."""

    deterministic: bool = False
    """Take only operations that give the same bits in every run on a machine; one that has no such form ends
    the run. On a CPU all do anyway; on GPUs it costs time."""

    plugins: list[str] = field(default_factory=list)
    """Folders with your own `schema.py`, `build.py` and `configs/`. Only the command line and your own
    YAML may name them: code named in a checkpoint is never run."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", "must not be negative")
        require(self.name is None or "/" not in self.name, "name", "is a name, not a path; use run.dir")


@dataclass
class TrainConfig:
    """Length and batch of the training."""

    steps: int | None = None
    """Length in optimizer steps. Give one of steps, epochs and tokens; with none it is 5 epochs."""

    epochs: float | None = None
    """Length in passes over the training rows."""

    tokens: int | None = None
    """Length in tokens, rounded up to whole steps."""

    minutes: float | None = None
    """Stop, with a checkpoint, after this many minutes; the schedule is not changed by it."""

    batch_size: int = 32
    """Global batch in rows of `sequence_length` tokens (fine-tuning: in examples), over all processes and
    accumulation."""

    micro_batch_size: int | None = None
    """Rows that one process takes through the model at once. Default: its whole share of the batch, and in a
    pipeline a part of it that keeps all stages busy; smaller values accumulate gradients and need less
    memory."""

    sequence_length: int = 256
    """Tokens in a row; in fine-tuning the longest example, what is longer is cut."""

    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none
    """full keeps only what enters each block and computes the rest again in the backward pass (Chen et al.
    2016): a third more work, and much less memory. selective keeps results of matrix products and of fused
    attention too: less of both."""

    max_bad_steps: int = 10
    """Consecutive steps with a non-finite loss or gradient (each is skipped) before the run gives up."""

    def __post_init__(self) -> None:
        for key in ("steps", "epochs", "tokens", "minutes", "micro_batch_size"):
            value = getattr(self, key)
            require(value is None or value > 0, key, "must be greater than 0")
        for key in ("batch_size", "sequence_length", "max_bad_steps"):
            require(getattr(self, key) > 0, key, "must be greater than 0")


@dataclass
class LaunchConfig:
    """Processes, devices and threads on this machine; ignored under torchrun, which decides itself."""

    num_processes: int | None = None
    """Worker processes. Default: one per GPU; on a machine without, as many as the given degrees of
    `parallel` need."""

    device: Device = Device.auto
    """Device of the workers. auto takes cuda, then mps (one process), then cpu."""

    threads: int | None = None
    """CPU threads of each worker. Default: the cores of the machine shared among its workers, or
    OMP_NUM_THREADS where that is set."""

    bind: bool = True
    """Give each of several workers on CPUs cores of its own, where there are enough."""

    allocator: Allocator = Allocator.auto
    """Memory allocator of the workers. auto and glibc keep what a step gives back, in huge pages (auto: where
    the work is done on CPUs); system changes nothing; jemalloc and tcmalloc are taken where they are
    installed. GLIBC_TUNABLES, MALLOC_CONF and an LD_PRELOAD of your own go first."""

    max_restarts: int = 3
    """When one of several workers is killed, all start again from the last checkpoint: at most so many times
    without a new checkpoint in between, 0 never. Errors that a worker tells of end the run: they would come
    again."""

    parallel_trials: int = 1
    """Trials of a sweep (`-m`) that run at the same time; they share out the cores, and the GPUs where there
    are as many."""

    def __post_init__(self) -> None:
        for key in ("num_processes", "threads"):
            value = getattr(self, key)
            require(value is None or value > 0, key, "must be greater than 0")
        require(self.max_restarts >= 0, "max_restarts", "must not be negative")
        require(self.parallel_trials > 0, "parallel_trials", "must be greater than 0")


@dataclass
class EvalConfig:
    """Evaluation on the validation set."""

    every: int | None = 100
    """Steps between evaluations; 0 evaluates at the end only, null once in an epoch. The last step always
    evaluates."""

    batch_size: int | None = None
    """Rows that one process evaluates at once. Default: two training micro batches, for which there is room
    since nothing is kept for a backward pass."""

    max_tokens: int | None = None
    """Evaluate only the first so many validation tokens. Default: all of them, exactly."""

    patience: int | None = None
    """End the training after so many evaluations in a row without a new best score. Default: never."""

    def __post_init__(self) -> None:
        require(self.every is None or self.every >= 0, "every", "must not be negative")
        for key in ("batch_size", "max_tokens", "patience"):
            value = getattr(self, key)
            require(value is None or value > 0, key, "must be greater than 0")


@dataclass
class CheckpointConfig:
    """Saving the whole state of a run."""

    every: int = 500
    """Steps between checkpoints; 0 saves at the end only. The last step and a stop always save."""

    keep: int = 2
    """Newest checkpoints that are kept; the best one is kept besides."""

    best: bool = True
    """Keep the checkpoint with the best validation score, under `checkpoints/best`: the lowest loss, or the
    task's metric and, where that is equal, the lower loss."""

    background: bool = True
    """Write checkpoints while the training goes on; it pauses only to copy the tensors to memory of the host,
    as much as a checkpoint has bytes. Where that is too short, it waits."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "every", "must not be negative")
        require(self.keep >= 1, "keep", "must be at least 1")


@dataclass
class LogConfig:
    """What is reported, and how often."""

    every: int = 10
    """Steps between lines of the log; the loss in a line is the mean over these steps."""

    panel: Panel = Panel.auto
    """live draws one panel, lines prints one `key=value` line per report; auto draws on a terminal."""

    tensorboard: bool = False
    """Write TensorBoard event files to `tensorboard/` in the run directory (llmtrain[tensorboard])."""

    wandb: bool = False
    """Report to Weights & Biases (llmtrain[wandb]). Its own variables are honoured: WANDB_MODE=offline needs
    no network, WANDB_PROJECT names the project; the key is read by wandb alone."""

    sample_every: int = 0
    """Steps between sample texts, which show what the model writes (or fills in) by then; 0 draws none."""

    sample_prompts: list[str] = field(default_factory=list)
    """Beginnings of the sample texts; for a model of masked tokens texts with [MASK]. Default: the start of a
    document; a model of masked tokens fills the masks of validation text."""

    sample_tokens: int = 60
    """Tokens of a sample text at most."""

    norms: bool = False
    """Report the norms of the weights and of the gradients (before clipping) of each block with each line of
    the log."""

    profile: list[int] = field(default_factory=list)
    """First and last step of which every operation is measured: a trace for chrome://tracing or Perfetto, and
    a table, in `profile/` of the run directory."""

    def __post_init__(self) -> None:
        require(self.every > 0, "every", "must be greater than 0")
        require(self.sample_every >= 0, "sample_every", "must not be negative")
        require(self.sample_tokens > 0, "sample_tokens", "must be greater than 0")
        right = len(self.profile) == 2 and 0 < self.profile[0] <= self.profile[1]
        require(not self.profile or right, "profile", "is first and last step, such as [10,13]")


@dataclass
class SampleConfig:
    """How text is drawn from a model."""

    num_samples: int = 3
    """Texts to draw for each prompt."""

    max_new_tokens: int = 200
    """Tokens to draw at most; the end-of-text token ends a sample before."""

    temperature: float = 0.8
    """Divides the logits; 0 always takes the likeliest token."""

    top_k: int | None = 50
    """Draw among the k likeliest tokens; null draws among all."""

    top_p: float = 1.0
    """Draw among the likeliest tokens that together reach this probability (nucleus sampling)."""

    min_p: float = 0.0
    """Draw among tokens at least this many times as likely as the likeliest; 0 draws among all."""

    repetition_penalty: float = 1.0
    """Makes tokens that stand in prompt or text already less likely; 1 leaves them alone, 1.1 is usual."""

    stop: list[str] = field(default_factory=list)
    """Texts that end a sample; they are cut off, with what follows."""

    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        require(self.num_samples > 0, "num_samples", "must be greater than 0")
        require(self.max_new_tokens > 0, "max_new_tokens", "must be greater than 0")
        require(self.temperature >= 0, "temperature", "must not be negative")
        require(self.top_k is None or self.top_k > 0, "top_k", "must be greater than 0, or null")
        require(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")
        require(0 <= self.min_p <= 1, "min_p", "must be between 0 and 1")
        require(self.repetition_penalty > 0, "repetition_penalty", "must be greater than 0")
        require("" not in self.stop, "stop", "must not hold an empty text")
