"""Settings that are fine by themselves but not together. Everything is reported, nothing is changed.

What depends on devices or on the tokenizer itself is checked again by the workers, in the same form.
"""

from __future__ import annotations

from typing import Any

from llmtrain.schema.data import DataConfig, HuggingFaceData, MixtureData, TextData
from llmtrain.schema.layout import layout_problems
from llmtrain.schema.load import suggest
from llmtrain.schema.model import ModelConfig
from llmtrain.schema.optim import ConstantSchedule
from llmtrain.schema.parallel import count_processes
from llmtrain.schema.roots import (
    ChatConfig,
    ConvertConfig,
    EvaluateConfig,
    FinetuneConfig,
    GenerateConfig,
    PredictConfig,
    PrepareConfig,
    PretrainConfig,
    TrainingConfig,
    UseConfig,
)
from llmtrain.schema.tokenizer import BPETokenizer, BytesTokenizer, FileTokenizer, TokenizerConfig
from llmtrain.utils.errors import Problem


def validate(verb: str, config: Any) -> list[Problem]:
    """Every contradiction in a configuration; `where` of a problem is the key to look at first.

    Args:
        verb: what the configuration is for.
        config: its dataclass.
    """
    problems: list[Problem] = []
    if isinstance(config, TrainingConfig):
        problems += _length(config) + _schedule(config)
        if not isinstance(config, PrepareConfig):
            problems += _adapt(config)
        if not isinstance(config, PrepareConfig):  # it takes one process, here; the training may be elsewhere
            problems += _layout(config)
    if isinstance(config, FinetuneConfig):
        problems += _finetune(config) + _init_from(verb, config.init_from)
    if isinstance(config, PretrainConfig):
        problems += _objective(config)
        problems += _row(config.model, config.train.sequence_length)
        problems += _vocabulary(config.model, config.tokenizer)
    if isinstance(config, PretrainConfig | PrepareConfig):
        problems += _data(config.data) + _tokenizer(config.tokenizer)
    if isinstance(config, PrepareConfig) and config.show < 0:
        problems.append(Problem("show must not be negative", "show", "give the number of rows to print"))
    if isinstance(config, EvaluateConfig):
        problems += _evaluate(config)
    if isinstance(config, PredictConfig):
        problems += _predict(config)
    if isinstance(config, GenerateConfig):
        problems += _generate(config)
    if isinstance(config, ChatConfig) and config.sample.num_samples != 1:
        fix = "leave sample.num_samples out"
        problems.append(Problem("chat gives one answer at a time", "sample.num_samples", fix))
    if isinstance(config, ConvertConfig):
        problems += _convert(config)
    if isinstance(config, UseConfig):
        problems += _init_from(verb, config.init_from)
        if config.launch.num_processes not in (None, 1):
            problems.append(
                Problem(
                    f"{verb} takes one process, not {config.launch.num_processes}",
                    "launch.num_processes",
                    "leave launch.num_processes out",
                )
            )
    return problems


def _init_from(verb: str, init_from: str | None) -> list[Problem]:
    if init_from:
        return []
    fix = "give init_from=RUN, a run directory such as runs/NAME, or a checkpoint directory"
    if verb == "finetune":
        fix += ", or a Hugging Face model directory"
    return [Problem(f"{verb} needs a model: init_from is not set", "init_from", fix)]


def _objective(config: PretrainConfig) -> list[Problem]:
    """The model looks to the sides that the objective takes, and the tokenizer can mask."""
    kind = config.objective.kind
    if config.model.causal == config.objective.causal:
        if config.objective.causal or config.tokenizer.masks is not False:
            return []
        what = f"objective={kind} needs a tokenizer with a mask token; {config.tokenizer.kind} has none"
        fix = "give tokenizer=wordpiece, or tokenizer=file with the tokenizer of an encoder"
        return [Problem(what, "tokenizer", fix)]
    fix = (
        "model=gpt/tiny or another decoder"
        if config.objective.causal
        else "model=bert/tiny or another encoder"
    )
    other = "objective=causal" if config.model.causal else "objective=mlm"
    return [
        Problem(
            f"objective={kind} does not go with a model of kind {config.model.kind}",
            "objective",
            f"give {fix}; or {other}",
        )
    ]


def _finetune(config: FinetuneConfig) -> list[Problem]:
    """There are examples, and settings that fine-tuning does not know are not given."""
    problems = []
    if not config.task.paths:
        fix = "give task.paths=[train.tsv], and task.folder=FOLDER where the files are"
        problems.append(Problem("finetune needs examples: task.paths is empty", "task.paths", fix))
    both = sorted(set(config.task.paths) & set(config.task.validation_paths))
    if both:
        fix = "leave task.validation_paths out: task.validation_fraction holds out a part"
        what = f"trained and validated on the same file: {both[0]}"
        problems.append(Problem(what, "task.validation_paths", fix))
    if config.train.tokens is not None:
        fix = "give train.epochs or train.steps"
        problems.append(Problem("the length of fine-tuning is not set in tokens", "train.tokens", fix))
    if config.eval.max_tokens is not None:
        fix = "give fewer examples in task.validation_paths"
        problems.append(Problem("fine-tuning evaluates all of its examples", "eval.max_tokens", fix))
    held_out = config.task.validation_paths or config.task.validation_fraction
    if config.eval.patience is not None and not held_out:
        fix = "give task.validation_paths or task.validation_fraction"
        problems.append(Problem("patience needs examples to validate on", "eval.patience", fix))
    known = config.task.metrics()
    if config.task.metric not in known:
        what = f"this task has no score {config.task.metric!r}"
        problems.append(Problem(what, "task.metric", suggest(config.task.metric, known)))
    return problems


