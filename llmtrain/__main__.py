"""``python -m llmtrain``, also the entry point under ``torchrun``."""

from llmtrain.utils import garbage

garbage.seldom()

from llmtrain import cli  # noqa: E402  (the imports are what takes the time)


def main() -> int:
    """Run the command; returns its exit code."""
    try:
        return cli.main()
    finally:
        garbage.at_end()


if __name__ == "__main__":
    raise SystemExit(main())
