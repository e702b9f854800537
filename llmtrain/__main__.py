"""``python -m llmtrain``, also the entry point under ``torchrun``."""

import gc

# What is imported and composed stays: looking through it for garbage is a fifth of the time to an error.
gc.set_threshold(100_000)

from llmtrain.cli import main  # noqa: E402  (the imports are what takes the time)

if __name__ == "__main__":
    raise SystemExit(main())