def _generate(config: GenerateConfig) -> list[Problem]:
    """There is one place for the prompts to come from."""
    problems = []
    if config.prompt and config.prompts is not None:
        what = "both prompt and prompts are given"
        problems.append(Problem(what, "prompts", "give prompt=TEXT, or prompts=FILE"))
    if config.system is not None and not config.chat:
        problems.append(Problem("system is for conversations", "system", "give chat=true too"))
    if config.batch_size <= 0:
        problems.append(Problem("batch_size must be greater than 0", "batch_size", "give a positive number"))
    return problems


def _predict(config: PredictConfig) -> list[Problem]:
    """There is something to predict."""
    problems = []
    if not config.input:
        fix = "give input=FILE, or input=- for lines from standard input"
        problems.append(Problem("predict needs examples: input is not set", "input", fix))
    if config.batch_size <= 0:
        what = f"batch_size must be greater than 0 (batch_size={config.batch_size})"
        problems.append(Problem(what, "batch_size", "change batch_size"))
    return problems


def _convert(config: ConvertConfig) -> list[Problem]:
    """It is said what to write, and where."""
    fixes = {
        "source": "give source=RUN, a run directory such as runs/NAME, or a model made elsewhere",
        "target": "give target=FOLDER, a directory to make",
    }
    return [
        Problem(f"convert needs a {key}: {key} is not set", key, fix)
        for key, fix in fixes.items()
        if not getattr(config, key)
    ]


def _length(config: TrainingConfig) -> list[Problem]:
    """At most one way to say how long."""
    train = config.train
    given = {
        f"train.{key}": getattr(train, key)
        for key in ("steps", "epochs", "tokens")
        if getattr(train, key) is not None
    }
    if len(given) <= 1:
        return []
    settings = ", ".join(f"{key}={value}" for key, value in given.items())
    others = " ".join(f"{key}=null" for key in list(given)[1:])
    fix = f"give one of them; switch the others off, for example {others}"
    return [
        Problem(f"the length of the training is set {len(given)} times: {settings}", next(iter(given)), fix)
    ]


def _layout(config: TrainingConfig) -> list[Problem]:
    """The layout goes with the machine, the batch and, where it is known by now, the model."""
    model = config.model if isinstance(config, PretrainConfig) else None
    world = count_processes(config.launch, config.parallel)
    return layout_problems(config, world, model, config.train.sequence_length)


def _adapt(config: TrainingConfig) -> list[Problem]:
    """Adapters have a model to adapt."""
    if config.adapt is None:
        return []
    problems = []
    if not config.init_from:
        what = f"adapt={config.adapt.kind} adapts a pretrained model: init_from is not set"
        problems.append(Problem(what, "init_from", "give init_from=RUN, or leave adapt out"))
    if isinstance(config, FinetuneConfig) and config.reinitialise:
        what = f"adapt={config.adapt.kind} adapts pretrained weights, and reinitialise=true draws new ones"
        problems.append(Problem(what, "reinitialise", "leave one of them out"))
    return problems


def _schedule(config: TrainingConfig) -> list[Problem]:
    """The warm-up ends before the training does."""
    steps, schedule = config.train.steps, config.schedule
    problems = []
    if steps is not None and schedule.warmup >= 1 and schedule.warmup >= steps:
        decays = not isinstance(schedule, ConstantSchedule)
        problems.append(
            Problem(
                f"schedule.warmup={schedule.warmup:g} steps is the whole training of train.steps={steps}"
                + (", nothing is left for the decay" if decays else ""),
                "schedule.warmup",
                "give fewer steps, or a share of the training such as schedule.warmup=0.02",
            )
        )
    return problems


def _row(model: ModelConfig, sequence_length: int) -> list[Problem]:
    if sequence_length <= model.max_positions:
        return []
    fix = f"give train.sequence_length={model.max_positions}, or model.max_positions={sequence_length}"
    return [
        Problem(
            f"train.sequence_length={sequence_length} exceeds model.max_positions={model.max_positions}",
            "train.sequence_length",
            fix,
        )
    ]


