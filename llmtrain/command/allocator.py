"""The memory allocator of C, which has to be chosen before a program starts.

A training step takes and gives back the same large blocks again and again. By itself glibc hands blocks of
more than 32 MB back to the kernel, which fills each page with zeros when it is touched again: a tenth of a
step. What helps is to keep the blocks, in huge pages.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llmtrain.schema.fields import Allocator

KEPT_BLOCK = 1 << 32
"""Blocks up to so many bytes are kept by glibc when they are given back."""

GLIBC_KEEPS = {
    "glibc.malloc.hugetlb": 1,  # ask for huge pages
    "glibc.malloc.mmap_threshold": KEPT_BLOCK,
    "glibc.malloc.trim_threshold": KEPT_BLOCK,
    "glibc.malloc.top_pad": 64 << 20,  # take memory from the kernel in steps of so many bytes
}
"""Settings of glibc, which an older one than 2.35 ignores in part."""

JEMALLOC_KEEPS = "thp:always,metadata_thp:auto,dirty_decay_ms:-1,muzzy_decay_ms:-1"
"""The same for jemalloc."""

LIBRARY_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt/homebrew/lib", "/lib", "/lib64")
"""Where libraries are looked for, with the folder of the architecture (`x86_64-linux-gnu`) in each."""


LIBRARIES: dict[Allocator, tuple[str, ...]] = {
    Allocator.jemalloc: ("libjemalloc.so.2", "libjemalloc.so"),
    Allocator.tcmalloc: (
        "libtcmalloc_minimal.so.4",
        "libtcmalloc.so.4",
        "libtcmalloc_minimal.so",
        "libtcmalloc.so",
    ),
}
"""Files by which the others are found."""

VARIABLES = (
    "GLIBC_TUNABLES",
    "MALLOC_CONF",
    "LD_PRELOAD",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
)
"""By these the user chooses; then nothing is changed. LD_PRELOAD counts where it names a `malloc`."""


@dataclass(frozen=True)
class Choice:
    """An allocator for a program that is about to be started.

    Attributes:
        name: for people.
        variables: that the program has to find in its environment.
        problem: why it is not what was asked for; empty where it is.
    """

    name: str
    variables: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


def choose(wanted: Allocator, on_gpu: bool, environment: Mapping[str, str] = os.environ) -> Choice:
    """Settle an allocator. What the user has set in the environment always stays.

    `auto` keeps glibc, with settings that keep blocks, where the work is done on the CPU: with jemalloc and
    tcmalloc a step was no faster, and a library that is preloaded may be at odds with others.
    """
    given = [name for name in VARIABLES if environment.get(name)]
    if "LD_PRELOAD" in given and "malloc" not in environment["LD_PRELOAD"]:
        given.remove("LD_PRELOAD")
    if given:
        asked = wanted not in (Allocator.auto, Allocator.system)
        problem = f"launch.allocator={wanted.value} is ignored: {given[0]} is set" if asked else ""
        return Choice(f"as set by {' '.join(given)}", problem=problem)
    if wanted in LIBRARIES:
        return _preloaded(wanted, environment.get("LD_PRELOAD", ""))
    version = glibc_version()
    if wanted is Allocator.glibc and version is None:
        return Choice("system", problem="launch.allocator=glibc is ignored: this system has another")
    if wanted is Allocator.system or version is None or (wanted is Allocator.auto and on_gpu):
        return Choice("system")
    settings = ":".join(f"{name}={value}" for name, value in GLIBC_KEEPS.items())
    return Choice(f"glibc {version}, blocks kept in huge pages", {"GLIBC_TUNABLES": settings})


def _preloaded(wanted: Allocator, already: str) -> Choice:
    library = find_library(wanted)
    if library is None:
        what = f"launch.allocator={wanted.value} is ignored: {LIBRARIES[wanted][0]} is not on this machine"
        return Choice("system", problem=what)
    variables = {"LD_PRELOAD": " ".join([*already.split(), str(library)])}
    if wanted is Allocator.jemalloc:
        variables["MALLOC_CONF"] = JEMALLOC_KEEPS
    return Choice(f"{wanted.value} ({library})", variables)


def glibc_version() -> str | None:
    """Version of the C library of this process if it is glibc."""
    if sys.platform != "linux":
        return None
    try:
        ask = ctypes.CDLL(None).gnu_get_libc_version
    except AttributeError:
        return None
    ask.restype = ctypes.c_char_p
    return str(ask().decode())


def find_library(allocator: Allocator) -> Path | None:
    """The library of an allocator, if it is on this machine."""
    if sys.platform != "linux":
        return None  # elsewhere libraries are preloaded in another way
    architecture = f"{os.uname().machine}-linux-gnu"
    places = [
        path
        for name in LIBRARIES[allocator]
        for folder in map(Path, LIBRARY_FOLDERS)
        for path in (folder / architecture / name, folder / name)
    ]
    return next((path for path in places if path.is_file()), None)
