"""Imports go down only, and those inside functions are of heavy third-party packages only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS: dict[str, int] = {
    "utils": 0,
    "schema": 1,
    "data": 2,
    "optim": 2,
    "metrics": 2,
    "model": 3,
    "parallel": 4,
    "checkpoint": 4,
    "objective": 4,
    "generate": 4,
    "adapt": 5,
    "task": 5,
    "engine": 6,
    "recipe": 7,
    "compose": 8,
    "command": 9,
}
"""Folders of the package."""

TOP = {"api": 8, "worker": 9, "launch": 10, "cli": 11, "__main__": 12}
"""Modules at the top of the package."""

HEAVY = {
    "datasets",
    "gguf",
    "huggingface_hub",
    "hydra",
    "jinja2",
    "numpy",
    "PIL",
    "datasketch",
    "omegaconf",
    "psutil",
    "pyarrow",
    "rich",
    "safetensors",
    "tensorboard",
    "trafilatura",
    "tokenizers",
    "torch",
    "wandb",
    "yaml",
}
"""Packages that a function may import by itself, because they take long or are optional."""

SLOW = {"llmtrain.checkpoint.storage", "llmtrain.parallel.sharded", "llmtrain.parallel.pipeline"}
"""Modules of ours that a function may import: they draw in torch's distributed checkpoint, DTensor and
pipelines, which take a second; the first training step on one process need not wait for them."""


def modules() -> list[Path]:
    return sorted((ROOT / "llmtrain").rglob("*.py"))


def floor_of(module: str) -> tuple[int, str]:
    """Floor and folder of a module such as `llmtrain.data.rows`."""
    parts = module.split(".")
    if len(parts) == 1:  # the package itself: its version
        return -1, ""
    if parts[1] in FLOORS:
        return FLOORS[parts[1]], parts[1]
    return TOP[parts[1]], parts[1]


def imports(tree: ast.AST, module: str) -> list[tuple[str, int]]:
    """(module, line) of every import; `from llmtrain import x` counts as `llmtrain.x` where that is one."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            assert node.module is not None
            for alias in node.names:
                path = ROOT / node.module.replace(".", "/") / alias.name
                inner = path.is_dir() or path.with_suffix(".py").is_file()
                found.append((f"{node.module}.{alias.name}" if inner else node.module, node.lineno))
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    floor, folder = floor_of(module)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name, line in imports(tree, module):
        if name.split(".")[0] == "llmtrain":
            other, other_folder = floor_of(name)
            assert other < floor or other_folder == folder, (
                f"{module}:{line} imports {name} from above or beside"
            )


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_inside_functions_are_heavy(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for name, line in imports(function, str(path)):
                allowed = name in SLOW or name.split(".")[0] in HEAVY
                assert allowed, f"{path.relative_to(ROOT)}:{line} imports {name} inside a function"


def test_every_folder_has_a_floor() -> None:
    folders = {
        path.parent.relative_to(ROOT / "llmtrain").parts[0]
        for path in modules()
        if path.parent.name != "llmtrain"
    }
    assert folders == FLOORS.keys()
