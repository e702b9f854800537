"""Which dataclass stands behind each `kind` of each config group. Plugins add theirs here."""

from __future__ import annotations

from llmtrain.schema import adapt, data, model, objective, optim, task, tokenizer


class Registry:
    """Config groups whose choices differ in shape: group name -> kind -> dataclass."""

    def __init__(self) -> None:
        self.groups: dict[str, dict[str, type]] = {}

    def register(self, group: str, schema: type) -> None:
        """Add a choice to a group; its name is the default of the dataclass's field `kind`.

        Raises:
            ValueError: the group has another dataclass of that kind already.
        """
        kind = schema.__dataclass_fields__["kind"].default  # type: ignore[attr-defined]
        known = self.groups.setdefault(group, {}).setdefault(kind, schema)
        if known is not schema:
            raise ValueError(f"group {group!r} has a kind {kind!r} already: {known.__qualname__}")


BUILTIN: dict[str, tuple[type, ...]] = {
    "model": (model.GPTConfig, model.BERTConfig),
    "objective": (objective.CausalConfig, objective.MLMConfig, objective.MLMNSPConfig),
    "data": (
        data.TextData,
        data.HuggingFaceData,
        data.PythonCodeData,
        data.PythonProseData,
        data.MixtureData,
    ),
    "tokenizer": (
        tokenizer.BytesTokenizer,
        tokenizer.CharactersTokenizer,
        tokenizer.BPETokenizer,
        tokenizer.UnigramTokenizer,
        tokenizer.WordPieceTokenizer,
        tokenizer.FileTokenizer,
    ),
    "task": (
        task.ClassificationTask,
        task.TokenClassificationTask,
        task.QuestionAnsweringTask,
        task.GenerationTask,
    ),
    "adapt": (adapt.LoRAConfig,),
    "optim": (
        optim.AdamWConfig,
        optim.AdamConfig,
        optim.SGDConfig,
        optim.AdafactorConfig,
        optim.LionConfig,
        optim.MuonConfig,
    ),
    "schedule": (
        optim.ConstantSchedule,
        optim.LinearSchedule,
        optim.CosineSchedule,
        optim.PolynomialSchedule,
        optim.WSDSchedule,
    ),
}
"""The kinds that ship with llmtrain."""


def builtin_registry() -> Registry:
    """A new registry with everything that ships with llmtrain."""
    registry = Registry()
    for group, schemas in BUILTIN.items():
        for schema in schemas:
            registry.register(group, schema)
    return registry
