"""What a training has loaded and looked through when its first step begins, told without a clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from llmtrain.utils.garbage import AT_START, USUAL
from tests.helpers.command import environment

CODE = """
import gc, json, os, runpy, sys
from llmtrain import cli
from llmtrain.engine.step import Step
from llmtrain.recipe import training

told, set_up = {}, training.set_up

def execute(module, run):
    assert module == "llmtrain.worker"
    sys.argv = [module, run]
    runpy.run_module(module, run_name="__main__")

def watched_set_up(*arguments):
    told["while it starts"], told["kept"] = gc.get_threshold(), gc.get_freeze_count()
    return set_up(*arguments)

def first_step(*arguments):
    told["in training"], told["modules"] = gc.get_threshold(), sorted(sys.modules)
    print(json.dumps(told), flush=True)
    os._exit(0)

cli.execute, training.set_up, Step.__call__ = execute, watched_set_up, first_step
cli.main(sys.argv[1:])
"""

LATER = (
    "datasets",
    "gguf",
    "huggingface_hub",
    "jinja2",
    "pyarrow",
    "tensorboard",
    "transformers",
    "wandb",
    "torch._inductor.compile_fx",
    "torch.distributed.checkpoint",
    "torch.distributed.elastic",
    "torch.distributed.pipelining",
    "torch.utils.tensorboard",
    "llmtrain.checkpoint.storage",
    "llmtrain.parallel.pipeline",
    "llmtrain.parallel.sharded",
)
"""What the first step of one process without compilation does not need."""


def test_the_first_step_waits_for_nothing_that_it_does_not_need(tmp_path: Path, sentences: Path) -> None:
    words = ["pretrain", "model=gpt/debug", "data=text", f"data.paths=[{sentences}]", "tokenizer=characters"]
    words += [
        "train.batch_size=4",
        "train.sequence_length=32",
        "train.steps=1",
        f"run.dir={tmp_path / 'run'}",
    ]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *words],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
        timeout=120,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert not set(LATER) & set(told["modules"])
    assert told["while it starts"][0] == AT_START
    assert told["kept"] > 50_000  # of torch and of ours: not looked through again
    assert told["in training"] == list(USUAL)
