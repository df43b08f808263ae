from typing import Any

import torch

def step(
    rule: int,
    param_groups: list[dict[str, Any]],
    state: dict[Any, Any],
    grad_scale: torch.Tensor | float | None,
    found_inf: torch.Tensor | float | None,
) -> str | None: ...
def step_on_host(
    rule: int,
    param_groups: list[dict[str, Any]],
    state: dict[Any, Any],
    grad_scale: torch.Tensor | None,
    found_inf: torch.Tensor | None,
    blocks: int,
    threads: int,
) -> int: ...
def rules() -> list[str]: ...
def built_isas() -> list[str]: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
def openmp_runtime() -> str: ...
