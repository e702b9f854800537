"""`llmtrain chat`: talk with a language model."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from rich.console import Console

from llmtrain.generate.conversation import Conversation
from llmtrain.generate.text import Writer
from llmtrain.metrics.summary import typed_path
from llmtrain.recipe.context import Context
from llmtrain.recipe.writer import Speed, open_writer, show, told
from llmtrain.schema.roots import ChatConfig
from llmtrain.utils.errors import DataError, ExitCode
from llmtrain.utils.signals import end_at_signals

with contextlib.suppress(ImportError):
    import readline  # noqa: F401 - lines can be edited and called back

HELP = (
    "/reset forgets the conversation, /system TEXT starts anew with another system message, /exit ends; "
    "Ctrl-C ends an answer"
)


class AnswerEnded(Exception):
    """The user has heard enough of an answer."""


class Interrupts:
    """Ctrl-C: ends the answer that is being given, and the session when there is none, or at once if it is
    pressed again.

    Attributes:
        answering: whether an answer is being given.
    """

    def __init__(self) -> None:
        self.answering = False
        self._pressed = False

    def install(self) -> None:
        """Handle the signal in this process from now on."""
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.answering or self._pressed:
            raise KeyboardInterrupt
        self._pressed = True

    def poll(self) -> None:
        """Raise if the answer is to end."""
        if self._pressed:
            self._pressed = False
            raise AnswerEnded


def chat(config: ChatConfig, context: Context) -> int:
    """Read turns from the terminal, or from lines of standard input, and answer each."""
    assert config.init_from is not None
    writer = open_writer(config.init_from, config.launch.device.value, config.precision, context)
    console = Console(highlight=False)
    told(cautions(writer))
    if sys.stdin.isatty():
        name = typed_path(Path(config.init_from))
        count = writer.decoder.model.num_parameters()
        console.print(f"{name}: {count:,} parameters", markup=False, soft_wrap=True)
        console.print(HELP, style="dim", soft_wrap=True)
    end_at_signals()  # there is nothing to save
    interrupts = Interrupts()
    interrupts.install()
    try:
        talk(Conversation(writer, config.sample, config.system), config, interrupts, console)
    except KeyboardInterrupt:
        print()
        return ExitCode.INTERRUPT
    return ExitCode.OK


def cautions(writer: Writer) -> Iterator[str]:
    """What the user should know of the model."""
    if writer.template.plain:
        yield "the tokenizer has no chat template: turns are marked by ### Instruction and ### Response"


def turns() -> Iterator[str]:
    """What the user says; empty lines say nothing."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line


def talk(conversation: Conversation, config: ChatConfig, interrupts: Interrupts, console: Console) -> None:
    """The loop."""
    for line in turns():
        command, _, rest = line.partition(" ")
        if command in ("/exit", "/quit"):
            return
        if command in ("/reset", "/system"):
            conversation.reset(rest.strip() if command == "/system" else config.system)
            print("(a new conversation)", file=sys.stderr)
        elif command.startswith("/"):
            known = "" if command == "/help" else f"there is no command {command}; "
            print(f"({known}{HELP})", file=sys.stderr)
        else:
            answer(conversation, line, interrupts, console)


def answer(conversation: Conversation, line: str, interrupts: Interrupts, console: Console) -> None:
    """Give one answer."""
    speed = Speed()
    interrupts.answering = True
    try:
        show(conversation.say(line, interrupts.poll))
        ending = ""
    except AnswerEnded:
        ending = "ended by you; "
    except DataError as error:
        print(error, file=sys.stderr)
        return
    finally:
        interrupts.answering = False
    print(flush=True)
    assert conversation.row is not None
    speed.add(len(conversation.row.ids))
    if conversation.dropped:
        what = f"the oldest {conversation.dropped} messages were dropped"
        print(f"({what}: the conversation had outgrown the model)", file=sys.stderr)
    if sys.stdin.isatty():
        console.print(f"({ending}{speed})", style="dim")
