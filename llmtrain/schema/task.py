"""Fine-tuning tasks.

One dataclass for each `kind`: a YAML file of the group starts with `kind: ...`, which names the dataclass
that checks the rest. What is `null` and can be read off the data (the labels and their order) is decided
once and stored with the run, so that `predict` needs no data set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from llmtrain.schema.data import OnError
from llmtrain.schema.fields import require


class Target(str, Enum):
    """What is predicted for an example."""

    label = "label"
    labels = "labels"
    number = "number"


class Pool(str, Enum):
    """Which hidden state stands for a whole example."""

    auto = "auto"
    first = "first"
    last = "last"
    mean = "mean"


class FileFormat(str, Enum):
    """How a file of examples is laid out."""

    auto = "auto"
    tsv = "tsv"
    csv = "csv"
    jsonl = "jsonl"


class Scheme(str, Enum):
    """How tags mark entities: begin, inside, outside, end (or middle), single."""

    bio = "bio"
    bioes = "bioes"
    bmes = "bmes"


class AnswerNormalisation(str, Enum):
    """How answers are compared: the official scripts of SQuAD (words) and CMRC 2018 (characters)."""

    squad = "squad"
    cmrc = "cmrc"


class ConversationFormat(str, Enum):
    """How a file tells what is asked and what is answered."""

    auto = "auto"
    columns = "columns"
    alpaca = "alpaca"
    sharegpt = "sharegpt"
    messages = "messages"


class Turns(str, Enum):
    """How a conversation becomes text."""

    auto = "auto"
    chat = "chat"
    joined = "joined"


class TooLong(str, Enum):
    """What is done with an example that does not fit into a row."""

    cut = "cut"
    skip = "skip"
    fail = "fail"


@dataclass
class TaskConfig:
    """What all tasks share.

    Attributes:
        packs: several examples share a row, each token labelled by itself. Otherwise a row is one example.
    """

    packs: ClassVar[bool] = False

    kind: str = ""
    """Kind of task."""

    folder: str | None = None
    """Folder that the files below are in. Default: they are given with their own paths."""

    paths: list[str] = field(default_factory=list)
    """Files to train on; any may end in .gz."""

    validation_paths: list[str] = field(default_factory=list)
    """Files to validate on. Default: part of the training examples, see validation_fraction."""

    validation_fraction: float = 0.1
    """Share of the training examples, drawn by seed, to validate on where there are no validation files."""

    metric: str = ""
    """Score by which the best checkpoint is chosen and training stops early."""

    on_error: OnError = OnError.fail
    """fail stops at the first broken example with its file and line; skip leaves it out and counts it."""

    def __post_init__(self) -> None:
        require(0 <= self.validation_fraction < 1, "validation_fraction", "must be at least 0 and below 1")

    def metrics(self) -> tuple[str, ...]:
        """Scores that `metric` may name."""
        return ("loss",)


CLASSIFICATION_METRICS: dict[Target, tuple[str, ...]] = {
    Target.label: ("accuracy", "f1", "macro_f1", "matthews", "mean_accuracy_f1"),
    Target.labels: ("micro_f1", "macro_f1", "exact_match"),
    Target.number: ("pearson", "spearman", "mean_correlation"),
}
"""Scores of a classification for each target."""


@dataclass
class ClassificationTask(TaskConfig):
    """One label, several labels or a number for a text or a pair of texts."""

    kind: str = "classification"
    """Kind of task."""

    metric: str = ""
    """Score by which the best checkpoint is chosen: accuracy, f1, macro_f1, matthews, mean_accuracy_f1;
    for target=labels micro_f1, macro_f1, exact_match; for target=number pearson, spearman,
    mean_correlation. (And `loss`, for which lower is better.) Default: the first of these."""

    format: FileFormat = FileFormat.auto
    """How files are laid out. auto goes by the name: .tsv and .txt, .csv, .jsonl."""

    header: bool = True
    """Whether the first line of a TSV or CSV file names the columns."""

    quoting: bool = True
    """Whether `"` quotes a field in TSV and CSV files; GLUE's files have it as an ordinary character."""

    text_column: str = "text"
    """Column of the text; without a header its number, from 0."""

    pair_column: str | None = None
    """Column of the second text of a pair."""

    label_column: str = "label"
    """Column of the label."""

    target: Target = Target.label
    """label: one of several; labels: any number of them; number: regression."""

    labels: list[str] = field(default_factory=list)
    """Labels in the order of their numbers. Default: those of the training files, sorted."""

    separator: str = ","
    """Parts the labels of an example with target=labels, where the column holds a text."""

    pool: Pool = Pool.auto
    """Which hidden state stands for the example. auto: the first of an encoder, the last of a decoder."""

    class_weights: list[float] = field(default_factory=list)
    """Weight of each label in the loss, in the order of `labels`. Default: all 1."""

    balance: bool = False
    """Weigh labels by the inverse of their frequency in the training files (mean weight 1)."""

    label_smoothing: float = 0.0
    """With target=label: share of the target that is spread over all labels (Szegedy et al. 2016), in the
    loss of evaluations too."""

    number_mean: float | None = None
    """With target=number: what a model learns to give as 0. Default: the mean in the training files."""

    number_scale: float | None = None
    """With target=number: how far from number_mean is what a model learns to give as 1. Default: the standard
    deviation in the training files. Predictions and scores are in the unit of the files; `loss` alone is
    the squared error in this scale, so that 1 is no better than always the mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.metric = self.metric or CLASSIFICATION_METRICS[self.target][0]
        require(
            not (self.balance and self.class_weights), "balance", "does not go together with class_weights"
        )
        require(all(w >= 0 for w in self.class_weights), "class_weights", "must not be negative")
        require(len(set(self.labels)) == len(self.labels), "labels", "names a label twice")
        require(self.separator != "", "separator", "must not be empty")
        require(0 <= self.label_smoothing < 1, "label_smoothing", "must be at least 0 and below 1")
        smooth = self.label_smoothing == 0 or self.target is Target.label
        require(smooth, "label_smoothing", "goes with target=label only")
        plain = self.target is not Target.number
        require(plain or not (self.labels or self.class_weights or self.balance), "target",
                "number has no labels, class_weights or balance")  # fmt: skip
        for key in ("number_mean", "number_scale"):
            value = getattr(self, key)
            require(value is None or not plain, key, "is for target=number")
            require(value is None or math.isfinite(value), key, "must be finite")
        require(self.number_scale is None or self.number_scale > 0, "number_scale", "must be greater than 0")

    def metrics(self) -> tuple[str, ...]:
        """Scores that `metric` may name."""
        return ("loss", *CLASSIFICATION_METRICS[self.target])


@dataclass
class TokenClassificationTask(TaskConfig):
    """A tag for each word of a sentence, such as named entities, from files in CoNLL columns."""

    kind: str = "token_classification"
    """Kind of task."""

    metric: str = "f1"
    """Score by which the best checkpoint is chosen: f1, precision, recall (of whole entities), accuracy (of
    words). (And `loss`, for which lower is better.)"""

    word_column: int = 0
    """Column of the word, from 0; columns are parted by blanks or tabs, sentences by empty lines."""

    label_column: int = -1
    """Column of the tag; negative numbers count from the end."""

    scheme: Scheme = Scheme.bio
    """How tags mark entities: bio (B- I- O), bioes (B- I- E- S- O) or bmes (B- M- E- S- O)."""

    labels: list[str] = field(default_factory=list)
    """Tags in the order of their numbers. Default: those of the training files, sorted, O first."""

    class_weights: list[float] = field(default_factory=list)
    """Weight of each tag in the loss, in the order of `labels`. Default: all 1."""

    joined: bool = False
    """Words stand without blanks between them (Chinese characters): how `predict` takes a line apart."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(all(w >= 0 for w in self.class_weights), "class_weights", "must not be negative")
        require(len(set(self.labels)) == len(self.labels), "labels", "names a tag twice")

    def metrics(self) -> tuple[str, ...]:
        """Scores that `metric` may name."""
        return ("loss", "f1", "precision", "recall", "accuracy")


