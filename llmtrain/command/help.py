"""What `--help` prints. Everything is read from the schemas and the config folders."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable
from enum import Enum
from typing import Any

from llmtrain.command.layouts import SCHEDULE_OF, SELECTION
from llmtrain.command.runs import SORT_KEYS
from llmtrain.command.style import Style, first_sentence
from llmtrain.compose.folders import EXPERIMENT, ConfigFolders
from llmtrain.compose.yaml_files import read_yaml
from llmtrain.schema.docs import field_docs
from llmtrain.schema.load import field_types, given_types, is_group, strip_optional
from llmtrain.schema.registry import Registry
from llmtrain.schema.roots import ROOTS
from llmtrain.schema.verify import VerifyConfig

CONFIGS_SUMMARY = "list, show, copy and check the YAML files that groups choose from."
DOCTOR_SUMMARY = "what this machine offers, what a run would take of it, and what is wrong."
RUNS_SUMMARY = "list, show and compare runs, from the files that they leave."
VERIFY_SUMMARY = "show that your training gives the same curve under other layouts."

OTHER_VERBS = {
    "verify": VERIFY_SUMMARY,
    "runs": RUNS_SUMMARY,
    "configs": CONFIGS_SUMMARY,
    "doctor": DOCTOR_SUMMARY,
}
"""Verbs that take no configuration of their own, and what they do."""

EXAMPLES = (
    ("llmtrain pretrain experiment=debug", "the whole way in seconds, on any machine"),
    (
        "llmtrain pretrain model=gpt/baby data=text data.paths=[book.txt] train.steps=2000",
        "your own text; the same command again resumes it",
    ),
    ("llmtrain generate init_from=runs/NAME prompt='Once upon a time'", "draw text from what was trained"),
    ("llmtrain chat init_from=runs/NAME", "talk with it; or with a Hugging Face directory, or a .gguf file"),
    (
        "llmtrain finetune task=classification/sst2 task.folder=SST-2 init_from=DIR",
        "DIR is a run, or a Hugging Face directory of a BERT",
    ),
    ("llmtrain predict init_from=runs/NAME input=new.txt", "what the fine-tuned model says, line by line"),
)

VERB_EXAMPLES = {
    "finetune": (
        (
            "llmtrain finetune task.paths=[my.csv] task.text_column=review task.label_column=stars ...",
            "your own CSV, TSV or JSON lines; task.target=number or labels for regression or several labels",
        ),
        (
            "llmtrain finetune task=question_answering/squad task.folder=DATA train.sequence_length=384 ...",
            "questions on long texts: windows longer than the default",
        ),
        (
            "llmtrain finetune -m run.seed=1,2,3 task=classification/rte task.folder=RTE init_from=DIR",
            "three seeds; ends with mean and standard deviation",
        ),
    ),
    "predict": (
        ("echo 'a fine film' | llmtrain predict init_from=runs/NAME input=-", "from standard input"),
        (
            "llmtrain predict init_from=runs/NAME input=dev.tsv output=said.jsonl",
            "a file laid out as those of the training",
        ),
    ),
    "generate": (
        (
            "llmtrain generate init_from=DIR prompts=questions.jsonl chat=true output=answers.jsonl",
            "a text for each line of a file, as answers to a user",
        ),
        (
            "llmtrain generate init_from=DIR prompt='1, 2,' sample.temperature=0 sample.stop=[5]",
            "always the likeliest token, until 5 is written",
        ),
    ),
    "chat": (
        (
            "llmtrain chat init_from=DIR system='You answer in one sentence.' precision=bf16",
            "with a system message, and twice as fast where the processor multiplies bf16",
        ),
    ),
    "evaluate": (
        ("llmtrain evaluate init_from=runs/NAME", "on the validation data of the run"),
        ("llmtrain evaluate init_from=runs/NAME data=text data.paths=[book.txt]", "a language model"),
        ("llmtrain evaluate init_from=runs/NAME paths=[test.tsv]", "a fine-tuned model"),
    ),
    "verify": (
        ("llmtrain verify experiment=debug", "one process against every kind of layout"),
        (
            "llmtrain verify finetune task.paths=[my.csv] init_from=DIR parallel.tp=2 launch.num_processes=2",
            "the layout that you mean to train with",
        ),
        ("llmtrain verify model=gpt/small verify.layouts=[fsdp4,ddp2-tp2] verify.steps=5", "those you name"),
    ),
    "convert": (
        (
            "llmtrain convert source=runs/NAME target=DIR",
            "then, in Python: transformers.AutoModel.from_pretrained('DIR')",
        ),
        ("llmtrain convert source=DIR_OR_FILE.gguf target=DIR", "a model of others as a checkpoint"),
    ),
}
"""More examples, for the help of single verbs."""

LAYOUT_HELP = (
    (
        "ddp2 fsdp2 tp2 pp2 cp2",
        "one axis: copies, shards, tensors, a pipeline, parts of each row; any degree",
    ),
    ("hsdp2x4", "copies x shards"),
    ("ddp2-tp2-pp2", "several axes"),
    ("pp2-gpipe", f"another schedule of the pipeline: {', '.join(SCHEDULE_OF)}"),
    ("own", "the degrees of your config"),
    ("all", f"own, and {' '.join(SELECTION)}"),
)

OPTIONS = (
    ("--help", "this text; after a verb: its groups and keys"),
    ("--version", "version of llmtrain"),
    ("--config-dir DIR", "your own YAML files: searched first, same group folders (DIR/model/big.yaml)"),
    ("--cfg job", "print the composed config and stop"),
    ("--dry-run", "print the config, batch arithmetic and sizes, and stop"),
    ("-m", "sweep: run every combination of values such as optim.lr=1e-3,3e-4"),
    ("--completion SHELL", 'completion for bash or zsh: eval "$(llmtrain --completion bash)"'),
)


VERIFY_OPTIONS = {
    "--dry-run": "print what would be changed and what each layout is asked for with, and stop",
    "-m": "not with this verb",
}
"""Options that mean something else there."""


def summary_of(verb: str) -> str:
    """One line on a verb, from its schema's docstring."""
    if verb in (
        only := {
            "configs": CONFIGS_SUMMARY,
            "runs": RUNS_SUMMARY,
            "verify": VERIFY_SUMMARY,
            "doctor": DOCTOR_SUMMARY,
        }
    ):
        return only[verb]
    return " ".join((ROOTS[verb].__doc__ or "").split()).partition(": ")[2]


