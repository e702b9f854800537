"""Processes: dying with the parent, and where output goes."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>."""


def parent_alive(expected_parent: int | None) -> bool:
    """Whether the process that started this one still lives; None means that nobody asked."""
    return expected_parent is None or os.getppid() == expected_parent


def die_with_parent(expected_parent: int | None) -> None:
    """Have the kernel kill this process when its parent ends; to be called first thing.

    Torch's elastic agent starts workers in sessions of their own, so that nothing else would end them
    after a `kill -9` of the agent. Only Linux can do this; elsewhere a thread looks every second.

    Args:
        expected_parent: process id of the parent. It may be dead already, in which case the kernel
            would never tell: then this process ends here. None does nothing.
    """
    if expected_parent is None:
        return
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    else:
        threading.Thread(target=_watch_parent, args=(expected_parent,), daemon=True).start()
    if not parent_alive(expected_parent):
        os.kill(os.getpid(), signal.SIGKILL)


def _watch_parent(expected_parent: int) -> None:
    """Kill this process when its parent has ended."""
    while parent_alive(expected_parent):
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def redirect_output(path: Path) -> None:
    """Append everything that this process and its children print from now on to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)  # a killed process leaves whole lines


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; the number itself for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