@dataclass
class QuestionAnsweringTask(TaskConfig):
    """The span of a text that answers a question, from files in SQuAD's JSON layout (v1.1 or v2)."""

    kind: str = "question_answering"
    """Kind of task."""

    metric: str = "f1"
    """Score by which the best checkpoint is chosen: f1, exact_match. (And `loss`, lower is better.)"""

    stride: int | None = None
    """Tokens by which windows on a long text overlap. Default: a third of train.sequence_length."""

    max_question_length: int = 64
    """Tokens of a question that are kept."""

    max_answer_length: int = 30
    """Longest answer in tokens."""

    num_best: int = 20
    """Start and end positions that are tried for each window; `predict` lists so many answers."""

    no_answer: bool = False
    """Some questions have no answer (SQuAD v2): the model may say so."""

    no_answer_threshold: float = 0.0
    """Say so when its score is above that of the best answer by more than this."""

    normalisation: AnswerNormalisation = AnswerNormalisation.squad
    """How answers are compared: squad (words, English) or cmrc (characters, Chinese)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.stride is None or self.stride >= 0, "stride", "must not be negative")
        for key in ("max_question_length", "max_answer_length", "num_best"):
            require(getattr(self, key) > 0, key, "must be greater than 0")

    def metrics(self) -> tuple[str, ...]:
        """Scores that `metric` may name."""
        return ("loss", "f1", "exact_match")


@dataclass
class GenerationTask(TaskConfig):
    """Answers to what is asked, in one turn or several: instruction tuning of a decoder."""

    packs: ClassVar[bool] = True

    kind: str = "generation"
    """Kind of task."""

    metric: str = "loss"
    """Score by which the best checkpoint is chosen: loss (lower is better), or accuracy (of tokens)."""

    format: ConversationFormat = ConversationFormat.auto
    """How files tell who says what: columns (a prompt and its completion), alpaca (instruction, input,
    output), sharegpt (conversations of from and value, and tools), messages (of role and content). auto goes
    by the fields of the first example of each file."""

    prompt_column: str = "prompt"
    """Field or column of the prompt, with format=columns."""

    completion_column: str = "completion"
    """Field or column of its completion."""

    turns: Turns = Turns.auto
    """chat writes conversations by the chat template of the tokenizer (or a plain one, where it has none);
    joined puts a completion behind its prompt as it is. auto: joined for format=columns, else chat."""

    system: str | None = None
    """System message of conversations that have none. Default: none, or what the template adds by itself."""

    too_long: TooLong = TooLong.cut
    """What is done with an example of more than train.sequence_length tokens: cut its end, skip it, fail."""

    samples: int = 3
    """Prompts of the validation examples that are answered and printed after the training."""

    sample_tokens: int = 128
    """Tokens of such an answer at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.samples >= 0, "samples", "must not be negative")
        require(self.sample_tokens > 0, "sample_tokens", "must be greater than 0")

    def metrics(self) -> tuple[str, ...]:
        """Scores that `metric` may name."""
        return ("loss", "accuracy")
