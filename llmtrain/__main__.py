"""``python -m llmtrain``, also the entry point under ``torchrun``."""

from llmtrain.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
