"""Write the golden losses anew: `make golden`. A change has to be explained in the commit."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.golden.test_golden import GOLDEN, golden_run

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        losses = golden_run(Path(folder))
    GOLDEN.write_text(json.dumps(losses, indent=2) + "\n")
    print(f"wrote {len(losses)} losses to {GOLDEN}")
