"""The Triton kernel equals its twin: run by test_interpreted.py on the CPU, by tests/gpu on a GPU.

Triton decides when it is imported whether it interprets kernels, so this is no module of the main
test run.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from lookup_cases import DECODED, FORMS, LAYOUTS, TABLES, a_table, modulo_hash, same_bits, the_hash
from runtime.kernels.gate_cases import FORWARD_MODE
from torch import Tensor

from engram_cli.errors import RuntimeAttachError, TokenIdError
from engram_cli.runtime import lookup_reference, ops, torch_ops
from engram_cli.runtime.lookup_reference import LookBack
from engram_cli.runtime.tables import Table

# The interpreter multiplies with NumPy, which warns where int64 wraps.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _kernels_run() -> None:
    assert ops.has_kernels(DEVICE)


def _some(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """All of them on a GPU; in the interpreter, which takes a second for each, every seventh."""
    return pairs if DEVICE.type == "cuda" else pairs[::7]


@pytest.mark.parametrize(("name", "form"), _some([(n, f) for n in LAYOUTS for f in FORMS]))
def test_rows_equal_the_twin(name: str, form: str) -> None:
    hashed = the_hash(name, DEVICE)
    ids, back = FORMS[form](DEVICE)
    assert torch.equal(
        ops.find_rows(hashed, ids, back), lookup_reference.find_rows(hashed, ids, back)
    )


def test_moduli_are_exact_at_their_edges() -> None:
    hashed, mixes, moduli = modulo_hash(DEVICE)
    rows = ops.find_rows(hashed, torch.tensor([[0]], device=DEVICE))[:, 0, 0]
    found = (rows - hashed.columns[..., 2]).reshape(-1).tolist()
    assert found == [mix % modulus for mix, modulus in zip(mixes, moduli, strict=True)]


def _value_cases() -> list[tuple[str, int, torch.dtype]]:
    cases = [
        (kind, dim, dtype) for kind, dims in TABLES.items() for dim in dims for dtype in DTYPES
    ]
    if DEVICE.type == "cuda":
        return cases
    # The interpreter truncates to bfloat16, where a GPU rounds: only what is exact compares.
    exact = ("bfloat16", "fp8 + e8m0", "fp8 + e8m0, one array")
    return [case for case in cases if case[2] != torch.bfloat16 or case[0] in exact][::2]


@pytest.mark.parametrize(("kind", "dim", "dtype"), _value_cases())
def test_vectors_equal_the_twin(kind: str, dim: int, dtype: torch.dtype) -> None:
    hashed = the_hash("engram-v1", DEVICE)
    ids, back = FORMS["dead"](DEVICE)
    ids, back = ids[:, :3], LookBack(dead=back.dead[:, :3] if back.dead is not None else None)
    # The interpreter rounds subnormals to bfloat16 and float16 wrongly, so it gets none.
    wide = dtype == torch.float32 or DEVICE.type == "cuda"
    tables = [a_table(kind, height, dim, DEVICE, wide=wide) for height in hashed.heights]
    found = ops.look_up(hashed, ids, tables, back, dtype)
    assert same_bits(found, lookup_reference.look_up(hashed, ids, tables, back, dtype))


@pytest.mark.parametrize("kind", DECODED)
def test_rows_without_a_kernel_are_decoded_by_the_twin(kind: str) -> None:
    hashed = the_hash("engram-v1", DEVICE)
    ids, back = FORMS["one token"](DEVICE)
    rows = [a_table(kind, height, DECODED[kind], DEVICE) for height in hashed.heights]
    said = pytest.warns(UserWarning, match="have no kernel") if ids.is_cuda else nullcontext()
    with said:
        found = ops.look_up(hashed, ids, rows, back, torch.float32)
    assert same_bits(found, lookup_reference.look_up(hashed, ids, rows, back, torch.float32))


@pytest.mark.parametrize(
    ("name", "form"),
    _some([(n, f) for n in ("qwen-ple", "deepseek-v4.1", "wild, small") for f in FORMS]),
)
def test_vectors_of_every_form_equal_the_twin(name: str, form: str) -> None:
    hashed = the_hash(name, DEVICE)
    ids, back = FORMS[form](DEVICE)
    tables = [a_table("fp8 + e8m0", height, 32, DEVICE) for height in hashed.heights]
    found = ops.look_up(hashed, ids, tables, back)
    assert same_bits(found, lookup_reference.look_up(hashed, ids, tables, back))


@pytest.mark.parametrize("count", [1, 40, 700, 9000] if DEVICE.type == "cuda" else [90])
def test_every_size_has_a_plan(count: int) -> None:
    hashed = the_hash("engram-v1" if DEVICE.type == "cuda" else "one head", DEVICE)
    ids = torch.arange(count, device=DEVICE)[None] % 20
    for kind, dim in (("bfloat16", 64), ("fp8 + e8m0", 256)):
        tables = [a_table(kind, height, dim, DEVICE) for height in hashed.heights]
        assert same_bits(
            ops.look_up(hashed, ids, tables), lookup_reference.look_up(hashed, ids, tables)
        )


def test_calls_of_one_key_are_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Triton and the kernel are given in addition to addresses follows from the key."""
    from engram_cli.runtime.kernels import lookup_launcher

    launches: dict[object, set[object]] = {}
    counted = [0]

    class Launches:
        def find(self, key: object) -> None:
            return None

        def launch(
            self, key: object, grid: object, tensors: object, *numbers: object, **constants: object
        ) -> None:
            facts = (grid, _facts(tensors), numbers, *map(type, numbers), *constants.items())
            launches.setdefault(key, set()).add(facts)
            counted[0] += 1

    monkeypatch.setattr(lookup_launcher, "LOOK_UPS", Launches())
    names = ("qwen-ple", "deepseek-v4.1", "wild, small")
    hashes = [the_hash(name, DEVICE) for name in names]
    for hashed, form, _ in product(hashes, FORMS, range(2)):
        ids, back = FORMS[form](DEVICE)
        for kind, dim, dtype in [("float32", 5, DTYPES[0]), ("fp8 + e8m0, one array", 256, None)]:
            whole = [a_table(kind, height + 1, dim, DEVICE) for height in hashed.heights]
            for begin in (0, 1):  # also rows at addresses that 16 does not divide
                tables = [
                    replace(
                        table,
                        values=table.values[begin:],
                        scales=None if table.scales is None else table.scales[begin:],
                    )
                    for table in whole
                ]
                ops.look_up(hashed, ids, tables, back, dtype)
                if back.history is not None and back.ages is None:
                    ops.look_up_step(hashed, ids, tables, back, dtype)
        ops.find_rows(hashed, ids, back)
    assert all(len(facts) == 1 for facts in launches.values())
    assert 100 < len(launches) < counted[0] * 0.6


