"""litgpt's GPT in turns, as its `pretrain` has it: bf16-true, compiled, its chunked cross-entropy.

    python scripts/bench/loops/litgpt_loop.py TOKENS.bin SHAPE.json [--compile] --turns

For an interpreter that has litgpt; it needs nothing of llmtrain.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.utils import chunked_cross_entropy

sys.path.insert(0, str(Path(__file__).parents[1]))
from turns import Turn, serve


def main(tokens_path: Path, shape_path: Path, compiled: bool) -> None:
    """Train on random windows, in turns."""
    turn = Turn()
    shape = json.loads(shape_path.read_text())
    tokens, length = np.memmap(tokens_path, dtype=np.uint16, mode="r"), shape["length"]
    config = Config(
        n_layer=shape["layers"],
        n_head=shape["heads"],
        n_embd=shape["dim"],
        block_size=length,
        vocab_size=shape["vocab"],
        padded_vocab_size=shape["vocab"],
        norm_class_name="LayerNorm",
        mlp_class_name="GptNeoxMLP",
        intermediate_size=4 * shape["dim"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=shape["bias"],
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)  # what Fabric's bf16-true does
    plain = GPT(config)
    model = torch.compile(plain) if compiled else plain
    optimizer = torch.optim.AdamW(
        plain.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )

    def one_step() -> None:
        starts = torch.randint(len(tokens) - length - 1, (shape["batch"],)).tolist()
        rows = torch.stack([torch.from_numpy(tokens[i : i + length + 1].astype(np.int64)) for i in starts])
        loss = chunked_cross_entropy(model(rows[:, :-1]), rows[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    turn.ready(precision="bf16-true", compile=compiled)
    serve(turn, one_step)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), "--compile" in sys.argv)
