"""`llmtrain doctor`: says what is there and what is wrong."""

from __future__ import annotations

import json
import subprocess
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from llmtrain import cli
from llmtrain.command import doctor
from llmtrain.command.doctor import Finding, Status
from llmtrain.utils.machine import num_cores


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["doctor", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part that starts processes is left out."""
    monkeypatch.setattr(doctor, "probe", lambda: iter([Finding("torch", "version", "9.9")]))


def test_everything_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code, out, _ = run(capsys, "--json", f"dir={tmp_path / 'not' / 'there'}")
    report = json.loads(out)
    assert (code, report["ok"]) == (0, True), report
    found = {(one["section"], one["name"]): one for one in report["findings"]}
    assert found["machine", "processor"]["value"] == num_cores()
    assert found["torch", "matrix products"]["value"]["fp32"] > 1e8
    assert found["torch", "two processes"]["value"] > 1e4
    assert found["disk", str(tmp_path)]["value"]["bytes_per_second"] > 1e5
    assert {one["status"] for one in report["findings"]} <= {status.value for status in Status}
    assert "hf_secret" not in out
    assert list(tmp_path.iterdir()) == []


def test_it_reads_well(without_torch: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, f"dir={tmp_path}")
    assert code == 0
    assert "  version" in out
    assert "1 process" in out
    assert "allocator" in out


def test_a_disk_that_cannot_be_written_is_a_problem(
    without_torch: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> float:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor, "write_speed", fail)
    code, out, _ = run(capsys)
    assert code == 1
    assert "problem: " in out
    assert "do: give another place with run.dir=..." in out


def test_warnings_tell_what_to_do(
    without_torch: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(100, 99, 1_000_000))
    monkeypatch.setattr(doctor, "available_memory", lambda: 1_000_000)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1000")
    code, out, _ = run(capsys, f"dir={tmp_path}")
    assert code == 0
    for text in ("1 MB free", "1 MB of", "OMP_NUM_THREADS=1000", "compile=auto never compiles"):
        assert text in " ".join(out.split())
    assert "pip install 'llmtrain[tensorboard]'" in " ".join(out.split())  # however the lines are broken


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"error": "RuntimeError: no route"}, (Status.problem, "no route")),
        ({"bytes_per_second": 2e9}, (Status.ok, "2 GB/s")),
    ],
)
def test_processes_that_do_not_reach_each_other(found: dict[str, Any], expected: tuple[Status, str]) -> None:
    finding = doctor.of_exchange(found)
    assert finding.status is expected[0]
    assert expected[1] in finding.text


def test_a_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, command: list[str], **options: Any) -> None:
            pass

        def communicate(self, timeout: float | None = None) -> tuple[str, str]:
            return "", "Traceback\nImportError: libtorch.so: cannot open\n"

        def poll(self) -> int:
            return 1

        def kill(self) -> None:
            pass

    monkeypatch.setattr(subprocess, "Popen", Broken)
    (finding,) = doctor.probe()
    assert finding.status is Status.problem
    assert finding.text == "ImportError: libtorch.so: cannot open"


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["dri=x"], ["dir="], ["help"]):
        code, _, err = run(capsys, *words)
        assert code == 2
        assert "dir=DIR" in err
    assert cli.main(["pretrain", "--json"]) == 2
    assert "--json" in capsys.readouterr().err
    assert cli.main(["doctor", "--help"]) == 0
    assert "--json" in capsys.readouterr().out


def test_sizes() -> None:
    assert [doctor.size(value) for value in (5, 1500, 2e9, 3e12)] == ["5 B", "1.5 KB", "2 GB", "3 TB"]
