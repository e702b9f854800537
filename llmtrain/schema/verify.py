"""What `llmtrain verify` is told besides the configuration that it verifies."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmtrain.schema.fields import require


@dataclass
class VerifyConfig:
    """Which layouts are compared, for how long, and how much they may deviate."""

    layouts: list[str] = field(default_factory=list)
    """Names such as `fsdp2`, `tp2`, `hsdp2x2`, `ddp2-tp2`, `pp2-gpipe`; `own`: the degrees of your config;
    `all`: a selection of every kind, and own. Default: own where your config has degrees, else all."""

    steps: int = 20
    """Optimizer steps that are compared."""

    loss_tolerance: float = 1e-6
    """Greatest relative deviation of the loss, of any step and of the validation, that counts as equal."""

    norm_tolerance: float = 1e-5
    """Greatest relative deviation of the gradient norm of any step that counts as equal."""

    json: str | None = None
    """File to write the same results to, as JSON."""

    def __post_init__(self) -> None:
        require(self.steps > 0, "steps", "must be greater than 0")
        for key in ("loss_tolerance", "norm_tolerance"):
            require(getattr(self, key) > 0, key, "must be greater than 0")


@dataclass
class VerifyWords:
    """The root of these keys, as the command line has them."""

    verify: VerifyConfig = field(default_factory=VerifyConfig)
    """What is compared."""
