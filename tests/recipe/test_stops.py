"""A stop that reaches the processes of a run at different moments ends all of them alike."""

from __future__ import annotations

from pathlib import Path

from llmtrain.recipe.data import stopped_together
from llmtrain.utils.errors import ExitCode, Stopped
from tests.helpers.processes import run_ranks
from tests.helpers.recipes import context


def asked_in_turn(rank: int) -> list[int]:
    """Nobody is asked to stop; one inside its work; one behind it."""
    codes = []
    for inside, behind in ((None, None), (0, None), (None, 1)):
        surroundings, code = context(), 0
        try:
            with stopped_together(surroundings):
                if rank == inside:
                    surroundings.stop.exit_code = ExitCode.REQUEUE
                    surroundings.stop.poll()
                if rank == behind:
                    surroundings.stop.exit_code = ExitCode.TERMINATED
        except Stopped as stopped:
            code = stopped.exit_code
        codes.append(code)
    return codes


def test_all_processes_end_with_the_same_code(tmp_path: Path) -> None:
    codes = [0, ExitCode.REQUEUE, ExitCode.TERMINATED]
    assert run_ranks(asked_in_turn, 2, tmp_path) == [codes, codes]