def test_a_hash_that_names_more_rows_has_another_key() -> None:
    """Its tensors may lie where those of another were: a table that is too short is refused."""
    hashed = the_hash("one head", DEVICE)
    ids, back = FORMS["int32"](DEVICE)
    higher = replace(hashed, heights=tuple(height + 1 for height in hashed.heights))
    keys = [
        torch_ops._key(torch_ops.find_rows, ids, each, back, (), torch.int64, False)
        for each in (hashed, higher, hashed)
    ]
    assert keys[0] == keys[2] != keys[1]


def _facts(given: object) -> object:
    if isinstance(given, Tensor):
        return given.dtype, given.data_ptr() % 16 == 0
    return tuple(map(_facts, given)) if isinstance(given, tuple) else given


@pytest.mark.parametrize("form", ["history", "packed history", "short history"])
@pytest.mark.parametrize("name", ["wild, small"])
def test_a_step_writes_its_history(name: str, form: str) -> None:
    hashed = the_hash(name, DEVICE)
    tables = [a_table("float32", height, 4, DEVICE) for height in hashed.heights]
    ids, back = FORMS[form](DEVICE)
    expected = lookup_reference.look_up_step(hashed, ids, tables, back)
    (again, mine) = FORMS[form](DEVICE)
    found = ops.look_up_step(hashed, again, tables, mine)
    assert torch.equal(found, expected)
    assert mine.history is not None
    assert back.history is not None
    assert torch.equal(mine.history, back.history)
    assert not torch.equal(mine.history, (FORMS[form](DEVICE)[1]).history)


