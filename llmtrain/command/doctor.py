"""`llmtrain doctor`: what this machine offers, what a run would take of it, and what is wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from llmtrain import __version__
from llmtrain.command.allocator import LIBRARIES, find_library
from llmtrain.command.environment import describe_environment
from llmtrain.command.placement import place
from llmtrain.command.style import Style
from llmtrain.schema.fields import LaunchConfig
from llmtrain.utils.errors import ConfigError, ExitCode
from llmtrain.utils.io import cache_directory
from llmtrain.utils.machine import available_memory, num_cores, processor_name, total_memory

EXTRAS = {
    "tensorboard": ("tensorboard", "log.tensorboard=true"),
    "wandb": ("wandb", "log.wandb=true"),
    "report": ("PIL", "loss.png, and curves as PNG"),
    "gguf": ("gguf", "opening .gguf files"),
    "hub": ("huggingface_hub", "init_from=owner/name, from the Hugging Face hub"),
    "clean": ("datasketch", "data.clean: near duplicates"),
    "clean ": ("trafilatura", "data.clean: text out of HTML"),
}
"""Extra -> a package of it, and what it is for."""

PROBE_SECONDS = 60.0
"""Longest that the part with torch may take."""

DISK_SECONDS, DISK_BYTES, DISK_BLOCK = 0.7, 256 << 20, 8 << 20
"""The disk is written to for so long, so much at most, in such blocks."""

LOW_DISK = 2 << 30
"""Free bytes below which a warning is due."""


class Status(str, Enum):
    """What a finding means for a run."""

    ok = "ok"
    missing = "missing"
    warning = "warning"
    problem = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        section: it belongs to.
        name: of it.
        text: what was found, for people.
        status: what that means.
        fix: what to do about it.
        value: what was found, for programs.
    """

    section: str
    name: str
    text: str
    status: Status = Status.ok
    fix: str = ""
    value: Any = None


def doctor(words: Sequence[str], style: Style, as_json: bool) -> int:
    """Look at everything and print it.

    Args:
        words: `dir=DIR`, a folder for runs; default: `runs` here.
        style: for the terminal.
        as_json: print one JSON object instead.

    Returns:
        0, or 1 where there is a problem; warnings are none.

    Raises:
        ConfigError: a word is unknown.
    """
    folder = read_words(words)
    findings = [one for look in looks(folder) for one in look()]
    bad = any(one.status is Status.problem for one in findings)
    if as_json:
        print(json.dumps({"ok": not bad, "findings": [asdict(one) for one in findings]}, indent=2))
    else:
        print(report(findings, style))
    return ExitCode.BUG if bad else ExitCode.OK


def read_words(words: Sequence[str]) -> Path:
    """The folder for runs.

    Raises:
        ConfigError: a word is unknown.
    """
    folder = "runs"
    for word in words:
        key, _, value = word.partition("=")
        if key != "dir" or not value:
            raise ConfigError(f"doctor does not know {word!r}", "command line", "write dir=DIR")
        folder = value
    return Path(folder).absolute()


def looks(folder: Path) -> list[Callable[[], Iterator[Finding]]]:
    """What is looked at, in this order."""
    return [machine, probe, launching, compiler, lambda: disk(folder), caches, extras, variables]


def machine() -> Iterator[Finding]:
    """Python, processor, memory."""
    yield Finding("program", "llmtrain", __version__)
    yield Finding("program", "python", f"{platform.python_version()} ({sys.executable})")
    cores, load = num_cores(), os.getloadavg()[0]
    yield Finding("machine", "system", platform.platform())
    yield Finding("machine", "processor", f"{processor_name()}, {cores} cores for us", value=cores)
    if load > 0.5 * cores:
        fix = "measure speed when nothing else runs"
        yield Finding("machine", "load", f"{load:.1f}: others are at work here", Status.warning, fix, load)
    free, total = available_memory(), total_memory()
    low = free < 1 << 30
    fix = "end other programs, or take a smaller model" if low else ""
    status = Status.warning if low else Status.ok
    yield Finding("machine", "memory", f"{size(free)} of {size(total)} are free", status, fix, free)


def probe() -> Iterator[Finding]:
    """What torch says, in processes of its own, and whether they reach each other."""
    with tempfile.TemporaryDirectory(prefix="llmtrain-doctor-") as folder:
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        environment = {**os.environ, **place(LaunchConfig(), 1).allocator.variables}
        command = [sys.executable, "-m", "llmtrain.utils.probe", f"{folder}/meeting"]
        children = [
            subprocess.Popen(
                [*command, rank],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**environment, "GLOO_SOCKET_IFNAME": loopback},
            )
            for rank in ("0", "1")
        ]
        try:
            said, errors = children[0].communicate(timeout=PROBE_SECONDS)
            found = json.loads(said)
        except (subprocess.TimeoutExpired, ValueError):
            last = "" if children[0].poll() is None else errors.strip().rpartition("\n")[2]
            what = last or f"it did not answer within {PROBE_SECONDS:g} seconds"
            yield Finding("torch", "import", what, Status.problem, "install torch anew: pip install torch")
            return
        finally:
            for child in children:
                child.kill()
                child.communicate()
    yield from of_torch(found["torch"])
    yield of_exchange(found["exchange"])


