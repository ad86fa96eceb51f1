"""The kernels of row gradients compile for GPUs that are not here: the interpreter takes more."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)

SORTED = {"keys": "*i32", "order": "*i64", "partial": "*fp32", "count": "i32"}
RATES = {"lr": "*fp64", "eps": "fp32"}
ADAM = {"BETA1": 0.9, "BETA2": 0.99, "LOG_BETA1": math.log(0.9), "LOG_BETA2": math.log(0.99)}
SIZES = {"DIM": 12, "VALUE_STRIDE": 12, "BLOCK_D": 16}
WHOLE = {**SIZES, "WEIGHT_STRIDE": 20, "BLOCK_R": 4}
KERNELS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "pieces_kernel": (SORTED, SIZES),
    "sums_kernel": (
        {**SORTED, "out": "*fp32", "targets": "*i64"},
        {**SIZES, "BLOCK_R": 4},
    ),
    "atomic_kernel": (
        {"out": "*fp32", "rows": "*i64", "count": "i32"},
        {**SIZES, "BLOCK_R": 4},
    ),
    "adagrad_kernel": ({**SORTED, **RATES, "weight": "*bf16", "sums": "*fp32"}, WHOLE),
    "adam_kernel": (
        {**SORTED, **RATES, "weight": "*fp16", "mean": "*fp32", "square": "*fp32"}
        | {"steps": "*fp32"},
        {**WHOLE, **ADAM},
    ),
}


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_it_compiles(
    name: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")  # unset it is warned of
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from engram_cli.runtime.kernels import rows

    types, constants = KERNELS[name]
    source = ASTSource(
        fn=getattr(rows, name),
        signature={"values": "*bf16", **types, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 1}
    )
    assert compiled.asm["cubin"]
