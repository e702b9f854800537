"""Adapters in the files of Hugging Face's PEFT: `adapter_config.json` and `adapter_model.safetensors`.

Where a layer there is several here (GPT-2 joins queries, keys and values), its adapter is theirs side by
side: the matrices A below each other, the matrices B on a diagonal of blocks. PEFT is not needed for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmtrain.checkpoint.disk import SPACE_MARGIN, new_directory, write_tensors
from llmtrain.checkpoint.hf.family import TRANSPOSED, Family, general
from llmtrain.checkpoint.hf.files import read_object, read_safetensors
from llmtrain.checkpoint.hf.write import METADATA, json_text
from llmtrain.checkpoint.weights import Stored
from llmtrain.model.layers.lora import is_adapter
from llmtrain.schema.adapt import LoRAConfig
from llmtrain.utils.errors import ConfigError, DataError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
KEY = re.compile(r"(?P<module>.+)\.lora_(?P<leaf>[AB])(\.default)?\.weight")

UNKNOWN: dict[str, Any] = {
    "use_dora": False,
    "use_qalora": False,
    "use_bdlora": None,
    "lora_bias": False,
    "bias": "none",
    "layer_replication": None,
    "target_parameters": None,
    "trainable_token_indices": None,
}
"""Settings that change what an adapter computes, and the one value of each that is known here."""


@dataclass(frozen=True)
class PeftConfig:
    """What PEFT is told of adapters.

    Attributes:
        lora: rank, alpha, dropout.
        base: name or path of the model that they belong to.
        task: PEFT's name of what the model is for, such as CAUSAL_LM; None does not tell.
    """

    lora: LoRAConfig
    base: str
    task: str | None = None


@dataclass
class Translated:
    """Adapters by PEFT's names.

    Attributes:
        tensors: A and B.
        targets: modules that have an adapter.
        ranks: of those that are joined of several, by the end of the module's name.
        transposed: the weights of the modules are transposed there.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)
    transposed: bool = False


def is_peft(path: Path) -> bool:
    """Whether a directory holds adapters of PEFT."""
    return (path / CONFIG).is_file()


def translate(adapters: Mapping[str, Tensor], family: Family) -> Translated:
    """Adapters by our names as those of a family.

    Raises:
        ConfigError: the values of a weight stand otherwise there, in a way that adapters cannot follow.
    """
    found = Translated()
    modules: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    for name in adapters:
        if not name.endswith(".lora_A"):
            continue
        layer = name.removesuffix(".lora_A")
        change = family.changes.get(f"{general(layer)[0]}.weight")
        key = family.keys.theirs(f"{layer}.weight")
        if key is None or change not in (None, TRANSPOSED):
            raise ConfigError(
                f"an adapter of {layer} cannot be told to a {family.model_type} of Hugging Face",
                "adapt.targets",
                "fold the adapters in instead: merge=true",
            )
        found.transposed |= change is TRANSPOSED
        module, _, part = key.removesuffix(".weight").partition("/")
        modules.setdefault(module, {})[int(part or 0)] = adapters[name], adapters[f"{layer}.lora_B"]
    for module, parts in modules.items():
        count = family.joined.get(general(module)[0], 1)
        a, b = side_by_side(parts, count)
        if len(parts) > 1:
            found.ranks[ending(module)] = len(a)
        found.targets.append(module)
        found.tensors[f"{PREFIX}{module}.lora_A.weight"] = a
        found.tensors[f"{PREFIX}{module}.lora_B.weight"] = b
    return found


def side_by_side(parts: Mapping[int, tuple[Tensor, Tensor]], count: int) -> tuple[Tensor, Tensor]:
    """A and B of one layer whose outputs are those of `count` layers; some of them have an adapter."""
    order = sorted(parts)
    a_RI = torch.cat([parts[number][0] for number in order])
    width, rank = parts[order[0]][1].shape
    b_OR = torch.zeros(count * width, len(a_RI))
    for place, number in enumerate(order):
        b_OR[number * width : (number + 1) * width, place * rank : (place + 1) * rank] = parts[number][1]
    return a_RI, b_OR


def ending(module: str) -> str:
    """The part of a module's name behind the number of its block."""
    return general(module)[0].partition("{}.")[2] or module


def target_modules(targets: Sequence[str], family: Family) -> list[str]:
    """As PEFT is told them: ends of names where these mean nothing else in the family, else whole names."""
    ends = sorted({ending(module) for module in targets})
    numbers = sorted({general(module)[1] or "" for module in targets})
    known = {module.partition("/")[0] for module in family.keys.modules()}
    meant = {
        module.replace("{}", number)
        for module in known
        for number in numbers
        if any(module.endswith(f".{end}") for end in ends)
    }
    return ends if meant == set(targets) else sorted(targets)


