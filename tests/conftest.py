"""What all tests share: a cache of their own, a small text, and no network."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def session_environment(tmp_path_factory: pytest.TempPathFactory):
    """One cache for the whole session, two threads at most, and nothing is downloaded."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # In the background of a script (`nohup make test &`). Runs that tests start would inherit it, and not
        # hear a Ctrl-C before they listen for themselves.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("PYTHONWARNINGS", raising=False)
        yield


@pytest.fixture(autouse=True)
def signal_mask():
    """Signals that a test holds back (the command does before it turns into another program) come again: held
    ones would be inherited by the processes of later tests."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def write_sentences(path: Path, lines: int, seed: int = 0) -> Path:
    """A text of made-up sentences with some regularity, always the same for a seed."""
    chooser = random.Random(seed)
    names = ["the cat", "a dog", "my aunt", "the old captain", "every student", "no machine"]
    verbs = ["sees", "follows", "paints", "forgets", "measures", "counts"]
    things = ["the river", "two apples", "a quiet song", "its own shadow", "the first page", "many stars"]
    with open(path, "w", encoding="utf-8") as file:
        for number in range(lines):
            line = f"{chooser.choice(names)} {chooser.choice(verbs)} {chooser.choice(things)}."
            file.write(line.capitalize() + ("\n\n" if number % 5 == 4 else "\n"))
    return path


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of about 60 KB."""
    return write_sentences(tmp_path_factory.mktemp("text") / "sentences.txt", 2000)