def test_steps_equal_the_whole() -> None:
    hashed = the_hash("qwen-ple", DEVICE)
    tables = [a_table("bfloat16", height, 4, DEVICE) for height in hashed.heights]
    ids = torch.randint(0, 20, (2, 9), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    whole = ops.look_up(hashed, ids, tables)
    history = torch.zeros(2, 4, dtype=torch.int32, device=DEVICE)
    for begin, end in [(0, 5), (5, 6), (6, 7), (7, 9)]:
        positions = torch.full((2,), begin, device=DEVICE)
        back = LookBack(history=history, positions=positions)
        found = ops.look_up_step(hashed, ids[:, begin:end], tables, back)
        assert torch.equal(found, whole[:, :, begin:end])


def _gradients(call: object, tables: list[Table]) -> list[Tensor]:
    leaves = [table.values.detach().clone().requires_grad_() for table in tables]
    out = call([Table(values=leaf) for leaf in leaves])  # type: ignore[operator]
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out)
    (out * weight).sum().backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def test_gradients_equal_the_twins() -> None:
    hashed = the_hash("engram-v1", DEVICE)
    ids, back = FORMS["dead"](DEVICE)
    tables = [a_table("float32", height, 12, DEVICE) for height in hashed.heights]
    found = _gradients(lambda t: ops.look_up(hashed, ids, t, back), tables)
    expected = _gradients(lambda t: lookup_reference.look_up(hashed, ids, t, back), tables)
    assert len(found) == len(expected) == 2
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@FORWARD_MODE
def test_second_gradients_and_tangents_equal_the_twins() -> None:
    hashed = the_hash("engram-v1", DEVICE)
    ids, back = FORMS["dead"](DEVICE)
    tables = [a_table("float32", height, 12, DEVICE) for height in hashed.heights]
    results = []
    for function in (ops.look_up, lookup_reference.look_up):
        leaves = [table.values.detach().clone().requires_grad_() for table in tables]
        out = function(hashed, ids, [Table(values=leaf) for leaf in leaves], back)
        firsts = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        seconds = torch.autograd.grad(sum(x.pow(3).sum() for x in firsts), leaves)
        with torch.autograd.forward_ad.dual_level():
            duals = [torch.autograd.forward_ad.make_dual(x.detach(), x.detach()) for x in leaves]
            out = function(hashed, ids, [Table(values=dual) for dual in duals], back)
            tangent = torch.autograd.forward_ad.unpack_dual(out).tangent
        results.append((*seconds, tangent))
    for mine, theirs in zip(*results, strict=True):
        assert mine is not None
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_sparse_rows_have_no_second_gradients() -> None:
    hashed = the_hash("engram-v1", DEVICE)
    ids, back = FORMS["dead"](DEVICE)
    leaves = [
        a_table("float32", height, 12, DEVICE).values.requires_grad_() for height in hashed.heights
    ]
    sparse = [Table(values=leaf, gradients="sparse") for leaf in leaves]
    out = ops.look_up(hashed, ids, sparse, back)
    with pytest.raises(RuntimeAttachError, match="sparse gradient of rows has no derivative"):
        torch.autograd.grad(out.square().sum(), leaves, create_graph=True)


