"""What one process has of a tensor that several share out."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def own_share(tensor: Any) -> Tensor:
    """This process's share as a plain tensor without a gradient, in the same memory; all of a plain tensor.

    Asked by attribute, since importing DTensor takes a second that one process need not wait.
    """
    own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own.detach()
