"""What a user is told when something is wrong, and with which exit code the process ends.

Every mistake that a user can make is a `UserError`: it is printed once, in three lines (what, where,
what to do), without a traceback. Anything else that escapes is a bug and ends with exit code 1.
"""

from __future__ import annotations

from dataclasses import dataclass


class ExitCode:
    """Exit codes of every llmtrain process."""

    OK = 0
    BUG = 1
    CONFIG = 2
    DATA = 3
    NO_CHECKPOINT = 4
    DIVERGED = 5
    DISK = 6
    LOCKED = 7
    HANG = 8
    MEMORY = 9
    REQUEUE = 75
    INTERRUPT = 130
    TERMINATED = 143


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: what it is, where it stands, and what to do about it."""

    what: str
    where: str = ""
    fix: str = ""

    def __str__(self) -> str:
        lines = [f"error: {self.what}"]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  do: {self.fix}")
        return "\n".join(lines)


class UserError(Exception):
    """A mistake or a condition that the user can act upon.

    Args:
        what: one sentence, what is wrong.
        where: file and line, config key, row or rank.
        fix: what to do about it.
    """

    exit_code = ExitCode.DATA

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.problems = [Problem(what, where, fix)]

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class ConfigError(UserError):
    """One or more mistakes in the configuration or on the command line; all are reported at once."""

    exit_code = ExitCode.CONFIG

    def __init__(self, problems: list[Problem] | Problem | str, where: str = "", fix: str = "") -> None:
        if isinstance(problems, str):
            problems = [Problem(problems, where, fix)]
        elif isinstance(problems, Problem):
            problems = [problems]
        super().__init__(problems[0].what)
        self.problems = problems


class DataError(UserError):
    """A data file, a row or the environment is not as it has to be."""

    exit_code = ExitCode.DATA


class NoCheckpointError(UserError):
    """No checkpoint that can be trusted was found where one is needed."""

    exit_code = ExitCode.NO_CHECKPOINT


class DivergedError(UserError):
    """Loss or gradients were not finite for too many steps."""

    exit_code = ExitCode.DIVERGED


class DiskFullError(UserError):
    """There is no room for what has to be written."""

    exit_code = ExitCode.DISK


class RunLockedError(UserError):
    """Another process is at work in the same run directory."""

    exit_code = ExitCode.LOCKED


class MemoryFullError(UserError):
    """Host or device memory ran out."""

    exit_code = ExitCode.MEMORY


class Stopped(Exception):
    """The run was asked to stop by a signal; not an error. Carries the exit code to end with."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"stopped, exit code {exit_code}")
        self.exit_code = exit_code


EXIT_MEANING: dict[int, str] = {
    ExitCode.OK: "ok",
    ExitCode.BUG: "bug",
    ExitCode.CONFIG: "configuration",
    ExitCode.DATA: "data or environment",
    ExitCode.NO_CHECKPOINT: "no valid checkpoint",
    ExitCode.DIVERGED: "diverged",
    ExitCode.DISK: "disk full",
    ExitCode.LOCKED: "locked",
    ExitCode.HANG: "hang",
    ExitCode.MEMORY: "out of memory",
    ExitCode.REQUEUE: "saved, please requeue",
    ExitCode.INTERRUPT: "interrupted",
    ExitCode.TERMINATED: "terminated",
}
"""What each exit code means, in a word or two."""