def verb_groups(verb: str, folders: ConfigFolders) -> dict[str, list[str]]:
    """Groups of a verb and their choices."""
    fields = given_types(ROOTS[verb])
    root = folders.find(verb)
    takes_experiment = root is not None and re.search(
        rf"^\s*- {EXPERIMENT}:", root.read_text(encoding="utf-8"), re.MULTILINE
    )
    return {
        group: choices
        for group, choices in folders.groups().items()
        if group in fields or (group == EXPERIMENT and takes_experiment)
    }


def top_help(folders: ConfigFolders, style: Style) -> str:
    """Help for the whole command."""
    groups = {group: choices for verb in ROOTS for group, choices in verb_groups(verb, folders).items()}
    return "\n".join(
        [
            style.bold("llmtrain") + " trains language models from config files.",
            "",
            style.bold("Usage"),
            "  llmtrain VERB [group=choice ...] [key=value ...] [options]",
            "",
            style.bold("Verbs") + style.dim("    (llmtrain VERB --help: its groups and keys)"),
            style.entries(
                (verb, summary_of(verb)) for verb in [*ROOTS, "verify", "runs", "configs", "doctor"]
            ),
            "",
            style.bold("Groups") + style.dim("   (llmtrain configs ls GROUP: what each choice is)"),
            style.entries((group, "  ".join(choices)) for group, choices in groups.items()),
            "",
            style.bold("Options"),
            style.entries(OPTIONS),
            "",
            style.bold("Examples"),
            *example_lines(EXAMPLES, style),
        ]
    )


def example_lines(examples: Iterable[tuple[str, str]], style: Style) -> list[str]:
    """Commands, each with what it does."""
    return [f"  {style.name(command)}\n      {style.dim('# ' + text)}" for command, text in examples]


def configs_help(style: Style) -> str:
    """Help for `llmtrain configs`."""
    rows = (
        ("configs ls [GROUP]", "list the files of all groups, or of one"),
        ("configs cat NAME", "print a file, such as model/gpt/small"),
        (
            "configs cp NAME DIR",
            "copy a file into your own folder, to change it there; use it with --config-dir DIR",
        ),
        ("configs check", "check every file, with --config-dir DIR yours too"),
    )
    return "\n".join([f"{style.bold('llmtrain configs')}: {CONFIGS_SUMMARY}", "", style.entries(rows)])