def write_peft(
    path: Path,
    tensors: Mapping[str, Tensor],
    family: Family,
    config: PeftConfig,
    texts: Mapping[str, str],
) -> None:
    """Write a directory that PEFT loads.

    Args:
        path: the directory; nothing may be there yet.
        tensors: adapters by our names, and the parameters of a head that learned beside them.
        family: of the base.
        config: what PEFT is told.
        texts: further files, by name.

    Raises:
        ConfigError: a tensor has no counterpart there.
    """
    found = translate({name: one for name, one in tensors.items() if is_adapter(name)}, family)
    head = {name: Stored(one.shape, one.detach) for name, one in tensors.items() if not is_adapter(name)}
    saved = {key: stored.read().contiguous() for key, stored in family.theirs(head, {}).items()}
    lora = config.lora
    content = {
        "peft_type": "LORA",
        "task_type": config.task,
        "base_model_name_or_path": config.base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": target_modules(found.targets, family),
        "modules_to_save": sorted({key.rpartition(".")[0] for key in saved}) or None,
        "rank_pattern": found.ranks,
        "alpha_pattern": {end: lora.scale * rank for end, rank in found.ranks.items()},
        "fan_in_fan_out": found.transposed,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }
    whole = found.tensors | {f"{PREFIX}{key}": one for key, one in saved.items()}
    publish(path, whole, {**texts, CONFIG: json_text(content)})


def publish(path: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Write the files, whole or not at all.

    Raises:
        DiskFullError: there is no room for it; nothing is left behind.
    """
    plain = {key: one.detach().float().cpu().clone().contiguous() for key, one in tensors.items()}
    needed = int(sum(one.nbytes for one in plain.values()) * SPACE_MARGIN)
    with new_directory(path, needed) as temporary:
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        write_tensors(temporary / WEIGHTS, plain, METADATA)


def base_named(path: Path) -> str | None:
    """The model that adapters say they belong to."""
    name = read_object(path / CONFIG).get("base_model_name_or_path")
    return str(name) if name else None


def read_peft(path: Path, family: Family) -> dict[str, Stored]:
    """Adapters of PEFT by our names, with their scale in B, and what learned beside them.

    Args:
        path: the directory.
        family: of the base.

    Raises:
        ConfigError: the adapters are of a kind that is not known here.
        DataError: the files are broken, or belong to another model.
    """
    told, where = read_object(path / CONFIG), str(path)
    other = [
        f"{key}={told[key]}" for key, known in UNKNOWN.items() if told.get(key, known) not in (known, {}, [])
    ]
    if told.get("peft_type") != "LORA":
        other.insert(0, f"peft_type={told.get('peft_type')}")
    if other:
        raise ConfigError(
            f"adapters with {', '.join(other)} are not known here", where, "merge them with PEFT"
        )
    held = read_safetensors(path / WEIGHTS)
    tensors = {key.removeprefix(PREFIX): one.read().float() for key, one in held.items()}
    found: dict[str, Stored] = {}
    unknown = []
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match is not None:
            parts = adapter_parts(match["module"], match["leaf"], tensor, family, told)
        else:
            name = family.keys.ours(family.normalise_key(key) or key)
            own = Stored(tensor.shape, tensor.detach)
            parts = {} if name is None else {name: family.ours(name, own, {})}
        found |= parts
        unknown += [] if parts else [key]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        what = f"the adapters are not of a {family.model_type}: {', '.join(unknown[:3])}{more}"
        raise DataError(what, where, "give the model that they were made for: base=...")
    return found


def adapter_parts(
    module: str, leaf: str, tensor: Tensor, family: Family, told: Mapping[str, Any]
) -> dict[str, Stored]:
    """A or B of a module there, for each of our layers that it is; none if it is not known."""
    layers = layers_of(module, family)
    if not layers or leaf == "A":
        return {f"{layer}.lora_A": Stored(tensor.shape, tensor.detach) for layer in layers}
    scaled = (tensor * scale_of(module, tensor.shape[1], told)).chunk(len(layers), dim=0)
    return {
        f"{layer}.lora_B": Stored(part.shape, part.detach) for layer, part in zip(layers, scaled, strict=True)
    }


def layers_of(module: str, family: Family) -> list[str]:
    """Names of our layers that are a module there, in order; none if it is not known."""
    key = family.normalise_key(f"{module}.weight") or f"{module}.weight"
    stem = key.removesuffix(".weight")
    count = family.joined.get(general(stem)[0])
    keys = [key] if count is None else [f"{stem}/{number}.weight" for number in range(count)]
    names = [family.keys.ours(one) for one in keys]
    return [name.removesuffix(".weight") for name in names if name is not None]


def scale_of(module: str, rank: int, told: Mapping[str, Any]) -> float:
    """What the product of B and A of a module is multiplied by."""
    alpha = told.get("lora_alpha", 8)
    for pattern, own in (told.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = own
            break
    return float(alpha) / (math.sqrt(rank) if told.get("use_rslora") else rank)