def of_torch(found: dict[str, Any]) -> Iterator[Finding]:
    """What matters of torch for the speed of a run."""
    build = f"CUDA {found['cuda']}" if found["cuda"] else "CPU build"
    yield Finding("torch", "version", f"{found['version']} ({build})", value=found["version"])
    has = [name for name, there in (("AMX", found["amx"]), ("AVX512-BF16", found["avx512_bf16"])) if there]
    said = ", ".join([found["instructions"], *has])
    yield Finding("torch", "instructions", said, value={key: found[key] for key in ("amx", "avx512_bf16")})
    for number, gpu in enumerate(found["gpus"]):
        text = f"{gpu['name']}, {size(gpu['memory_bytes'])}, compute capability {gpu['capability']}"
        yield Finding("torch", f"gpu {number}", text, value=gpu)
    if not found["gpus"]:
        driver = Path("/proc/driver/nvidia").exists()
        fix = "install a CUDA build of torch that fits the driver" if driver else ""
        text = "none that torch can use" + (", though there is a driver" if driver else "")
        text = "mps" if found["mps"] else text
        yield Finding("torch", "gpus", text, Status.warning if driver else Status.ok, fix, [])
    yield Finding("torch", "precision=auto", f"takes {found['precision']} here", value=found["precision"])
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in found["flops"].items())
    text = f"{rates} on {found['threads']} threads of the CPU"
    yield Finding("torch", "matrix products", text, value=found["flops"])


def of_exchange(found: dict[str, Any]) -> Finding:
    """Whether two processes of this machine can train together."""
    if "error" not in found:
        rate = found["bytes_per_second"]
        return Finding(
            "torch", "two processes", f"reach each other, {size(rate)}/s over loopback", value=rate
        )
    fix = "see that the loopback interface is up (ip addr show lo) and not behind a firewall"
    return Finding("torch", "two processes", found["error"], Status.problem, fix)


def launching() -> Iterator[Finding]:
    """What the workers of a run would get."""
    placement = place(LaunchConfig(), 1)
    yield Finding("a run", "takes", placement.line, value=dict(placement.allocator.variables))
    two = place(LaunchConfig(), 2)
    yield Finding("a run", "of two", two.line, value=two.cores)
    found = [one.value for one in LIBRARIES if find_library(one) is not None]
    text = ", ".join(found) or "neither jemalloc nor tcmalloc is installed; nothing is lost by that"
    yield Finding("a run", "allocators", text, value=found)
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > num_cores():
        text = f"OMP_NUM_THREADS={given}, and there are {num_cores()} cores"
        yield Finding("a run", "threads", text, Status.warning, "unset OMP_NUM_THREADS, or lower it", given)


def compiler() -> Iterator[Finding]:
    """What torch.compile needs on a CPU."""
    path = shutil.which("g++") or shutil.which("clang++")
    if path is not None:
        yield Finding("a run", "compiler", path, value=path)
        return
    fix = "install g++ for compile=auto to compile long fp32 runs on the CPU"
    yield Finding("a run", "compiler", "none: compile=auto never compiles", Status.missing, fix)


def disk(folder: Path) -> Iterator[Finding]:
    """Room and speed where runs go."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        rate = write_speed(there)
    except OSError as error:
        fix = "give another place with run.dir=..."
        text = f"cannot be written: {error.strerror}"
        yield Finding("disk", str(there), text, Status.problem, fix)
        return
    free = shutil.disk_usage(there).free
    status, fix = Status.ok, ""
    if free < LOW_DISK:
        status, fix = Status.warning, "free some space, or give another place with run.dir=..."
    text = f"{size(free)} free, written and synced at {size(rate)}/s"
    yield Finding("disk", str(there), text, status, fix, {"free": free, "bytes_per_second": rate})


def write_speed(folder: Path) -> float:
    """Bytes per second that reach the disk."""
    block, written = os.urandom(DISK_BLOCK), 0
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        while written < DISK_BYTES and time.perf_counter() - start < DISK_SECONDS:
            written += file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return written / (time.perf_counter() - start)


def caches() -> Iterator[Finding]:
    """What is kept between runs."""
    ours = cache_directory()
    yield Finding(
        "caches", "llmtrain", f"{ours}{'' if ours.exists() else ' (not there yet)'}", value=str(ours)
    )
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    models = len(list(hub.glob("models--*"))) if hub.is_dir() else 0
    text = f"{models} models in {hub}" if models else f"no models in {hub}: names of the hub need the network"
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    yield Finding("caches", "Hugging Face", text + offline, value=models)


def extras() -> Iterator[Finding]:
    """Optional packages."""
    for extra, (package, purpose) in EXTRAS.items():
        name = extra.strip()
        if importlib.util.find_spec(package) is not None:
            yield Finding("extras", package, f"installed: {purpose}", value=True)
        else:
            fix = f"pip install 'llmtrain[{name}]'"
            yield Finding("extras", package, f"missing, for {purpose}", Status.missing, fix, False)


def variables() -> Iterator[Finding]:
    """Environment variables that change what a run does."""
    for name, value in describe_environment()["variables"].items():
        yield Finding("environment", name, value, value=value)


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def report(findings: Sequence[Finding], style: Style) -> str:
    """Everything by section; what has to be done stands at its place and again at the end."""
    lines, column = [], 4 + max(len(one.name) for one in findings)
    for section in dict.fromkeys(one.section for one in findings):
        lines.append(style.bold(section))
        of = [one for one in findings if one.section == section]
        lines.append(style.entries(((one.name, marked(one)) for one in of), column=min(column, 24)))
    wrong = [one for one in findings if one.status in (Status.problem, Status.warning)]
    lines += ["", style.bold("all is well" if not wrong else "to be looked at")]
    lines += [f"  {one.status.value}: {one.name}: {one.text}\n    do: {one.fix}" for one in wrong]
    return "\n".join(lines)


def marked(finding: Finding) -> str:
    """A finding with its mark."""
    if finding.status is Status.ok:
        return finding.text
    if finding.status is Status.missing:
        return f"{finding.text}: {finding.fix}"
    return f"{finding.status.value}: {finding.text}"
