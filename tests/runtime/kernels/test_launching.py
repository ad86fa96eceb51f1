"""Launches past Triton's own: the same kernel, the same arguments, or Triton's way."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
STREAM, DEVICE = 77, 3


class OnGpu(torch.Tensor):
    """A tensor that says that it lies on a GPU."""

    is_cuda = True  # type: ignore[assignment]

    def get_device(self) -> int:
        return DEVICE


def on_gpu(count: int = 64, *, offset: int = 0) -> Any:
    """float32[count], 4 x `offset` bytes beyond an address that 16 divides."""
    whole = torch.zeros(count + 4)
    assert whole.data_ptr() % 16 == 0
    return whole[offset : offset + count].as_subclass(OnGpu)


class Compiled:
    """What Triton compiles; it keeps what it is launched with."""

    def __init__(self) -> None:
        self.function, self.packed_metadata = object(), object()
        self.launches: list[tuple[Any, ...]] = []

    def launch_metadata(self, *_: Any) -> None:
        """There is none."""

    def run(self, *arguments: Any) -> None:
        """A launch."""
        self.launches.append(arguments)


class Kernel:
    """A kernel that counts the launches that Triton makes of it."""

    params = ()

    def __init__(self, names: tuple[str, ...] = ("x", "count", "BLOCK")) -> None:
        self.arg_names, self.pre_run_hooks = list(names), []  # type: ignore[var-annotated]
        self.compiled: list[Compiled] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Compiled]:
        def launch(*_: Any, **__: Any) -> Compiled:
            self.compiled.append(Compiled())
            return self.compiled[-1]

        return launch


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: DEVICE, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: STREAM, raising=False)


ALIKE = [1, 2, 15, 16, 17, 32, 0, -1, -16, 2**31 - 1, 2**31, 2**31 + 1, -(2**31), -(2**31) - 1]
ALIKE += [2**63 - 1, 2**63, 2**63 + 16, True, False, None, 1.0, 16.0, -0.5]


def _arguments() -> list[Any]:
    tensors = [torch.zeros(8)[i:] for i in (0, 1, 2, 3, 4)]
    tensors += [torch.zeros(8, dtype=torch.int64)[i:] for i in (0, 1, 2)]
    tensors += [torch.zeros(40, dtype=torch.uint8)[i:] for i in (0, 1, 16)]
    pairs = [(one, other) for one in tensors[:3] for other in tensors[:6]]
    return [*ALIKE, *tensors, *pairs, (tensors[0],), (1, 16), (1, 17), (2, 17)]


@pytest.mark.parametrize("plain", [False, True])
def test_the_key_tells_apart_what_triton_does(plain: bool) -> None:
    libtriton = pytest.importorskip("triton._C.libtriton")
    if not hasattr(libtriton, "native_specialize_impl"):
        pytest.skip("this triton specialises in Python")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend

    from engram_cli.runtime.kernels.launching import describe

    backend = make_backend(GPUTarget("cuda", 90, 32))

    def ours(value: Any) -> list[Any]:
        key: list[Any] = []
        describe((value,), frozenset([0] if plain else ()), key)
        return key

    def tritons(value: Any) -> Any:
        return libtriton.native_specialize_impl(backend, value, False, not plain, True)

    # do_not_specialize is for numbers here; of tensors the key keeps the address.
    values = ALIKE if plain else _arguments()
    for one, other in combinations(values, 2):
        same = tritons(one) == tritons(other)
        assert (ours(one) == ours(other)) == same, (one, other)


def test_a_remembered_kernel_is_launched_as_triton_launches_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    from engram_cli.runtime.kernels import lookup
    from engram_cli.runtime.kernels.launching import Launcher

    class Driver:
        get_current_device = staticmethod(lambda: DEVICE)
        get_current_stream = staticmethod(lambda _: STREAM)
        get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))

    compiled: list[Compiled] = []
    monkeypatch.setattr(type(triton.runtime.driver), "active", Driver())
    monkeypatch.setattr(
        JITFunction, "_do_compile", lambda *_: compiled.append(Compiled()) or compiled[-1]
    )
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # unset it is warned of
    kernel = lookup.lookup_kernel
    kernel.device_caches.clear()
    tensors = [on_gpu() for _ in range(15)]
    pair = (on_gpu(offset=1), on_gpu())
    arguments = (*tensors[:5], pair, pair, *tensors[7:13], 5, 1, 16, 2, 3, 2**40, 7, 0, -1, 9)
    names = kernel.arg_names[len(arguments) :]
    constants: dict[str, Any] = {name: place for place, name in enumerate(names)}
    launcher = Launcher(kernel)
    for _ in range(2):
        launcher((6, 2), *arguments, **dict(reversed(constants.items())), num_warps=1)
    kernel.device_caches.clear()
    (known,) = compiled
    tritons, direct = known.launches
    # The metadata and the hooks, which are empty chains, are left out.
    assert direct[:6] == tritons[:6]
    assert direct[:6] == (6, 2, 1, STREAM, known.function, known.packed_metadata)
    assert direct[6:9] == (None, None, None)

    def addresses(values: tuple[Any, ...]) -> list[Any]:
        flat = [v for value in values for v in (value if type(value) is tuple else (value,))]
        return [v.data_ptr() if isinstance(v, torch.Tensor) else v for v in flat]

    assert len(direct) == len(tritons)
    assert addresses(direct[9:]) == addresses(tritons[9:])
    assert direct[9 + len(arguments) :] == tuple(range(len(names)))


def test_each_combination_is_compiled_once() -> None:
    from engram_cli.runtime.kernels.launching import Launcher

    kernel = Kernel()
    launcher = Launcher(kernel)
    aligned, odd = on_gpu(), on_gpu(offset=1)
    cases: list[tuple[Any, int, Any]] = [(aligned, 2, 8), (odd, 2, 8), (aligned, 16, 8)]
    cases += [(aligned, 1, 8), (aligned, 2**31 + 1, 8), (aligned, 2, 9), (aligned, 2, 1)]
    cases += [(aligned, 2, True), (aligned, 2, 1.0)]
    for _ in range(2):
        for x, count, block in cases:
            launcher((4,), x, count, BLOCK=block, num_warps=1)
    launcher((4,), aligned, 3, BLOCK=8, num_warps=1)  # as 2
    assert len(kernel.compiled) == len(cases)
    assert [len(own.launches) for own in kernel.compiled] == [2, *[1] * (len(cases) - 1)]
    assert kernel.compiled[0].launches[1][9:] == (aligned.data_ptr(), 3, 8)
    launcher((4,), aligned, 2, BLOCK=8, num_warps=2)
    assert len(kernel.compiled) == len(cases) + 1


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from engram_cli.runtime.kernels import launching

    monkeypatch.setattr(launching, "_MOST", 3)
    kernel = Kernel()
    launcher = launching.Launcher(kernel)
    for block in (*range(7), 6):
        launcher((1,), on_gpu(), 2, BLOCK=block)
        assert len(launcher._versions) <= 3
    assert len(kernel.compiled) == 7


@contextmanager
def _hooked(name: str) -> Iterator[None]:
    import triton

    hook = getattr(triton.knobs.runtime, name)
    hook.add(print)
    yield
    hook.remove(print)


@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_see_every_launch(name: str) -> None:
    from engram_cli.runtime.kernels.launching import Launcher

    kernel = Kernel()
    launcher = Launcher(kernel)
    with _hooked(name):
        for _ in range(3):
            launcher((1,), on_gpu(), 2, BLOCK=8)
    assert len(kernel.compiled) == 3
    for _ in range(3):
        launcher((1,), on_gpu(), 2, BLOCK=8)
    assert len(kernel.compiled) == 4


@pytest.mark.parametrize("why", ["version", "before", "stages", "bare hook"])
def test_triton_launches_where_it_must(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    from engram_cli.runtime.kernels import launching

    kernel = Kernel()
    if why == "version":
        monkeypatch.setattr(launching, "_HAS_KNOWN_VERSION", False)
    elif why == "before":
        kernel.pre_run_hooks.append(print)
    elif why == "stages":
        monkeypatch.setattr(triton.knobs.runtime, "add_stages_inspection_hook", print)
    else:
        monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", print)
    launcher = launching.Launcher(kernel)
    for _ in range(3):
        launcher((1,), on_gpu(), 2, BLOCK=8)
    assert len(kernel.compiled) == 3
    assert not any(own.launches for own in kernel.compiled)


def test_the_interpreter_runs_what_lies_on_the_cpu() -> None:
    from engram_cli.runtime.kernels.launching import Launcher

    kernel = Kernel()
    for _ in range(2):
        Launcher(kernel)((1,), torch.zeros(4), 2, BLOCK=8)
    assert len(kernel.compiled) == 2


def test_no_program_is_no_launch() -> None:
    from engram_cli.runtime.kernels.launching import Launcher

    kernel = Kernel()
    launcher = Launcher(kernel)
    launcher((4, 0), on_gpu(), 0, BLOCK=8)
    assert not kernel.compiled


def test_the_first_argument_says_which_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from engram_cli.runtime.kernels.launching import Launcher

    entered = []

    @contextmanager
    def device(index: int) -> Iterator[None]:
        entered.append(index)
        yield

    kernel = Kernel()
    launcher = Launcher(kernel)
    monkeypatch.setattr(torch.cuda, "device", device)
    launcher((1,), on_gpu(), 2, BLOCK=8)
    assert entered == []
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: DEVICE + 1, raising=False)
    launcher((1,), on_gpu(), 2, BLOCK=8)
    assert entered == [DEVICE]
    assert len(kernel.compiled[0].launches) == 1
