"""One contract for all corpus formats: the same documents and statistics, no truncated file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus.written import VARIANTS, Corpus, Variant
from stats.truth import blocks_of, layout_of

from engram_cli.corpus import flat, stream
from engram_cli.corpus import text as corpus_text
from engram_cli.corpus.base import CorpusOptions, TokenBlock
from engram_cli.corpus.checks import needs_tokenizer, remarks
from engram_cli.corpus.encode import Encoder, make_encoder
from engram_cli.corpus.readers import READERS, mds
from engram_cli.corpus.sources import find_sources
from engram_cli.corpus.stream import TokenStream
from engram_cli.errors import CorpusError
from engram_cli.progress import SILENT
from engram_cli.stats.counting.count import count_blocks
from engram_cli.vocab.tokenizer import load_tokenizer

MARK = "</s>"
TEXTS = [
    "Only Alexander the Great could tame the horse Bucephalus.",
    "def apple(tree):\n    return tree.fruit + 1\n",
    "x",
    "naïve façade, 苹果 🍎, an apple fell from the tree",
    "the café was closed. " * 9,
]


@pytest.fixture(scope="module")
def encoder(tokenizer_file: Path) -> Iterator[Encoder]:
    made = make_encoder(load_tokenizer(tokenizer_file), "tokenizers", SILENT, size=None)
    yield made
    made.close()


@pytest.fixture(scope="module")
def corpora(tokenizer_file: Path) -> dict[str, Corpus]:
    """The documents with the end-of-text token after, or before, each of them."""
    tokenizer = load_tokenizer(tokenizer_file)

    def corpus(texts: list[str]) -> Corpus:
        ids = [list(map(int, tokenizer.encode(text))) for text in texts]
        return Corpus(texts=texts, ids=ids, mark=int(tokenizer.encode(MARK)[0]))

    made = {"after": corpus([t + MARK for t in TEXTS]), "before": corpus([MARK + t for t in TEXTS])}
    for given in made.values():
        assert given.flat.count(given.mark) == len(TEXTS)
    return made


def options_of(variant: Variant, corpus: Corpus, **more: Any) -> CorpusOptions:
    mark = {"document_end_id": corpus.mark} if variant.marks else {}
    return CorpusOptions(**variant.options | mark | more)


def stream_of(names: list[str], options: CorpusOptions, encoder: Encoder) -> TokenStream:
    files = find_sources(names, options).files
    return TokenStream(files, options, encoder if needs_tokenizer(files, options) else None)


def documents(stream: TokenStream) -> list[list[int]]:
    found: list[list[int]] = []
    for block in stream.blocks():
        for token, start in zip(block.ids.tolist(), block.starts.tolist(), strict=True):
            if start:
                found.append([])
            found[-1].append(token)
    return found


def written(kind: str, folder: Path, corpora: dict[str, Corpus]) -> tuple[Corpus, list[str]]:
    corpus = corpora[VARIANTS[kind].marks or "after"]
    return corpus, [str(folder / name) for name in VARIANTS[kind].write(folder, corpus)]


def test_every_format_has_a_writer() -> None:
    assert {variant.format for variant in VARIANTS.values()} == set(READERS)


@pytest.mark.parametrize("block", [1, 7, 2**18])
@pytest.mark.parametrize("kind", VARIANTS)
def test_the_same_documents_in_every_format(
    kind: str,
    block: int,
    tmp_path: Path,
    corpora: dict[str, Corpus],
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flat, "BLOCK_TOKENS", block)
    monkeypatch.setattr(mds, "BLOCK_TOKENS", block)
    corpus, names = written(kind, tmp_path, corpora)
    options = options_of(VARIANTS[kind], corpus)
    files = find_sources(names, options).files
    assert {file.format for file in files} == {VARIANTS[kind].format}
    assert documents(stream_of(names, options, encoder)) == corpus.ids


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_corpus_can_be_gone_on_with_at_every_mark(
    kind: str,
    tmp_path: Path,
    corpora: dict[str, Corpus],
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module, name in ((flat, "BLOCK_TOKENS"), (mds, "BLOCK_TOKENS"), (corpus_text, "PIECE")):
        monkeypatch.setattr(module, name, 16)
    monkeypatch.setattr(stream, "_FIRST_BATCH", 30)
    monkeypatch.setattr(stream, "_FULL_BATCH", 30)
    monkeypatch.setattr(stream, "BLOCK_TOKENS", 5)
    corpus, names = written(kind, tmp_path, corpora)
    (tmp_path / "z.txt").touch()
    names.append(str(tmp_path / "z.txt"))
    options = options_of(VARIANTS[kind], corpus)
    files = find_sources(names, options).files
    whole = TokenStream(files, options, encoder)
    blocks = list(whole.blocks())
    marked = [index for index, block in enumerate(blocks) if block.read_position is not None]
    assert marked
    for index in marked:
        rest = TokenStream(files, options, encoder, blocks[index].read_position)
        assert [told(block) for block in rest.blocks()] == [told(b) for b in blocks[index + 1 :]]
        for name in ("empty_files", "empty_documents", "cuts"):
            assert getattr(rest, name) == getattr(whole, name)


def told(block: TokenBlock) -> list[Any]:
    """All that is known of a block."""
    places = [block.locate(at) for at in range(len(block.ids))]
    return [
        block.ids.tolist(),
        block.starts.tolist(),
        block.size,
        block.files,
        block.read_position,
        places,
    ]


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_named_format_is_the_same_as_a_recognised_one(
    kind: str, tmp_path: Path, corpora: dict[str, Corpus], encoder: Encoder
) -> None:
    corpus, names = written(kind, tmp_path, corpora)
    options = options_of(VARIANTS[kind], corpus, format=VARIANTS[kind].format)
    assert documents(stream_of(names, options, encoder)) == corpus.ids


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_same_statistics_in_every_format(
    kind: str, tmp_path: Path, corpora: dict[str, Corpus], encoder: Encoder
) -> None:
    corpus, names = written(kind, tmp_path, corpora)
    layout = layout_of(moduli=(31, 37, 41, 43), heads=2, size=500)
    stream = stream_of(names, options_of(VARIANTS[kind], corpus), encoder)
    found = count_blocks(stream.blocks(), layout)
    wanted = count_blocks(blocks_of([np.array(ids) for ids in corpus.ids], 50), layout)
    assert (found.tokens, found.documents) == (wanted.tokens, len(TEXTS))
    for layer in layout.layer_ids:
        assert np.array_equal(found.hits[layer], wanted.hits[layer])


@pytest.mark.parametrize("kind", VARIANTS)
def test_progress_does_not_pass_the_bytes_of_the_files(
    kind: str, tmp_path: Path, corpora: dict[str, Corpus], encoder: Encoder
) -> None:
    corpus, names = written(kind, tmp_path, corpora)
    options = options_of(VARIANTS[kind], corpus)
    total = find_sources(names, options).size
    assert total is not None
    done = sum(block.size for block in stream_of(names, options, encoder).blocks())
    assert done > 0
    if VARIANTS[kind].format not in ("mds", "arrow", "npy"):
        assert total - 64 <= done <= total


@pytest.mark.parametrize("kind", [kind for kind in VARIANTS if not kind.startswith("npy")])
def test_a_token_is_found_again_by_its_place(
    kind: str, tmp_path: Path, corpora: dict[str, Corpus], encoder: Encoder
) -> None:
    """The last token of the last document: `locate` gives its position there."""
    corpus, names = written(kind, tmp_path, corpora)
    blocks = list(stream_of(names, options_of(VARIANTS[kind], corpus), encoder).blocks())
    last = [block for block in blocks if len(block.ids)][-1]
    assert last.locate(len(last.ids) - 1).endswith(f", position {len(corpus.ids[-1]) - 1}")


@pytest.mark.parametrize("kind", VARIANTS)
def test_truncation_is_refused(
    kind: str, tmp_path: Path, corpora: dict[str, Corpus], encoder: Encoder
) -> None:
    """Each file of a corpus is cut in many places: a CorpusError, or less of the same documents."""
    variant = VARIANTS[kind]
    corpus, _ = written(kind, tmp_path / _made(tmp_path, "whole"), corpora)
    whole = tmp_path / "whole"
    options = options_of(variant, corpus)
    for path in sorted(p for p in whole.rglob("*") if p.is_file()):
        if path.name.startswith(("cache-", "dataset_info")):
            continue
        raw = path.read_bytes()
        # Not the half: of a .ds whose index counts tokens, that is a whole one of narrower ids.
        for length in sorted({0, 1, 5, 12, len(raw) // 3, len(raw) - 9, len(raw) - 1}):
            broken = tmp_path / "broken"
            shutil.copytree(whole, broken)
            (broken / path.relative_to(whole)).write_bytes(raw[:length])
            names = [str(broken / name) for name in _names(whole)]
            # An empty file says nothing, and a data set without its list is a folder of files.
            told = length > 2 and path.name not in ("dataset_dict.json", "state.json")
            try:
                found = documents(stream_of(names, options, encoder))
            except CorpusError:
                found = None
            assert found is None or not variant.strict or not told, (path.name, length)
            if found is not None and variant.marks:
                tokens = [token for document in found for token in document]
                assert tokens == corpus.flat[: len(tokens)]
            shutil.rmtree(broken)


def _made(folder: Path, name: str) -> str:
    (folder / name).mkdir()
    return name


def _names(whole: Path) -> list[str]:
    folders = [name for name in ("mds", "saved") if (whole / name).is_dir()]
    main = sorted(p.name for p in whole.iterdir() if p.suffix not in (".idx", ".index"))
    return folders or main


@pytest.mark.parametrize("kind", VARIANTS)
def test_flipped_bytes_raise_nothing_but_our_errors(
    kind: str, tmp_path: Path, corpora: dict[str, Corpus], encoder: Encoder
) -> None:
    corpus, names = written(kind, tmp_path, corpora)
    options = options_of(VARIANTS[kind], corpus)
    generator = np.random.default_rng(5)
    for path in sorted(p for p in tmp_path.rglob("*") if p.is_file()):
        raw = path.read_bytes()
        for at in generator.integers(0, min(len(raw), 1200), 12).tolist():
            broken = bytearray(raw)
            broken[at] ^= int(generator.integers(1, 256))
            path.write_bytes(broken)
            with suppress(CorpusError):
                documents(stream_of(names, options, encoder))
        path.write_bytes(raw)


def test_what_was_assumed_is_said_once(tmp_path: Path, corpora: dict[str, Corpus]) -> None:
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        VARIANTS["nanogpt"].write(tmp_path / str(number), corpora["after"])
    options = CorpusOptions()
    files = find_sources([str(tmp_path / "*" / "*.bin")], options).files
    assert remarks(files, options) == [
        "3 nanogpt files of uint16 ids: each is one document (--document-end-id separates them)"
    ]
    (said,) = remarks(files, CorpusOptions(document_end_id=1))
    assert said == "3 nanogpt files of uint16 ids: token 1 ends a document"