def doctor_help(style: Style) -> str:
    """Help for `llmtrain doctor`."""
    rows = (
        ("dir=DIR", "measure the disk there, not where ./runs is"),
        ("--json", "one JSON object, for programs"),
    )
    title = f"{style.bold('llmtrain doctor')}: {DOCTOR_SUMMARY}"
    codes = "Ends with exit code 1 where a run could not work; takes a few seconds."
    return "\n".join([title, "", style.entries(rows), "", codes])


def runs_help(style: Style) -> str:
    """Help for `llmtrain runs`."""
    rows = (
        ("runs ls [key=value ...]", "a table of the runs below ./runs"),
        ("runs show RUN", "one run: what was reached, config, curve, checkpoints, samples"),
        ("runs compare RUN RUN [...]", "what differs in their configs, and their curves side by side"),
        ("runs report RUN [...]", "write report.html (and loss.png) anew"),
    )
    keys = (
        ("dir=DIR", "look for runs there, not in ./runs"),
        ("sort=KEY", f"of ls: {', '.join(SORT_KEYS)} [when]"),
        ("last=N", "of ls: only the last lines of the table"),
        ("key=value", "of ls: only runs whose config has it; also name, state, verb; * stands for anything"),
        ("picture=FILE", "of compare: write the curves to FILE.svg or FILE.png"),
    )
    examples = (
        ("llmtrain runs ls state=finished sort=best", "the best ones first"),
        ("llmtrain runs ls model.dim=256 'name=sweep-*' last=5", "those you mean"),
        ("llmtrain runs compare sweep-0 sweep-1 picture=both.svg", "in common axes"),
    )
    return "\n".join(
        [
            f"{style.bold('llmtrain runs')}: {RUNS_SUMMARY}",
            "",
            style.entries(rows),
            "",
            style.bold("Words") + style.dim("   (RUN: a path, a name below ./runs, or its beginning)"),
            style.entries(keys),
            "",
            style.bold("Examples"),
            *example_lines(examples, style),
        ]
    )


def verify_help(style: Style) -> str:
    """Help for `llmtrain verify`."""
    return "\n".join(
        [
            f"{style.bold('llmtrain verify')}: {VERIFY_SUMMARY}",
            "",
            style.bold("Usage"),
            "  llmtrain verify [pretrain|finetune] [group=choice ...] [key=value ...] [verify.key=value ...]",
            "",
            style.bold("Keys")
            + style.dim("   (and those of the verb that is verified: pretrain, if none is named)"),
            _rows("verify", VerifyConfig, {}, style),
            "",
            style.bold("Layouts"),
            style.entries(LAYOUT_HELP),
            "",
            style.bold("Options"),
            style.entries((dict(OPTIONS) | VERIFY_OPTIONS).items()),
            "",
            style.bold("Examples"),
            *example_lines(VERB_EXAMPLES["verify"], style),
        ]
    )


def verb_help(verb: str, folders: ConfigFolders, registry: Registry, style: Style) -> str:
    """Help for one verb: groups, then every key with type, default and meaning."""
    parts = [
        f"{style.bold(f'llmtrain {verb}')}: {summary_of(verb)}",
        "",
        style.bold("Usage"),
        f"  llmtrain {verb} [group=choice ...] [key=value ...] [options]",
    ]
    groups = verb_groups(verb, folders)
    chosen, given = verb_defaults(verb, folders)
    if groups:
        rows = [
            (f"{group}=", "  ".join(f"[{one}]" if one == chosen.get(group) else one for one in choices))
            for group, choices in groups.items()
        ]
        parts += ["", style.bold("Groups") + style.dim("   (default in brackets)"), style.entries(rows)]
    parts += [
        "",
        style.bold("Keys")
        + style.dim("   (default in brackets; the file of a choice, or an experiment, may set another)"),
    ]
    plain: list[tuple[str, str]] = []
    sections: list[str] = []
    docs = field_docs(ROOTS[verb])
    for name, hint in given_types(ROOTS[verb]).items():
        bare = strip_optional(hint)[0]
        if not dataclasses.is_dataclass(bare):
            plain.append(_row(name, ROOTS[verb], name, hint, docs, given))
        elif is_group(name, hint, registry):
            sections += _group_rows(name, docs.get(name, ""), typing.cast(type, bare), registry, given, style)
        else:
            title = f"  {style.bold(name)}  {style.dim(first_sentence(docs.get(name, '')))}"
            sections += ["", title, _rows(name, typing.cast(type, bare), given, style)]
    parts += [style.entries(plain, indent=4, column=34), *sections]
    parts += ["", style.bold("Options"), style.entries(OPTIONS)]
    examples = [one for one in EXAMPLES if one[0].startswith(f"llmtrain {verb} ")]
    examples += VERB_EXAMPLES.get(verb, ())
    if examples:
        parts += ["", style.bold("Examples"), *example_lines(examples, style)]
    return "\n".join(parts)


