"""The words of `--help` that are not read from the schemas."""

from __future__ import annotations

from llmtrain.command.layouts import SCHEDULE_OF, SELECTION

OTHER_VERBS = {
    "verify": "show that your training gives the same curve under other layouts.",
    "runs": "list, show and compare runs, from the files that they leave.",
    "configs": "list, show, copy and check the YAML files that groups choose from.",
    "doctor": "what this machine offers, what a run would take of it, and what is wrong.",
}
"""Verbs without a schema of their own, and what they do."""

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
