"""A worker that really talks to its peers: adds numbers over gloo until it is told to stop."""

from __future__ import annotations

import os
import sys
import time

from llmtrain.utils.processes import die_with_parent
from llmtrain.utils.run_directory import RunDirectory
from llmtrain.utils.signals import StopFlag


def main() -> None:
    stop = StopFlag()
    stop.install()
    die_with_parent(int(os.environ["LLMTRAIN_PARENT"]))
    import torch

    from llmtrain.utils import dist

    torch.set_num_threads(1)
    dist.start()
    run, total = RunDirectory(sys.argv[1]), 0.0
    while dist.sum_over_ranks([float(bool(stop.exit_code))])[0] == 0:
        total = dist.sum_over_ranks([dist.rank() + 1.0])[0]
        (run.path / f"pid-{dist.rank()}").write_text(str(os.getpid()))
        time.sleep(0.01)
    dist.stop()
    (run.path / f"total-{dist.rank()}").write_text(str(total))
    sys.exit(stop.exit_code)


if __name__ == "__main__":
    main()
