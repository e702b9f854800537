"""Tables of the benchmarks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "scripts" / "bench" / "table.py"


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_table", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RESULT: dict[str, Any] = {
    "title": "A work",
    "unit": "tokens/s",
    "amount": 1000,
    "flops": 2e9,
    "peak_flops": 1e11,
    "how": "3 rounds",
    "rows": [
        {
            "name": "llmtrain",
            "precision": "bf16",
            "compile": "no",
            "allocator": "glibc",
            "seconds": [0.1, 0.2, 0.1],
        },
        {
            "name": "peer",
            "precision": "fp32",
            "compile": "yes",
            "allocator": "glibc",
            "seconds": [0.3, 0.2, 0.2],
        },
        {"name": "absent", "seconds": [], "failed": "not installed"},
    ],
}


def test_ratios_are_of_rounds_and_of_our_speed(table: ModuleType) -> None:
    assert table.paired_ratio([0.1, 0.2, 0.1], [0.3, 0.2, 0.2]) == pytest.approx(2.0)  # of 3, 1 and 2
    assert table.spread([1.0, 2.0, 3.0]) == pytest.approx(0.5)


def test_rows_of_a_work(table: ModuleType) -> None:
    ours, peer, absent = table.work_rows(RESULT)
    assert ours == ["llmtrain", "bf16", "no", "glibc", "100 ms", "10,000", "20 %", "", "±50 %"]
    assert peer[4:8] == ["200 ms", "5,000", "10 %", "2.00"]
    assert absent[4] == "failed"
    assert absent[-1] == "not installed"


def test_values_have_no_amount(table: ModuleType) -> None:
    rows = [
        {"name": "llmtrain", "values": [1.5]},
        {"name": "other", "values": [3.0], "unit": "nats", "note": "far"},
    ]
    ours, other = table.work_rows({**RESULT, "unit": "", "flops": None, "rows": rows})
    assert ours[4:8] == ["1.50 s", "", "", ""]
    assert other[4:] == ["3.00 nats", "", "", "2.00", "±0 %; far"]


def test_a_row_may_have_a_reference_of_its_own(table: ModuleType) -> None:
    rows = [
        {"name": "llmtrain, one way", "values": [1.5], "reference": [1.5]},
        {"name": "other, one way", "values": [3.0], "reference": [1.5]},
        {"name": "llmtrain, another way", "values": [6.0], "reference": [6.0]},
        {"name": "other, another way", "values": [3.0], "reference": [6.0]},
    ]
    found = table.work_rows({**RESULT, "unit": "", "flops": None, "rows": rows})
    assert [row[7] for row in found] == ["", "2.00", "", "0.50"]


def test_markdown_stands_between_two_comments(table: ModuleType) -> None:
    machine = {"date": "2020-02-02", "processor": "P", "threads": 2, "versions": {"torch": "2"}}
    machine |= {"peak_fp32": 1e11, "peak_bf16": 1e12}
    text = table.markdown({"work": RESULT}, machine)
    assert "| peer | fp32 | yes | glibc | 200 ms | 5,000 | 10 % | 2.00 |" in text
    page = f"before\n{table.BEGIN}\nold\n{table.END}\nafter"
    page = table.put_between(page, text)
    assert page.startswith("before\n")
    assert page.endswith("\nafter")
    assert "old" not in page
    assert table.put_between(page, text) == page
    with pytest.raises(ValueError, match="one line"):
        table.put_between("nothing", text)
