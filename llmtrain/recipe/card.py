"""The model card: what a model is, for those who find it."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from llmtrain import __version__
from llmtrain.recipe.conversion import Source
from llmtrain.schema.model import GPTConfig, TransformerConfig
from llmtrain.schema.roots import FinetuneConfig, PretrainConfig


def model_card(source: Source, architecture: str) -> str:
    """Content of `README.md`: metadata in front, then plain Markdown; files go by their names only."""
    licence = licence_of(source)
    front = [
        "---",
        "library_name: transformers",
        f"license: {licence or 'unknown'}",
        "tags:",
        "- llmtrain",
        "---",
    ]
    said = (
        f"The original names the licence {licence}." if licence else "Not known: the maker has not said it."
    )
    sections = [
        "\n".join(front),
        f"# {title(source)}\n\n`{architecture}`, written by llmtrain {__version__}.",
        table("Model", model_facts(source)),
        table("Training", training_facts(source)),
        f"## Licence\n\n{said}",
    ]
    return "\n\n".join(sections) + "\n"


def licence_of(source: Source) -> str | None:
    """The licence that the original names, if it is a foreign one that names any."""
    told = source.config.extra.get("licence")
    return told if isinstance(told, str) else None


def title(source: Source) -> str:
    """A name for the model: that of the run, or of the imported model."""
    imported = source.config.extra.get("imported")
    return str(imported or source.config.run.name or "Model")


def table(heading: str, facts: dict[str, Any]) -> str:
    """A section with a table of those facts that are known."""
    rows = [f"| {name} | {value} |" for name, value in facts.items() if value not in (None, "", [])]
    return "\n".join([f"## {heading}", "", "| | |", "|---|---|", *rows])


def model_facts(source: Source) -> dict[str, Any]:
    """Shape and size."""
    model = source.model
    facts: dict[str, Any] = {
        "kind": model.kind,
        "parameters": f"{sum(one.numel() for one in source.tensors.values()):,}",
        "vocabulary": f"{model.vocab_size:,}",
        "longest row": f"{model.max_positions:,} tokens",
    }
    if isinstance(model, TransformerConfig):
        facts |= {
            "layers": model.num_layers,
            "width": model.dim,
            "feed-forward width": model.feed_forward_dim,
            "heads": model.num_heads,
            "heads of keys and values": model.num_kv_heads if isinstance(model, GPTConfig) else None,
            "positions": model.position.value,
            "norm": model.norm.value,
            "activation": model.activation.value,
        }
    return facts


def training_facts(source: Source) -> dict[str, Any]:
    """What it learned, and from how much of what."""
    config, trained = source.config, source.state.get("train", {})
    tokens = trained.get("tokens")
    facts: dict[str, Any] = {
        "imported from": config.extra.get("imported"),
        "steps": f"{trained['step']:,}" if trained.get("step") else None,
        "tokens seen": f"{tokens:,}" if tokens else "not known" if source.foreign else None,
        "validation loss": trained.get("validation", {}).get("loss"),
        "started from": name_of(config.init_from) if config.init_from else None,
    }
    if isinstance(config, FinetuneConfig):
        return facts | {"task": config.task.kind, "data": names_of(config.task)}
    data = "not known" if config.extra.get("imported") else data_of(config)
    return facts | {"objective": config.objective.kind, "data": data}


def data_of(config: PretrainConfig) -> str:
    """Names of the data of a pretraining."""
    named = getattr(config.data, "name", None)
    return name_of(named) if named else names_of(config.data) or config.data.kind


def names_of(section: Any) -> str:
    """Names of the files of a section, without their folders."""
    return ", ".join(name_of(path) for path in getattr(section, "paths", []))


def name_of(path: str) -> str:
    """The last part of a path; a name on the hub stays whole."""
    parts = PurePath(path).parts
    return path if len(parts) == 2 and not PurePath(path).is_absolute() else parts[-1] if parts else path
