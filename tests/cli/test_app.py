"""The command line as a whole: light, helpful, configured by engram.toml."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli.conftest import Engram

from engram_cli import build_table, compress_vocab, write_vocab
from engram_cli.cli.app import run
from engram_cli.commands.geometry import Geometry, read_sizes
from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.requests.options import integers
from engram_cli.commands.requests.tables import BuildTableRequest
from engram_cli.commands.workspace import Workspace
from engram_cli.sizes import read_size
from engram_cli.version import __version__

Capture = pytest.CaptureFixture[str]
HEAVY = ("numba", "zarr", "pyarrow", "torch", "tokenizers", "transformers")


@pytest.mark.parametrize("statement", ["import engram_cli", "from engram_cli.cli.app import app"])
def test_what_is_imported_stays_light(statement: str) -> None:
    code = f"import sys; {statement}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_counting_shows_that_it_loads_before_it_does() -> None:
    """Libraries, kernels and the tokenizer take a second or two."""
    code = (
        "import sys; from engram_cli.cli import app, terminal\n"
        "def start(self, what, total, unit):\n"
        f"    print(what, [m for m in {HEAVY!r} if m in sys.modules]); sys.exit(7)\n"
        "terminal.Terminal.start = start\n"
        "sys.argv = ['engram', 'hash-stats', 'corpus.txt']; app.run()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("loading []\n", 7), done.stderr


def test_module_and_script_are_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "engram_cli", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"engram {__version__}\n"


def test_every_command_has_help(engram: Engram) -> None:
    listing = engram("--help")
    assert listing.code == 0
    for command in ("compress-vocab", "hash-stats", "report", "build-table", "attach", "demo"):
        assert command in listing.out
        assert engram(command, "--help").code == 0


def test_public_names_are_importable() -> None:
    import engram_cli

    for name in engram_cli.__all__:
        assert getattr(engram_cli, name) is not None
    with pytest.raises(AttributeError):
        _ = engram_cli.nothing_of_this_name  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["compress-vocab", "--nonsense"], "--nonsense"),
        (["nonsense"], "nonsense"),
        (["verify"], "path"),
        (["build-table", "--dim", "abc"], "--dim"),
        (["build-table", "--orders", "x"], "'x' is not a list such as 2,3"),
        (["build-table", "--rows-per-head", "1e6"], "'1e6' is not a number"),
    ],
)
def test_usage_errors_are_one_line(
    arguments: list[str], match: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys, "argv", ["engram", *arguments])
    with pytest.raises(SystemExit) as left:
        run()
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert match in said.err
    assert "--help" in said.err


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["evaluate", "ckpt", "text", "--patch"], "engram evaluate"),
        (["patch", "apply", "t.zarr", "--out"], "engram patch apply"),
        (["verify", "x", "--full=3"], "engram verify"),
    ],
)
def test_usage_errors_name_the_help_of_their_command(
    arguments: list[str], command: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys, "argv", ["engram", *arguments])
    with pytest.raises(SystemExit):
        run()
    assert capsys.readouterr().err.rstrip().endswith(f"see: {command} --help")


def test_without_arguments_the_help_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys, "argv", ["engram"])
    with pytest.raises(SystemExit):
        run()
    said = capsys.readouterr()
    assert "compress-vocab" in said.out + said.err


def test_exit_codes_reach_the_shell(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["engram", "compress-vocab", str(tokenizer_file), "--expect", "5"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as left:
        run()
    assert left.value.code == 1


def test_engram_toml_gives_defaults_and_flags_win(engram: Engram, tokenizer_file: Path) -> None:
    (engram.folder / "engram.toml").write_text('[compress-vocab]\ngroups = 3\nout = "v.parquet"\n')
    done = engram("compress-vocab", tokenizer_file, "--json")
    assert len(json.loads(done.out)["largest"]) == 3
    assert (engram.folder / "v.parquet").exists()
    (engram.folder / "v.parquet").unlink()
    other = engram("compress-vocab", tokenizer_file, "--out", "w", "--groups", "2", "--json")
    assert len(json.loads(other.out)["largest"]) == 2
    assert not (engram.folder / "v.parquet").exists()


def test_the_workspace_can_be_another_folder(engram: Engram, tokenizer_file: Path) -> None:
    (engram.folder / "there").mkdir()
    (engram.folder / "there" / "engram.toml").write_text("[compress-vocab]\nexpect = 5\n")
    unmet = engram("compress-vocab", tokenizer_file, "--workspace", "there")
    assert unmet.code == 1
    assert not (engram.folder / "there" / "engram-vocab.parquet").exists()
    (engram.folder / "there" / "engram.toml").unlink()
    assert engram("compress-vocab", tokenizer_file, "--workspace", "there").code == 0
    assert (engram.folder / "there" / "engram-vocab.parquet").exists()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[compress-vocab\n", "engram.toml"),
        ("[compress-vocab]\nexpct = 5\n", "[compress-vocab] has no option 'expct'"),
        ("expect = 5\n", "'expect' is outside a table"),
        ("[layout]\nhead = 16\n", "[layout] has no option 'head'"),
        ("[layouts]\nheads = 16\n", "unknown table [layouts]"),
    ],
)
def test_bad_settings_are_one_line(engram: Engram, text: str, match: str) -> None:
    (engram.folder / "engram.toml").write_text(text)
    done = engram("compress-vocab")
    assert done.code == 2
    assert match in done.error_line


def test_a_bad_value_in_engram_toml_names_the_file(
    engram: Engram, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (engram.folder / "engram.toml").write_text('[build-table]\ndim = "wide"\n')
    monkeypatch.setattr(sys, "argv", ["engram", "build-table"])
    with pytest.raises(SystemExit):
        run()
    assert capsys.readouterr().err.startswith("error: engram.toml: Invalid value for '--dim'")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("646400", 646400),
        ("16M", 16_000_000),
        ("5GB", 5 * 10**9),
        ("64MiB", 64 * 2**20),
        ("1.5k", 1500),
        ("1_000", 1000),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert read_size(text) == value


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "5 parsecs", "1e3"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="number"):
        read_size(text)


def test_lists() -> None:
    assert integers("2,3") == (2, 3)
    assert read_sizes("1k,2M") == (1000, 2_000_000)
    with pytest.raises(ValueError, match="list such as"):
        integers("2,x")


def test_sigterm_ends_a_command_as_ctrl_c_does() -> None:
    """Preempted jobs get SIGTERM: one line, exit code 143, what was done is kept."""
    command = [sys.executable, "-c", _TERMINATED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 143
    assert done.stderr.count("error: interrupted") == 1
    assert "Traceback" not in done.stderr


_TERMINATED = """
import os, signal, sys, typer
from engram_cli.cli import app as cli
from engram_cli.cli.terminal import reported

