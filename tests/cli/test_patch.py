"""engram patch on the command line: what it prints, its exit codes, its JSON."""

from __future__ import annotations

import json
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from cli.conftest import Engram
from patching.patched import artifact, contents, opened, patch_of

from engram_cli.commands.patch.target import open_target
from engram_cli.numbers import percent
from engram_cli.patches.patch_file import write_patch


@pytest.fixture
def engram_with_table(engram: Engram) -> Engram:
    """A folder with a table, and three patches of it: two meet on row 5."""
    path = artifact(engram.folder / "t.zarr", "table", "bfloat16")
    base = opened(path)
    for name, rows, seed in (("one", [5, 6], 0), ("two", [5, 9], 1), ("far", [40], 2)):
        patch = patch_of(base, {0: rows}, seed, description=name)
        write_patch(engram.folder / f"{name}.patch.safetensors", patch)
    return engram


def test_apply_list_undo(engram_with_table: Engram) -> None:
    engram = engram_with_table
    before = contents(engram.folder)
    done = engram("patch", "apply", "t.zarr", "one.patch.safetensors", "two.patch.safetensors")
    assert done.code == 0
    assert "patch 2 gives 1 row of patch 1 other values, such as row 5 of layer 0" in done.out
    listed = json.loads(engram("patch", "list", "t.zarr", "--json").out)
    assert [each["description"] for each in listed["patches"]] == ["one", "two"]
    assert [each["can_undo"] for each in listed["patches"]] == [True, True]
    again = engram("patch", "apply", "t.zarr", "two.patch.safetensors")
    assert "applied already" in again.out
    refused = engram("patch", "undo", "t.zarr", "1")
    assert refused.code == 2
    assert "patch 2 has rows of patch 1" in refused.error_line
    undone = json.loads(engram("patch", "undo", "t.zarr", "--all", "--json").out)
    assert [each["description"] for each in undone["undone"]] == ["two", "one"]
    assert undone["left"] == 0
    assert contents(engram.folder) == before
    nothing = engram("patch", "undo", "t.zarr")
    assert nothing.code == 2
    assert "no patch is applied to t.zarr" in nothing.error_line
    assert "patched copy" not in nothing.err


def test_stack_and_show(engram_with_table: Engram) -> None:
    engram, names = engram_with_table, ("one.patch.safetensors", "two.patch.safetensors")
    met = engram("patch", "stack", "t.zarr", *names, "--out", "both.patch.safetensors")
    assert met.code == 1
    assert engram("patch", "stack", "t.zarr", names[0], "far.patch.safetensors").code == 0
    shown = engram("patch", "show", "both.patch.safetensors", "--base", "t.zarr", "--json")
    assert shown.code == 0
    found = json.loads(shown.out)
    assert (found["rows"], found["fits"], found["description"]) == (3, "", "one; two")
    # Applied in turn to a copy, both are what the stack is.
    engram("patch", "apply", "t.zarr", *names, "--out", "turn.zarr")
    engram("patch", "apply", "t.zarr", "both.patch.safetensors", "--out", "stack.zarr")
    turn, stack = (opened(engram.folder / f"{name}.zarr") for name in ("turn", "stack"))
    assert np.array_equal(turn.vectors(0, range(212)), stack.vectors(0, range(212)))
    other = engram("patch", "show", names[0], "--base", "turn.zarr")
    assert other.code == 1
    assert "made for another table" in " ".join(other.out.split())


def test_show_says_whether_damage_would_be_found(engram_with_table: Engram) -> None:
    engram = engram_with_table
    path = engram.folder / "one.patch.safetensors"
    found = json.loads(engram("patch", "show", path.name, "--json").out)
    assert found["has_digest"] is True
    assert "the file has none" not in engram("patch", "show", path.name).out
    raw = path.read_bytes()
    at = raw.index(b'"digest":"sha256:')
    path.write_bytes(raw[:at] + b'"nothin"' + raw[at + 8 :])
    again = json.loads(engram("patch", "show", path.name, "--json").out)
    assert again == found | {"has_digest": False}
    said = " ".join(engram("patch", "show", path.name).out.split())
    assert f"{found['digest']} (computed: the file has none" in said
    raw = bytearray(path.read_bytes())
    raw[-9] ^= 1
    path.write_bytes(raw[:at] + b'"digest"' + raw[at + 8 :])
    for command in (("show",), ("apply", "t.zarr"), ("apply", "t.zarr", "--out", "n.zarr")):
        done = engram("patch", command[0], *command[1:2], path.name, *command[2:])
        assert done.code == 2
        assert "is damaged: its digest is" in done.err
    assert not (engram.folder / "n.zarr").exists()


def test_what_is_no_patch_is_named_for_what_it_is(engram_with_table: Engram) -> None:
    engram = engram_with_table
    (engram.folder / "empty").mkdir()
    (engram.folder / "v.parquet").write_bytes(b"PAR1" + bytes(40) + b"PAR1")
    for given, what in (
        ("t.zarr", "t.zarr is a table, not a patch"),
        ("empty", "empty is a folder without a patch"),
        ("v.parquet", "v.parquet is no patch"),
    ):
        for command in (("apply", "t.zarr", given), ("show", given), ("stack", "t.zarr", given)):
            done = engram("patch", *command)
            assert done.code == 2
            assert what in done.error_line
            assert "damaged" not in done.err


def test_the_change_is_in_per_cent_as_diff_prints_it(engram_with_table: Engram) -> None:
    engram, name = engram_with_table, "far.patch.safetensors"
    shown = engram("patch", "show", name, "--base", "t.zarr")
    found = json.loads(engram("patch", "show", name, "--base", "t.zarr", "--json").out)
    assert percent(found["layers"][0]["mean_change"]) in shown.out
    assert "2-grams: 1 row in 1 head" in shown.out


def test_a_patch_of_another_base_needs_an_option(engram_with_table: Engram) -> None:
    engram = engram_with_table
    engram("patch", "apply", "t.zarr", "one.patch.safetensors", "--out", "new.zarr")
    refused = engram("patch", "apply", "new.zarr", "two.patch.safetensors")
    assert refused.code == 2
    assert "--any-base" in refused.error_line
    assert engram("patch", "apply", "new.zarr", "two.patch.safetensors", "--any-base").code == 0
    assert len(open_target(engram.folder / "new.zarr").patches) == 2


def test_inspect_says_what_a_half_patched_table_is(engram_with_table: Engram) -> None:
    engram = engram_with_table
    open_target(engram.folder / "t.zarr").mark({"digest": "x"})
    shown = engram("inspect", "t.zarr")
    assert "half-patched" in shown.out
    assert "engram patch undo" in " ".join(shown.out.split())
    engram_file = engram("inspect", "one.patch.safetensors")
    assert engram_file.code == 2
    assert "engram patch show" in engram_file.error_line


def test_a_patch_behind_an_address(
    engram_with_table: Engram, monkeypatch: pytest.MonkeyPatch
) -> None:
    engram = engram_with_table
    monkeypatch.setenv("XDG_CACHE_HOME", str(engram.folder / "cache"))

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, directory=str(engram.folder), **kwargs)  # type: ignore[arg-type,misc]

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/one.patch.safetensors"
        done = engram("patch", "apply", "t.zarr", address, "--out", "new.zarr")
        assert done.code == 0, done.err
        assert engram("patch", "show", address).code == 0
    finally:
        server.shutdown()
        server.server_close()