def verb_defaults(verb: str, folders: ConfigFolders) -> tuple[dict[str, str], dict[str, Any]]:
    """What the verb's own YAML file and the files that it chooses set: choices of groups, values of keys."""
    path = folders.find(verb)
    if path is None:
        return {}, {}
    file = read_yaml(path)
    pairs = [pair for entry, _ in file.defaults if isinstance(entry, dict) for pair in entry.items()]
    chosen = {group: choice for group, choice in pairs if choice}
    given: dict[str, Any] = {}
    for group, choice in chosen.items():
        if (path := folders.find(f"{group}/{choice}")) is not None:
            given |= {f"{group}.{leaf.key}": leaf.value for leaf in read_yaml(path).leaves}
    return chosen, given | {leaf.key: leaf.value for leaf in file.leaves}


def _group_rows(
    group: str, doc: str, base: type, registry: Registry, given: dict[str, Any], style: Style
) -> list[str]:
    """The shared keys of a group, then those of each kind."""
    lines = ["", f"  {style.bold(group)}  {style.dim(first_sentence(doc))}"]
    shared = [name for name in field_types(base) if name != "kind"]
    if shared:
        lines.append(_rows(group, base, given, style, skip=("kind",)))
    for kind, schema in registry.groups[group].items():
        # What is given is for the kind that is chosen, or for all where the verb's own file chooses none.
        known = given if given.get(f"{group}.kind", kind) == kind else {}
        rows = _rows(group, schema, known, style, skip=("kind", *shared))
        lines.append(f"    {style.dim(f'{kind}: {about_schema(schema)}')}")
        if rows:
            lines.append(rows)
    return lines


def about_schema(schema: type) -> str:
    """First sentence of a schema's docstring."""
    return first_sentence(" ".join((schema.__doc__ or "").split()))


def _rows(section: str, schema: type, given: dict[str, Any], style: Style, skip: tuple[str, ...] = ()) -> str:
    """Entries for the keys of one section."""
    return style.entries(_entries(section, schema, given, skip), indent=4, column=34)


def _entries(
    section: str, schema: type, given: dict[str, Any], skip: tuple[str, ...] = ()
) -> list[tuple[str, str]]:
    """Keys of a section and of the sections in it, each with what there is to say."""
    docs = field_docs(schema)
    rows: list[tuple[str, str]] = []
    for name, hint in field_types(schema).items():
        inner = strip_optional(hint)[0]
        if name in skip:
            continue
        if dataclasses.is_dataclass(inner):
            rows += _entries(f"{section}.{name}", typing.cast(type, inner), given)
        else:
            rows.append(_row(f"{section}.{name}", schema, name, hint, docs, given))
    return rows


def _row(
    key: str, schema: type, name: str, hint: Any, docs: dict[str, str], given: dict[str, Any]
) -> tuple[str, str]:
    """Key, and: type [default] meaning."""
    default = value_text(given[key]) if key in given else default_text(schema, name)
    return key, f"{short_type(hint)} [{default}]  {first_sentence(docs.get(name, ''))}"


def default_text(schema: type, name: str) -> str:
    """Default of a field as a user would type it."""
    field = {field.name: field for field in dataclasses.fields(schema)}[name]
    value = field.default
    if value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    return value_text(value)


def value_text(value: Any) -> str:
    """A value as a user would type it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Enum):
        return str(value.value)
    return "''" if value == "" else str(value)


def short_type(hint: Any) -> str:
    """A type in a word."""
    bare, _ = strip_optional(hint)
    if isinstance(bare, type) and issubclass(bare, Enum):
        return "|".join(str(member.value) for member in bare)
    if typing.get_origin(bare) is list:
        return "list"
    if typing.get_origin(bare) is dict:
        return "section"
    return {int: "int", float: "float", bool: "true|false", str: "text"}.get(bare, "value")
