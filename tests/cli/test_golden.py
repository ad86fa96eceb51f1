"""golden as users type it: exit codes, JSON, and the fault in words."""

from __future__ import annotations

import json

from cli.conftest import Engram

QWEN = ("--scheme", "qwen-ple", "--vocab-size", "500", "--eos-id", "7", "--rows-per-head", "401")


def test_writes_checks_and_names_a_fault(engram: Engram) -> None:
    done = engram("golden", *QWEN, "--out", "golden.json")
    assert done.code == 0, done.err
    assert "EOS inside" in done.out
    done = engram("golden", *QWEN, "--check", "golden.json")
    assert done.code == 0, done.err
    assert "all is equal" in done.out
    theirs = json.loads((engram.folder / "golden.json").read_text())
    starts = theirs["layout"]["layers"][0]["offsets"]
    for case in theirs["cases"]:
        lines = [line for line in case["rows"]["2"] if line is not None]
        for line in lines:
            line[:] = [row - start for row, start in zip(line, starts, strict=True)]
    (engram.folder / "theirs.json").write_text(json.dumps(theirs))
    done = engram("golden", *QWEN, "--check", "theirs.json")
    assert done.code == 1, done.err
    assert "first step that differs: offsets" in done.out
    assert "equal if rows are counted within a head" in done.out
    assert max(map(len, done.out.splitlines())) <= 100
    done = engram("golden", *QWEN, "--check", "theirs.json", "--json")
    assert done.code == 1
    found = json.loads(done.out)["check"]
    assert found["first"] == "offsets"
    assert found["explanations"] == ["equal if rows are counted within a head"]
    assert not found["equal"]


def test_layout_options_of_engram_toml_leave_a_preset_alone(engram: Engram) -> None:
    (engram.folder / "engram.toml").write_text("[layout]\nheads = 3\n")
    done = engram("golden", "--preset", "qwen-ple", "--out", "golden.json", "-q")
    assert done.code == 0, done.err
    assert json.loads((engram.folder / "golden.json").read_text())["layout"]["heads"] == 8


def test_what_is_missing_is_said(engram: Engram) -> None:
    assert "--out or --check" in engram("golden", "--preset", "qwen-ple").error_line
    assert "nothing to make vectors of" in engram("golden", "--out", "g.json").error_line
    done = engram("golden", "--preset", "qwen-ple", "--check", "none.json")
    assert done.code == 2
    assert "golden vectors not found: none.json" in done.error_line
