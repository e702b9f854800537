"""A worker that ends with a mistake of the user before it has written anything but its log."""

from __future__ import annotations

import sys

from llmtrain.utils.errors import DataError
from llmtrain.utils.run_directory import RunDirectory
from tests.launch.workers.scripted import end

if __name__ == "__main__":
    run = RunDirectory(sys.argv[1])
    run.logs.mkdir(exist_ok=True)
    (run.path / "script.json").unlink(missing_ok=True)
    end(run, 0, DataError.exit_code, str(DataError("there is no file", "data.paths", "name one")))