def test_the_operators_keep_torchs_rules() -> None:
    hashed = the_hash("one head", DEVICE)
    ids, back = FORMS["history"](DEVICE)
    limits = (back.dead, None, None, back.history, back.positions, back.slots)
    own = torch_ops.hash_arguments(hashed)
    tables = [a_table("float32", height, 4, DEVICE).values for height in hashed.heights]
    kind = ("plain", torch.float32)
    # In the interpreter each of the four takes seconds.
    rules = ("test_schema", "test_faketensor", "test_autograd_registration")
    if DEVICE.type == "cuda":
        rules = (*rules, "test_aot_dispatch_dynamic")
        torch.library.opcheck(torch_ops.find_rows, (ids, *own, *limits), test_utils=rules)
        arguments = (ids, tables, [], *kind, *own, *limits)
        torch.library.opcheck(torch_ops.look_up_step, arguments, test_utils=rules)
    leaves = [table.requires_grad_() for table in tables]
    arguments = (ids, leaves, [], *kind, *own, *limits, "dense")
    torch.library.opcheck(torch_ops.look_up, arguments, test_utils=rules)


def test_two_hashes_at_once() -> None:
    one, two = the_hash("engram-v1", DEVICE), the_hash("deepseek-v4.1", DEVICE)
    ids = FORMS["int32"](DEVICE)[0]
    for hashed in (one, two, one):
        tables = [a_table("float16", height, 8, DEVICE) for height in hashed.heights]
        assert same_bits(
            ops.look_up(hashed, ids, tables), lookup_reference.look_up(hashed, ids, tables)
        )


def test_bad_ids_raise_in_debug_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = the_hash("engram-v1", DEVICE)
    ids, back = FORMS["outside the vocabulary"](DEVICE)
    ops.find_rows(hashed, ids, back)
    monkeypatch.setattr(ops, "DEBUG", True)
    with pytest.raises(TokenIdError, match="is outside"):
        ops.find_rows(hashed, ids, back)


def test_a_poisoned_output_is_written_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from engram_cli.runtime.kernels import lookup_launcher

    def poisoned(*shape: object, **options: object) -> Tensor:
        return torch.full(*shape, float("nan"), **options)  # type: ignore[call-overload, no-any-return]

    hashed = the_hash("deepseek-v4.1", DEVICE)
    tables = [a_table("bfloat16", height, 12, DEVICE) for height in hashed.heights]
    ids = FORMS["int32"](DEVICE)[0]
    monkeypatch.setattr(lookup_launcher.torch, "empty", poisoned)
    assert not ops.look_up(hashed, ids, tables).isnan().any()


@pytest.mark.parametrize("packed", [False, True])
def test_a_model_looks_up_by_one_operator(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_models = pytest.importorskip("tiny_models")
    from small_tokenizers import byte_level_tokenizer

    from engram_cli.runtime import attach
    from engram_cli.vocab.compress import compress_vocab

    byte_level_tokenizer().save(str(tmp_path / "tokenizer.json"))
    vocab = compress_vocab(tmp_path / "tokenizer.json")
    spec = tiny_models.make_spec(tiny_models.make_layout(vocab), packed=packed)
    bundle = tiny_models.make_bundle(tmp_path / "bundle", spec)
    model = tiny_models.llama(vocab.vocab_size)
    tiny_models.wake(attach(model, bundle))
    model = model.to(DEVICE)
    ids = torch.randint(3, vocab.vocab_size, (2, 6), generator=torch.Generator().manual_seed(0))
    ids = ids.to(DEVICE)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    places = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 1, 0, 1, 2, 3]], device=DEVICE)
    calls = []
    first, again = torch_ops.call, torch_ops.again

    def call_again(*given: object) -> Tensor | None:
        found = again(*given)  # type: ignore[arg-type]
        calls.extend([] if found is None else [1])
        return found

    monkeypatch.setattr(torch_ops, "call", lambda *a: calls.append(1) or first(*a))
    monkeypatch.setattr(torch_ops, "again", call_again)

    def run() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask, position_ids=places).logits
            tokens = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False
            )
        return logits, tokens

    found = run()
    assert len(calls) == 5
    monkeypatch.setattr(ops, "has_kernels", lambda device: False)
    expected = run()
    assert len(calls) == 5
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)  # the gate's sums
    assert torch.equal(found[1], expected[1])
