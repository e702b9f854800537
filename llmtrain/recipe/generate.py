"""`llmtrain generate`: draw text from a checkpoint."""

from __future__ import annotations

import sys

from rich.console import Console

from llmtrain.generate.text import generate_tokens
from llmtrain.parallel.layout import autocast
from llmtrain.recipe.checkpointed import open_checkpoint
from llmtrain.recipe.context import Context
from llmtrain.recipe.resolve import resolve_precision
from llmtrain.schema.roots import GenerateConfig
from llmtrain.utils.device import pick_device
from llmtrain.utils.errors import ConfigError


def generate(config: GenerateConfig, context: Context) -> int:
    """Print the samples, each after the prompt."""
    device = pick_device(config.launch.device.value)
    assert config.init_from is not None
    loaded = open_checkpoint(config.init_from, context, device)
    if loaded.task is not None or not loaded.model.backbone.causal:
        why = "was trained for a task" if loaded.task is not None else "looks at both sides of a token"
        raise ConfigError(
            f"the model {why}: it does not generate text",
            str(loaded.path),
            "give a run of llmtrain pretrain with a decoder, such as model=gpt/tiny",
        )
    precision = resolve_precision(config.precision, device)
    prompt = loaded.tokenizer.encode(config.prompt).tolist() if config.prompt else []
    unknown = sum(token == loaded.tokenizer.unknown_id for token in prompt)
    if unknown:
        print(f"warning: {unknown} tokens of the prompt are unknown to the tokenizer", file=sys.stderr)
    samples = generate_tokens(
        loaded.model,
        prompt,
        config.sample,
        end_id=loaded.tokenizer.end_id,
        max_positions=loaded.model_config.max_positions,
        device=device,
        autocast=lambda: autocast(device, precision.value),
        poll=context.stop.poll,
    )
    console = Console(highlight=False)
    for number, sample in enumerate(samples, start=1):
        if len(samples) > 1:
            console.rule(f"sample {number}", align="left", style="dim")
        text = loaded.tokenizer.decode(sample)
        console.print(config.prompt, style="bold", end="", markup=False, soft_wrap=True)
        console.print(text, markup=False, soft_wrap=True)
    return 0