def _vocabulary(model: ModelConfig, tokenizer: TokenizerConfig) -> list[Problem]:
    """The model has a row for every token; the sizes of other tokenizers are known to the workers only."""
    if isinstance(tokenizer, BPETokenizer):
        tokens, name = tokenizer.vocab_size, f"tokenizer.vocab_size={tokenizer.vocab_size}"
    elif isinstance(tokenizer, BytesTokenizer):
        tokens, name = 257, "the 257 tokens of tokenizer=bytes"
    else:
        return []
    if model.vocab_size is None or model.vocab_size >= tokens:
        return []
    fix = "leave model.vocab_size out: it is taken from the tokenizer"
    return [Problem(f"model.vocab_size={model.vocab_size} is below {name}", "model.vocab_size", fix)]


def _data(data: DataConfig, prefix: str = "data") -> list[Problem]:
    """The data source knows what to read, and there is something to validate on."""
    problems: list[Problem] = []
    paths = f"{prefix}.paths"
    if isinstance(data, MixtureData):
        return _mixture(data)
    if isinstance(data, TextData) and not data.paths:
        fix = f"give {paths}=[a.txt,b.jsonl], folders or patterns too: '{paths}=[\"books/*.txt\"]'"
        problems.append(Problem(f"{prefix}=text needs files: {paths} is empty", paths, fix))
    if isinstance(data, HuggingFaceData) and not data.name:
        fix = f"give {prefix}.name=Salesforce/wikitext (and {prefix}.subset=...), or a local folder"
        what = f"{prefix}=huggingface needs a data set: {prefix}.name is not set"
        problems.append(Problem(what, f"{prefix}.name", fix))
    if isinstance(data, TextData):
        if any(not path.strip() for path in [*data.paths, *data.validation_paths]):
            problems.append(Problem(f"{paths} holds an empty path", paths, "remove it"))
        both = sorted(set(data.paths) & set(data.validation_paths))
        if both:
            problems.append(
                Problem(
                    f"trained and validated on the same file: {both[0]}",
                    f"{prefix}.validation_paths",
                    f"leave {prefix}.validation_paths out: {prefix}.validation_fraction holds out a part",
                )
            )
    if isinstance(data, HuggingFaceData) and data.validation_split == data.split:
        fix = f"leave {prefix}.validation_split out: {prefix}.validation_fraction holds out a part"
        what = f"trained and validated on the same split: {data.split}"
        problems.append(Problem(what, f"{prefix}.validation_split", fix))
    if prefix == "data" and data.weight is not None:
        fix = f"leave it out, or give data=mixture data.sources.NAME.weight={data.weight}"
        problems.append(Problem("data.weight is for the sources of data=mixture", "data.weight", fix))
    return problems


def _mixture(data: MixtureData) -> list[Problem]:
    """There are sources, all with a weight or none, and each text is of its own."""
    problems: list[Problem] = []
    if not data.sources:
        fix = "give data.sources.NAME.paths=[...] data.sources.NAME.weight=70, for each source"
        problems.append(Problem("data=mixture needs sources: data.sources is empty", "data.sources", fix))
    without = [name for name, source in data.sources.items() if source.weight is None]
    if without and len(without) < len(data.sources):
        key = f"data.sources.{without[0]}.weight"
        fix = "give each source a weight, or none: then all are read equally often"
        problems.append(Problem(f"{key} is not set, and those of others are", key, fix))
    for section, texts in (("sources", data.sources), ("validation", data.validation)):
        for name, text in texts.items():
            prefix = f"data.{section}.{name}"
            problems += _data(text, prefix)
            if text.isolate_documents:
                fix = "set data.isolate_documents=true, for all of them"
                what = f"{prefix}.isolate_documents is for the whole mixture"
                problems.append(Problem(what, f"{prefix}.isolate_documents", fix))
            own = getattr(text, "validation_paths", None) or getattr(text, "validation_split", None)
            if own and (data.validation or section == "validation"):
                key = "validation_split" if isinstance(text, HuggingFaceData) else "validation_paths"
                fix = "name it among data.validation, too, or leave it out"
                what = f"{prefix}.{key} is not used: data.validation names the texts to validate on"
                problems.append(Problem(what, f"{prefix}.{key}", fix))
            if text.weight is not None and section == "validation":
                fix = "leave it out"
                what = f"{prefix}.weight is of no use: validation texts are not mixed"
                problems.append(Problem(what, f"{prefix}.weight", fix))
    return problems


def _tokenizer(tokenizer: TokenizerConfig) -> list[Problem]:
    if isinstance(tokenizer, FileTokenizer) and not tokenizer.path:
        fix = "give tokenizer.path=path/to/tokenizer.json"
        return [Problem("tokenizer=file needs a file: tokenizer.path is not set", "tokenizer.path", fix)]
    return []


def _evaluate(config: EvaluateConfig) -> list[Problem]:
    problems = _data(config.data) if config.data is not None else []
    for key in ("batch_size", "sequence_length"):
        value = getattr(config, key)
        if value is not None and value <= 0:
            problems.append(Problem(f"{key} must be greater than 0 ({key}={value})", key, f"change {key}"))
    return problems
