"""What workers are given: allocator, threads, cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrain.command import allocator, placement
from llmtrain.command.allocator import GLIBC_KEEPS, VARIABLES, choose
from llmtrain.command.placement import core_sets, place
from llmtrain.schema.fields import Allocator, LaunchConfig
from llmtrain.utils.machine import CORES, keep_to_own_cores, num_cores, ranges

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
glibc = pytest.mark.skipif(allocator.glibc_version() is None, reason="needs glibc")


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which libraries are looked for."""
    monkeypatch.setattr(allocator, "LIBRARY_FOLDERS", (str(tmp_path),))
    return tmp_path


@glibc
def test_glibc_takes_our_settings() -> None:
    """The library itself prints what it has understood."""
    choice = choose(Allocator.auto, on_gpu=False, environment={})
    assert choice.problem == ""
    command = "/lib64/ld-linux-x86-64.so.2"
    if not Path(command).exists():
        pytest.skip("another architecture")
    shown = subprocess.run(
        [command, "--list-tunables"], env=dict(choice.variables), capture_output=True, text=True
    )
    understood = dict(line.split(": ", 1) for line in shown.stdout.splitlines() if ": " in line)
    for name, value in GLIBC_KEEPS.items():
        assert int(understood[name].split()[0], 0) == value, name


@glibc
def test_large_blocks_are_not_given_back_to_the_kernel() -> None:
    program = (
        "import ctypes, resource\n"
        "libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p\n"
        "for size in [50 << 20] * 20:\n"
        "    block = ctypes.c_void_p(libc.malloc(size)); ctypes.memset(block, 1, size); libc.free(block)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)"
    )

    def faults(variables: dict[str, str]) -> int:
        environment = {**os.environ, **variables}
        return int(subprocess.check_output([sys.executable, "-c", program], env=environment))

    ours = faults(dict(choose(Allocator.glibc, on_gpu=False, environment={}).variables))
    assert ours < faults({"GLIBC_TUNABLES": ""}) / 5


def test_what_the_user_has_set_stays(libraries: Path) -> None:
    for name in ("GLIBC_TUNABLES", "MALLOC_CONF"):
        choice = choose(Allocator.auto, on_gpu=False, environment={name: "x"})
        assert (dict(choice.variables), choice.problem) == ({}, "")
        assert name in choice.name
    asked = choose(Allocator.jemalloc, on_gpu=False, environment={"LD_PRELOAD": "/x/libtcmalloc.so"})
    assert dict(asked.variables) == {}
    assert "LD_PRELOAD is set" in asked.problem


@linux
def test_libraries_are_preloaded_where_they_are_found(libraries: Path) -> None:
    missing = choose(Allocator.tcmalloc, on_gpu=False, environment={})
    assert dict(missing.variables) == {}
    assert "libtcmalloc_minimal.so.4 is not on this machine" in missing.problem
    (libraries / "libjemalloc.so.2").touch()
    choice = choose(Allocator.jemalloc, on_gpu=True, environment={"LD_PRELOAD": "other.so"})
    assert choice.variables["LD_PRELOAD"] == f"other.so {libraries / 'libjemalloc.so.2'}"
    assert "thp:always" in choice.variables["MALLOC_CONF"]
    assert choice.problem == ""


def test_on_gpus_and_where_it_is_not_wanted_nothing_is_changed() -> None:
    assert dict(choose(Allocator.auto, on_gpu=True, environment={}).variables) == {}
    assert dict(choose(Allocator.system, on_gpu=False, environment={}).variables) == {}


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
def test_cores_are_shared_out(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = {0, 1, 2, 3, 8, 9, 10}
    monkeypatch.setattr(placement.sys, "platform", "linux")
    monkeypatch.setattr(placement, "num_cores", lambda: len(cores))
    monkeypatch.setattr(placement.os, "sched_getaffinity", lambda pid: cores, raising=False)
    sets = core_sets(processes)
    assert sorted(core for one in sets for core in one) == sorted(cores)
    assert {len(one) for one in sets} <= {len(cores) // processes, len(cores) // processes + 1}
    assert core_sets(8) == []


def test_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "core_sets", lambda processes: [[0, 1], [2, 3]])
    monkeypatch.setattr(placement, "num_gpus", lambda: 0)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    system = {"allocator": Allocator.system}
    two = place(LaunchConfig(threads=2, **system), 2)  # type: ignore[arg-type]
    assert two.line == "2 processes of 2 threads, bound to cores 0-1 | 2-3; allocator: system"
    loose = place(LaunchConfig(threads=1, bind=False, **system), 2)  # type: ignore[arg-type]
    assert loose.line == "2 processes of 1 thread; allocator: system"
    assert place(LaunchConfig(), 1).cores == []


def test_ranges() -> None:
    assert ranges([3, 1, 2, 8]) == "1-3,8"
    assert ranges([]) == ""


@linux
def test_a_worker_binds_its_threads() -> None:
    if num_cores() < 2:
        pytest.skip("needs two cores")
    first, second = sorted(os.sched_getaffinity(0))[:2]
    program = (
        "import os, threading\n"
        "from llmtrain.utils.machine import keep_to_own_cores\n"
        "stop = threading.Event(); thread = threading.Thread(target=stop.wait); thread.start()\n"
        "keep_to_own_cores(1)\n"
        "print(os.sched_getaffinity(0), os.sched_getaffinity(thread.native_id)); stop.set()"
    )
    environment = {**os.environ, CORES: f"{first};{second}"}
    assert (
        subprocess.check_output([sys.executable, "-c", program], env=environment, text=True).split()
        == [f"{{{second}}}"] * 2
    )


def test_without_a_choice_nothing_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CORES, "")
    monkeypatch.setattr(os, "sched_setaffinity", lambda *arguments: pytest.fail("bound"), raising=False)
    keep_to_own_cores(0)
    keep_to_own_cores(1)
