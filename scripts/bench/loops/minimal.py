"""A training loop as one writes it by hand, after the fashion of nanoGPT: the yardstick of the engine.

Model, data and optimizer in plain PyTorch: joined q, k, v, random windows of a token file, fused AdamW,
clipping, warm-up and cosine; by option bf16 autocast and `torch.compile` of the whole model. No checkpoints,
no resume, no reports.

    python scripts/bench/loops/minimal.py TOKENS.bin SHAPE.json [--bf16] [--compile] [--turns | --steps N]
    python scripts/bench/loops/minimal.py TOKENS.bin SHAPE.json --steps N --validation VALID.bin
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, bias=bias), nn.LayerNorm(dim, bias=bias)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias), nn.Linear(dim, dim, bias)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias), nn.Linear(4 * dim, dim, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = (
            y.view(B, T, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(C, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self, layers: int, heads: int, dim: int, length: int, vocab: int, bias: bool = True) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, dim), nn.Embedding(length, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, bias) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(dim, bias=bias), nn.Linear(dim, vocab, bias=False)
        self.head.weight = self.tokens.weight
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                last = name.endswith(("out.weight", "down.weight"))  # of a branch: smaller, as GPT-2 has it
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers) if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten())


class Loop:
    def __init__(self, tokens: np.ndarray, shape: dict[str, Any], bf16: bool, compiled: bool, seed: int = 0):
        torch.manual_seed(seed)
        sizes = {key: shape[key] for key in ("layers", "heads", "dim", "length", "vocab")}
        self.tokens, self.length, self.batch = tokens, shape["length"], shape["batch"]
        self.rate, self.steps, self.warm_up = shape.get("rate", 1e-3), shape.get("steps", 1000), 100
        self.least, self.step, self.bf16 = shape.get("least", 0.0), 0, bf16
        self.plain = Model(**sizes, bias=shape.get("bias", True))
        self.model = torch.compile(self.plain) if compiled else self.plain
        matrices = [p for p in self.plain.parameters() if p.ndim > 1]
        others = [p for p in self.plain.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        betas = (0.9, shape.get("beta2", 0.95))
        self.optimizer = torch.optim.AdamW(groups, lr=self.rate, betas=betas, fused=True)

    def rows(self, starts: list[int]) -> torch.Tensor:
        window = self.length + 1
        return torch.stack([torch.from_numpy(self.tokens[i : i + window].astype(np.int64)) for i in starts])

    def precision(self) -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16) if self.bf16 else nullcontext()

    def one_step(self) -> torch.Tensor:
        rows = self.rows(torch.randint(len(self.tokens) - self.length - 1, (self.batch,)).tolist())
        progress = max(0.0, (self.step - self.warm_up) / max(1, self.steps - self.warm_up))
        cosine = self.least + (self.rate - self.least) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, progress)))
        for group in self.optimizer.param_groups:
            group["lr"] = min(self.rate * (self.step + 1) / (self.warm_up + 1), cosine)
        with self.precision():
            loss = self.model(rows[:, :-1], rows[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.plain.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.detach()

    @torch.no_grad()
    def validation_loss(self, tokens: np.ndarray, batch: int = 256) -> float:
        """Mean loss of a whole text in rows that follow one another."""
        total, count, rest = 0.0, 0, self.length
        starts = list(range(0, len(tokens) - rest - 1, rest))
        text, self.tokens = self.tokens, tokens
        for first in range(0, len(starts), batch):
            rows = self.rows(starts[first : first + batch])
            with self.precision():
                loss = self.plain(rows[:, :-1], rows[:, 1:])
            total, count = total + float(loss) * len(rows), count + len(rows)
        self.tokens = text
        return total / count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokens", type=Path, help="ids, uint16")
    parser.add_argument("shape", type=Path, help="layers, heads, dim, length, batch, vocab as JSON")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--turns", action="store_true")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validation", type=Path)
    options = parser.parse_args()
    shape = json.loads(options.shape.read_text())
    tokens = np.memmap(options.tokens, dtype=np.uint16, mode="r")
    loop = Loop(tokens, shape, options.bf16, options.compile, options.seed)
    if options.turns:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from turns import Turn, serve

        turn = Turn()
        turn.ready(precision="bf16" if options.bf16 else "fp32", compile=options.compile)
        serve(turn, lambda: float(loop.one_step()))
    for number in range(1, options.steps + 1):
        start = time.perf_counter()
        loss = float(loop.one_step())
        print(f"step={number} loss={loss:.4f} {time.perf_counter() - start:.3f}s", flush=True)
        if options.validation and number % 100 == 0:
            found = loop.validation_loss(np.fromfile(options.validation, np.uint16))
            print(f"step={number} val={found:.4f}", flush=True)


if __name__ == "__main__":
    main()
