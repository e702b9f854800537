"""A training loop as one writes it by hand: the yardstick of the engine.

Model, data and optimizer in plain PyTorch, after the fashion of nanoGPT: joined q, k, v, random windows
of a token file,
bf16 autocast, fused AdamW, clipping, warm-up and cosine. No checkpoints, no resume, no reports.

    python scripts/bench/minimal_loop.py TOKENS.bin VOCABULARY STEPS
"""

import math
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

LAYERS, HEADS, DIM, LENGTH, BATCH = 6, 6, 384, 256, 32


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.up, self.down = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)

    def forward(self, x):
        B, T, _ = x.shape
        q, k, v = (y.view(B, T, HEADS, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(DIM, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, DIM))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Model(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, DIM), nn.Embedding(LENGTH, DIM)
        self.blocks, self.norm = nn.ModuleList(Block() for _ in range(LAYERS)), nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, vocab, bias=False)
        self.head.weight = self.tokens.weight
        self.apply(
            lambda m: (
                nn.init.normal_(m.weight, std=0.02) if hasattr(m, "weight") and m.weight.ndim > 1 else None
            )
        )

    def forward(self, ids, labels):
        x = self.tokens(ids) + self.positions(torch.arange(LENGTH))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten())


class Loop:
    def __init__(self, tokens, vocab, steps=1000, rate=1e-3):
        torch.manual_seed(0)
        self.tokens, self.steps, self.rate, self.step = tokens, steps, rate, 0
        self.model = Model(vocab)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)

    def one_step(self):
        starts = torch.randint(len(self.tokens) - LENGTH - 1, (BATCH,)).tolist()
        rows = torch.stack(
            [torch.from_numpy(self.tokens[i : i + LENGTH + 1].astype(np.int64)) for i in starts]
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(
                (self.step + 1) / 20, 0.5 + 0.5 * math.cos(math.pi * self.step / self.steps)
            )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = self.model(rows[:, :-1], rows[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item()


if __name__ == "__main__":
    loop = Loop(np.memmap(sys.argv[1], dtype=np.uint16, mode="r"), int(sys.argv[2]))
    for number in range(int(sys.argv[3])):
        start = time.perf_counter()
        print(f"step={number + 1} loss={loop.one_step():.4f} {time.perf_counter() - start:.3f}s", flush=True)
