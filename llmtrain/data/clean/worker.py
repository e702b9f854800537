"""A process that cleans documents for another one: `python -m llmtrain.data.clean.worker`.

The first line of its standard input is the config; each further line is a list of texts, and is answered by a
line with the list of what became of them, all as JSON. It ends with its input, so that it never outlives
its master.
"""

from __future__ import annotations

import json
import os
import sys
from typing import BinaryIO

from llmtrain.data.clean.steps import Cleaner
from llmtrain.schema.clean import CleanConfig
from llmtrain.schema.load import build
from llmtrain.schema.registry import Registry


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    cleaner = Cleaner(build(CleanConfig, json.loads(requests.readline()), Registry()))
    for line in requests:
        cleaned = [cleaner(text).plain() for text in json.loads(line)]
        answers.write(json.dumps(cleaned).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except BrokenPipeError:  # the master has gone
        os._exit(0)  # not by sys.exit, which would try to write what is left