@cli.app.command("wait")
def wait() -> None:
    with reported():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

sys.argv = ["engram", "wait"]
cli.run()
"""


@pytest.mark.parametrize(
    ("command", "unused"),
    [
        (("inspect", "engram-vocab.parquet"), ("numba", "pyarrow.compute", "pyarrow.dataset")),
        (("lookup", "engram-vocab.parquet", "the words"), ("numba", "zarr", "pyarrow.dataset")),
        (("lookup", "engram-table.zarr", "the words"), ("numba", "zarr", "pyarrow.dataset")),
        (("lookup", "engram-stats", "the words"), ("numba", "zarr", "pyarrow.dataset")),
        (("inspect", "engram-stats"), ("zarr",)),
    ],
)
def test_commands_load_no_more_than_they_need(
    command: tuple[str, ...], unused: tuple[str, ...], artifacts: Path
) -> None:
    """Numba alone takes 0.7 s of CPU; it is loaded where much is hashed, counted or read."""
    code = (
        f"import sys; sys.argv = ['engram', *{command!r}]\n"
        "from engram_cli.__main__ import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        f"    names = [*{unused!r}, 'torch', 'transformers', 'pandas']\n"
        "    print([name for name in names if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=artifacts, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.stdout


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Path:
    """A folder with a tokenizer, its vocabulary, a table, and statistics of the same layout."""
    folder = tmp_path_factory.mktemp("artifacts")
    vocab = compress_vocab(tokenizer_file)
    write_vocab(vocab, folder / "engram-vocab.parquet")
    shutil.copy(tokenizer_file, folder / "tokenizer.json")
    request = BuildTableRequest(
        vocab=folder / "engram-vocab.parquet",
        out=folder / "engram-table.zarr",
        dim=8,
        geometry=Geometry(rows_per_head=(1000,), layers=(1,)),
    )
    build_table(request)
    (folder / "corpus.txt").write_text("the words of a text, and the words\n")
    hash_stats(
        HashStatsRequest(
            sources=(folder / "corpus.txt",),
            vocab=request.vocab,
            out=folder / "engram-stats",
            geometry=request.geometry,
            workspace=Workspace(folder),
        )
    )
    return folder
