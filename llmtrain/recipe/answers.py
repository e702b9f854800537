"""What a model that was taught to answer says to some of the prompts that it was not taught."""

from __future__ import annotations

from collections.abc import Sequence

from llmtrain.metrics.summary import typed_path
from llmtrain.recipe.checkpointed import open_checkpoint
from llmtrain.recipe.context import Context
from llmtrain.recipe.scoring import write_predictions
from llmtrain.recipe.terminal import make_console
from llmtrain.recipe.writer import make_writer, printable
from llmtrain.schema.fields import Precision, SampleConfig
from llmtrain.schema.task import GenerationTask
from llmtrain.task.conversations import Conversation
from llmtrain.task.generation import prompt_tokens
from llmtrain.utils.device import pick_device

WIDEST = 400
"""Characters of a prompt that are printed."""


def show_answers(
    task: GenerationTask, examples: Sequence[Conversation], device: str, context: Context
) -> None:
    """Print the likeliest answers of the best checkpoint of a run, and keep them with it.

    It is opened as a whole, on one process: whatever the layout of the training.

    Args:
        task: says how many, and how long.
        examples: to validate on; their first answers are what is asked for.
        device: cpu, cuda, mps or auto.
        context: with the run.
    """
    chosen = examples[: task.samples]
    if not chosen:
        return
    run = context.directory
    loaded = open_checkpoint(str(run.path), context, pick_device(device))
    writer = make_writer(loaded, Precision.fp32)
    prompts = [prompt_tokens(one, writer.template, loaded.tokenizer).tolist() for one in chosen]
    greedy = SampleConfig(num_samples=1, max_new_tokens=task.sample_tokens, temperature=0.0)
    samples = writer.write(prompts, greedy, poll=context.stop.poll)
    console, kept = make_console(), []
    for one, sample in zip(chosen, samples, strict=True):
        asked = "\n".join(message.content for message in one.prompt)
        expected = one.messages[len(one.prompt)].content
        kept.append({"prompt": asked, "expected": expected, "answer": sample.text})
        short = asked if len(asked) <= WIDEST else asked[:WIDEST] + " ..."
        console.print(f"\n{printable(short)}", style="bold", markup=False, soft_wrap=True, highlight=False)
        console.print(printable(sample.text), markup=False, soft_wrap=True, highlight=False)
    write_predictions(run.predictions, kept)
    console.print(f"\nsuch answers: {typed_path(run.predictions)}", markup=False, soft_wrap=True)
