"""`llmtrain generate`: texts from a language model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from llmtrain.data.chat import Message
from llmtrain.data.lines import require_file
from llmtrain.generate.text import Sample, Writer
from llmtrain.metrics.summary import typed_path
from llmtrain.recipe.context import Context
from llmtrain.recipe.predict import output_file
from llmtrain.recipe.writer import Speed, open_writer, printable, show, told
from llmtrain.schema.roots import GenerateConfig
from llmtrain.utils.errors import DataError
from llmtrain.utils.io import explain_full_disk


def generate(config: GenerateConfig, context: Context) -> int:
    """Print the samples, each after its prompt, or write them to a file."""
    assert config.init_from is not None
    output = output_file(config.output)
    texts = [config.prompt] if config.prompts is None else read_prompts(config.prompts, config.prompt_key)
    writer = open_writer(config.init_from, config.launch.device.value, config.precision, context)
    prompts = [prompt_ids(writer, text, config) for text in texts]
    told(cautions(writer, texts, prompts, config))
    speed = Speed()
    if output is not None:
        with explain_full_disk(output):
            write_file(writer, texts, prompts, config, context, output, speed)
    elif len(prompts) == 1 and config.sample.num_samples == 1:
        write_one(writer, texts[0], prompts[0], config, context, speed)
    else:
        write_all(writer, texts, prompts, config, context, speed)
    print(speed, file=sys.stderr)
    return 0


def prompt_ids(writer: Writer, text: str, config: GenerateConfig) -> list[int]:
    """Tokens of a prompt, which may be a turn of a conversation."""
    if not config.chat:
        return writer.prompt_ids(text)
    system = [] if config.system is None else [Message("system", config.system)]
    return writer.chat_ids([*system, Message("user", text)])


def cautions(
    writer: Writer, texts: Sequence[str], prompts: Sequence[list[int]], config: GenerateConfig
) -> Iterator[str]:
    """What the model does not get to see as it was written."""
    unknown = sum(token == writer.tokenizer.unknown_id for prompt in prompts for token in prompt)
    if unknown:
        yield f"{unknown} tokens of the prompt are unknown to the tokenizer"
    longest, most = max(map(len, prompts)), writer.decoder.max_positions
    if longest > most:
        yield (
            f"the longest prompt has {longest:,} tokens, and the model looks back on {most:,}: of such a "
            f"prompt it sees the last {writer.decoder.window:,}"
        )
    if config.chat and writer.template.plain:
        yield "the tokenizer has no chat template: turns are marked by ### Instruction and ### Response"


def write_one(
    writer: Writer, text: str, prompt: list[int], config: GenerateConfig, context: Context, speed: Speed
) -> None:
    """Print one text as it comes."""
    row = writer.row(prompt, 0, config.sample)
    if not config.chat:
        Console(highlight=False).print(printable(text), style="bold", end="", markup=False, soft_wrap=True)
    try:
        show(writer.stream(row, config.sample, context.stop.poll))
    finally:
        print(flush=True)
        speed.add(len(row.ids))


def write_all(
    writer: Writer,
    texts: Sequence[str],
    prompts: Sequence[list[int]],
    config: GenerateConfig,
    context: Context,
    speed: Speed,
) -> None:
    """Print several texts, each when it is ready."""
    console = Console(highlight=False)
    samples = config.sample.num_samples
    for number, sample in enumerate(write(writer, prompts, config, context, speed)):
        title = f"sample {number % samples + 1}" if samples > 1 else f"prompt {number + 1}"
        if len(prompts) > 1 and samples > 1:
            title = f"prompt {number // samples + 1}, {title}"
        console.rule(title, align="left", style="dim")
        text = texts[number // samples]
        console.print(
            printable(text), style="bold", end="\n" if config.chat else "", markup=False, soft_wrap=True
        )
        print(printable(sample.text), flush=True)


def write_file(
    writer: Writer,
    texts: Sequence[str],
    prompts: Sequence[list[int]],
    config: GenerateConfig,
    context: Context,
    output: Path,
    speed: Speed,
) -> None:
    """Write a JSON line for each text; the file has its name when it is complete."""
    partial = output.with_name(f"{output.name}.partial")
    samples = config.sample.num_samples
    with partial.open("w", encoding="utf-8") as file:
        for number, sample in enumerate(write(writer, prompts, config, context, speed)):
            line: dict[str, Any] = {
                "prompt": texts[number // samples],
                "sample": number % samples,
                "text": sample.text,
                "finish": sample.finish.value,
                "tokens": len(sample.ids),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
    partial.replace(output)
    print(f"{speed.texts:,} texts in {typed_path(output)}", file=sys.stderr)


def write(
    writer: Writer, prompts: Sequence[list[int]], config: GenerateConfig, context: Context, speed: Speed
) -> Iterator[Sample]:
    """All samples, counted."""
    for sample in writer.write(prompts, config.sample, config.batch_size, context.stop.poll):
        speed.add(len(sample.ids))
        yield sample


def read_prompts(name: str, key: str) -> list[str]:
    """The prompts of a file: of a .jsonl file what stands under a key, else the lines.

    Args:
        name: of the file; - is standard input, whose lines are prompts.
        key: see `GenerateConfig.prompt_key`.

    Raises:
        DataError: there is no such file, no prompt in it, or a line that cannot be read.
    """
    where = "standard input" if name == "-" else name
    try:
        content = sys.stdin.buffer.read() if name == "-" else require_file(name, "prompts").read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"the prompts cannot be read: {error}", where, "check its rights") from error
    except UnicodeDecodeError as error:
        fix = "convert the file (iconv -f <encoding> -t utf-8)"
        raise DataError(f"the prompts are not UTF-8: {error}", where, fix) from error
    lines = [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), start=1)]
    lines = [(number, line) for number, line in lines if line.strip()]
    if not lines:
        raise DataError("there are no prompts", where, "give one a line")
    if not name.endswith(".jsonl"):
        return [line for _, line in lines]
    return [prompt_of(line, f"{where}:{number}", key) for number, line in lines]


def prompt_of(line: str, where: str, key: str) -> str:
    """The prompt in a JSON line.

    Raises:
        DataError: there is none.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the line is no JSON: {error}", where, "repair the line") from error
    found = row.get(key) if isinstance(row, dict) else None
    if isinstance(found, str):
        return found
    keys = f" (it has {', '.join(map(str, row))})" if isinstance(row, dict) else ""
    raise DataError(
        f"the line has no text under {key!r}{keys}", where, "set prompt_key=KEY, or repair the line"
    )
