"""A wheel that is installed elsewhere finds its configs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers.paths import CONFIGS, ROOT


@pytest.mark.slow
def test_wheel_carries_its_configs_and_composes_without_the_checkout(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    shipped = {
        path.relative_to(site / "llmtrain/configs") for path in site.glob("llmtrain/configs/**/*.yaml")
    }
    assert shipped == {path.relative_to(CONFIGS) for path in CONFIGS.glob("**/*.yaml")}
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); "
        "from llmtrain.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "pretrain", "experiment=debug", "--cfg", "job"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "num_layers: 2" in done.stdout
    assert not Path(site / "configs").exists()
