"""The API says what `lookup` and `trace` say, and what the sample says when it is searched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands.made import GEOMETRY, Made
from explore.conftest import client_of
from formats.checkpoints import deepseek_v41
from remote.server import serving
from small_tokenizers import PROSE
from starlette.testclient import TestClient

from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.lookup.command import LookupRequest, lookup
from engram_cli.commands.lookup.session import LookupSession
from engram_cli.commands.requests.explore import ExploreRequest
from engram_cli.commands.trace import TraceRequest, trace_text
from engram_cli.errors import InputError, MismatchError
from engram_cli.explore.app import as_plain
from engram_cli.explore.explorer import MOST_CHARACTERS, MOST_TOKENS, open_explorer
from engram_cli.stats.stats_io import read_stats
from engram_cli.table.store import open_table
from engram_cli.vocab.compress import compress_vocab

TEXT, OTHER = "An apple, an Apple fell", "tame the horse Bucephalus"


def ask(client: TestClient, name: str, **given: Any) -> Any:
    answer = client.get(f"api/{name}", params=given)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def refused(client: TestClient, name: str, **given: Any) -> str:
    answer = client.get(f"api/{name}", params=given)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["hint"]
    return str(error["message"])


def test_it_says_what_is_explored(client: TestClient, explored: Made) -> None:
    about = ask(client, "about")
    table, statistics = open_table(explored.table), read_stats(explored.stats)
    assert about["path"] == str(explored.table)
    assert (about["kind"], about["dim"], about["dtype"]) == ("table", 6, "float32")
    assert about["rows"] == [table.layout.layer(n).rows for n in about["layers"]]
    assert about["stats"] == str(explored.stats)
    assert about["corpus_tokens"] == statistics.tokens
    assert about["model"] is None


@pytest.mark.parametrize("layer", [1, 2])
def test_texts_are_those_of_lookup(client: TestClient, explored: Made, layer: int) -> None:
    found = ask(client, "lookup", text=TEXT, against=OTHER, layer=layer)
    wanted = lookup(LookupRequest(path=explored.table, text=TEXT, against=OTHER, layer=layer))
    for name in ("layer", "tokens", "tokens_total", "against", "against_total", "shared"):
        assert found[name] == as_plain(wanted)[name]
    assert found["against"]
    alone = ask(client, "lookup", text=TEXT)
    assert alone["against"] == alone["shared"] == []


def test_an_n_gram_is_the_same_wherever_it_is_looked_up(client: TestClient) -> None:
    orders = ask(client, "lookup", text=TEXT)["tokens"][3]["orders"]
    found = ask(client, "ngram", tokens=",".join(map(str, orders[1]["tokens"])))
    assert found["ngram"] == orders[1]
    assert found["shorter"] == [orders[0]]


def test_clean_heads_are_those_without_other_hits(client: TestClient) -> None:
    found = ask(client, "lookup", text=OTHER)
    orders = [order for token in found["tokens"] for order in token["orders"]]
    for order in orders:
        # The sample is exact, so that an n-gram that it lacks does not occur.
        assert order["absent"] == (order["sampled"] is None)
        count = order["sampled"] or 0
        assert order["clean"] == sum(head["hits"] == count for head in order["heads"])
    assert {order["clean"] for order in orders} != {0}


def test_a_row_has_its_values_and_all_n_grams_on_it(client: TestClient, explored: Made) -> None:
    tokens = ask(client, "lookup", text=f"{OTHER} {TEXT}", layer=2)["tokens"]
    pairs = [(own, head) for each in tokens for own in each["orders"] for head in own["heads"]]
    order, head = max(pairs, key=lambda pair: pair[1]["others_known"])
    place = {"order": order["order"], "head": head["head"], "row": head["row"]}
    found = ask(client, "row", **place, layer=2)
    assert found["known"] == head["others_known"] + (order["sampled"] is not None) > 1
    assert sum(each["count"] for each in found["ngrams"]) == found["hits"] == head["hits"]
    assert found["table_row"] == head["table_row"]
    values = open_table(explored.table).rows(2, np.array([head["table_row"]]))[0]
    assert found["values"] == values.tolist()
    assert found["norm"] == head["norm"]
    counts = [each["count"] for each in found["ngrams"]]
    assert counts == sorted(counts, reverse=True)


def test_a_search_finds_what_the_sample_holds(client: TestClient, explored: Made) -> None:
    found = ask(client, "search", q="horse", limit=200)
    texts = [each["text"] for each in found["matches"]]
    assert found["total"] == len(texts) > 3
    assert all("horse" in text for text in texts)
    assert found["exact"] is True
    samples = {sample.order: sample for sample in read_stats(explored.stats).samples()}
    for each in found["matches"]:
        sample = samples[each["order"]]
        at = int(np.flatnonzero((sample.tokens == each["tokens"]).all(axis=1))[0])
        assert each["count"] == sample.counts[at]
    assert ask(client, "search", q="HORSE", order=3)["matches"][0]["order"] == 3
    every = ask(client, "search", limit=200)
    assert every["total"] == sum(len(sample.counts) for sample in samples.values())
    assert every["matches"][0]["count"] == max(int(s.counts.max()) for s in samples.values())
    assert ask(client, "search", q="zebra crossing")["matches"] == []


def test_a_sample_is_indexed_as_it_is_scanned(explored: Made, tmp_path: Path) -> None:
    """Most n-grams are outside a small sample by hash; those of drawn positions have bounds."""
    hash_stats(
        HashStatsRequest(
            sources=(str(explored.folder / "corpus.txt"),),
            geometry=GEOMETRY,
            vocab=explored.vocab,
            out=tmp_path / "stats",
            tokenizer=explored.folder / "tokenizer.json",
            sample_size=16,
        )
    )
    text = "\n".join(PROSE)[:MOST_CHARACTERS]
    place = {"path": tmp_path / "stats", "vocab": explored.vocab}
    scanned = lookup(LookupRequest(**place, text=text, limit=MOST_TOKENS))
    heads = [head for each in scanned.tokens for own in each.orders for head in own.heads]
    assert {other.exact for head in heads for other in head.others} == {True, False}
    with client_of(ExploreRequest(**place)) as client:
        found = ask(client, "lookup", text=text)
        assert found["tokens"] == as_plain(scanned.tokens)
        matches = ask(client, "search", limit=200)
        assert matches["exact"] is False
        for each in matches["matches"][::7]:
            own = ask(client, "ngram", tokens=",".join(map(str, each["tokens"])))["ngram"]
            assert each["exact"] == (own["sampled"] is not None)
            assert each["count"] == (own["sampled"] if each["exact"] else own["at_most"])


def test_words_are_searched_without_a_tokenizer(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self: LookupSession, text: str, ids: None, what: str) -> Any:
        raise InputError("no tokenizer was found", "give it with --tokenizer")

    before = ask(client, "search", q="horse")
    monkeypatch.setattr(LookupSession, "encode", lost)
    assert refused(client, "lookup", text="horse") == "no tokenizer was found"
    found = ask(client, "search", q="horse")
    assert 3 < found["total"] <= before["total"]
    assert not any(each["whole"] for each in found["matches"])


def test_tables_of_other_programs_are_explored(tmp_path: Path, tokenizer_file: Path) -> None:
    vocab = compress_vocab(tokenizer_file)
    folder = tmp_path / "DeepSeek-V4.1"
    deepseek_v41(folder, vocab, tokenizer_file, changes={"num_hidden_layers": 5})
    with client_of(ExploreRequest(path=folder)) as client:
        about = ask(client, "about")
        assert (about["dtype"], about["orders"], about["stats"]) == ("fp8_e8m0", [2, 3, 4], None)
        found = ask(client, "lookup", text=TEXT)
        wanted = lookup(LookupRequest(path=folder, text=TEXT))
        assert found["tokens"] == as_plain(wanted.tokens)
        tokens = found["tokens"][4]["orders"][2]["tokens"]
        own = ask(client, "ngram", tokens=",".join(map(str, tokens)))
        assert [each["order"] for each in own["shorter"]] == [3, 2]


def test_a_table_behind_an_address_is_explored(explored: Made) -> None:
    with serving(explored.folder) as far:
        place = Path(f"{far.address}/{explored.table.name}")
        request = ExploreRequest(path=place, vocab=explored.vocab, stats=explored.stats)
        with client_of(request) as client:
            assert ask(client, "about")["path"] == f"{far.address}/{explored.table.name}"
            found = ask(client, "lookup", text=TEXT)
    wanted = lookup(LookupRequest(path=explored.table, text=TEXT))
    assert found["tokens"] == as_plain(wanted.tokens)


def test_whole_matches_come_before_parts_of_words(client: TestClient) -> None:
    whole = [each["whole"] for each in ask(client, "search", q="an", limit=200)["matches"]]
    assert whole == sorted(whole, reverse=True)
    assert {True, False} == set(whole)


def test_statistics_and_bundles_are_explored_too(explored: Made) -> None:
    with client_of(ExploreRequest(path=explored.stats)) as client:
        found = ask(client, "lookup", text=TEXT)
        assert found["tokens"][0]["orders"][0]["heads"][0]["norm"] is None
        assert ask(client, "row", order=2, head=0, row=0)["values"] is None
        assert ask(client, "search", q="horse")["total"] > 0
    with client_of(ExploreRequest(path=explored.bundle)) as client:
        assert ask(client, "about")["kind"] == "bundle"


def test_without_statistics_rows_and_norms_remain(checkpoint: Path) -> None:
    with client_of(ExploreRequest(path=checkpoint)) as client:
        order = ask(client, "lookup", text=TEXT)["tokens"][0]["orders"][0]
        assert (order["clean"], order["at_most"], order["heads"][0]["hits"]) == (None, None, None)
        assert order["heads"][0]["norm"] > 0
        assert ask(client, "row", order=2, head=0, row=0)["known"] is None
        assert "no statistics to search" in refused(client, "search", q="a")


def test_gates_are_those_of_trace(checkpoint: Path) -> None:
    with client_of(ExploreRequest(model=checkpoint)) as client:
        assert ask(client, "about")["model"] == str(checkpoint)
        found = ask(client, "gates", text=TEXT)
        wanted = trace_text(TraceRequest(checkpoint=checkpoint, text=TEXT))
        assert found["ids"] == list(wanted.ids)
        assert found["layers"] == as_plain(wanted.layers)
        with_memory, without = found["with_memory"], found["without_memory"]
        assert len(with_memory) == len(without) == len(wanted.ids)
        assert with_memory[0] is without[0] is None
        assert with_memory[1:] != without[1:]
        alone = ask(client, "gates", text="a")
        assert alone["with_memory"] == [None]


def test_the_bundle_that_is_explored_is_the_models(checkpoint: Path) -> None:
    """That of a run lies in another folder than the model."""
    own = ExploreRequest(path=checkpoint / "fresh", model=checkpoint)
    with client_of(own) as client:
        assert ask(client, "about")["path"] == str(checkpoint / "fresh")
        found = ask(client, "gates", text=TEXT)
        assert found["untrained"] == [1, 2]
        assert found["with_memory"] == found["without_memory"]


def test_a_model_of_another_memory_is_refused(checkpoint: Path, explored: Made) -> None:
    with pytest.raises(MismatchError, match="explore the model's own memory"):
        open_explorer(ExploreRequest(path=explored.table, model=checkpoint))


def test_what_cannot_be_explored(explored: Made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no engram-table\.zarr and no engram-stats"):
        open_explorer(ExploreRequest(folder=tmp_path))
    with pytest.raises(InputError, match="is a vocabulary, which has no rows"):
        open_explorer(ExploreRequest(path=explored.vocab))
    with pytest.raises(InputError, match="does not exist"):
        open_explorer(ExploreRequest(path=tmp_path / "none"))
    with pytest.raises(InputError, match="port"):
        ExploreRequest(port=65536)


def test_the_folder_gives_its_table_else_its_statistics(explored: Made, tmp_path: Path) -> None:
    explorer = open_explorer(ExploreRequest(folder=explored.folder))
    assert explorer.about().path == explored.table
    (tmp_path / "engram-stats").symlink_to(explored.stats)
    request = ExploreRequest(folder=tmp_path, vocab=explored.vocab)
    assert open_explorer(request).about().kind == "statistics"


def test_questions_that_have_no_answer(client: TestClient) -> None:
    assert refused(client, "lookup") == "'text' is missing"
    assert "has no token" in refused(client, "lookup", text="")
    assert "no layer 7" in refused(client, "lookup", text="a", layer=7)
    for layer in ("one", "-1", "1e3", "9" * 30, "²"):
        assert "not a whole number" in refused(client, "lookup", text="a", layer=layer)
    long = "a" * (MOST_CHARACTERS + 1)
    for name, given in (("lookup", {"text": long}), ("lookup", {"text": "a", "against": long}),
                        ("search", {"q": long})):  # fmt: skip
        assert "characters" in refused(client, name, **given)
    assert "no n-gram of this layout" in refused(client, "ngram", tokens="1")
    assert "not all are compressed ids" in refused(client, "ngram", tokens="1,999999999")
    assert "has no row 999999" in refused(client, "row", order=2, head=0, row=999_999)
    for order, head in ((7, 0), (2, 99)):
        assert "no head" in refused(client, "row", order=order, head=head, row=0)
    assert "no 9-grams" in refused(client, "search", q="a", order=9)
    assert "there is no model" in refused(client, "gates", text="a")
    assert client.get("api/none").status_code == 404


def test_a_long_text_is_cut_and_counted(client: TestClient) -> None:
    found = ask(client, "lookup", text="an apple " * 150)
    assert len(found["tokens"]) == MOST_TOKENS < found["tokens_total"]


def test_numbers_that_json_lacks_are_null() -> None:
    assert as_plain({"a": (float("nan"), [float("inf"), 1.5]), "b": Path("x")}) == {
        "a": [None, [None, 1.5]],
        "b": "x",
    }
