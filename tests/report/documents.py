"""Documents like a stats.json with every section, drawn from simple laws and no clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stats.truth import layout_of

from engram_cli.report.page import render, write_page
from engram_cli.stats.results import statistics_page
from engram_cli.stats.stats_io import Statistics
from engram_cli.view import Page

ORDERS, HEADS, LAYER = (2, 3, 4), 8, 1
ROWS = 8_262_400
TOKENS = 63_712_480
NGRAMS = {2: 3.1e6, 3: 13.4e6, 4: 27.2e6}


def page_of(document: dict[str, Any]) -> Page:
    """The page of a stats.json, of any layout."""
    return statistics_page(
        Statistics(
            path=Path("engram-stats"),
            layout=layout_of(moduli=(101,) * 24, heads=8, orders=ORDERS),
            tokens=document["tokens"],
            documents=document["documents"],
            document=document,
        )
    )


def rendered(document: dict[str, Any]) -> str:
    """The text of that page."""
    return render(page_of(document))


def write(document: dict[str, Any], path: Path, *, force: bool = False) -> None:
    """Write that page."""
    write_page(page_of(document), path, force=force)


def full_document() -> dict[str, Any]:
    """Every section, as of a corpus of code and prose."""
    columns = [_column(order, head) for order in ORDERS for head in range(HEADS)]
    columns[3]["flag"] = "above"
    return {
        "format": "engram-stats",
        "version": 1,
        "tool_version": "0.1.0",
        "complete": True,
        "layout": {
            "scheme": "engram-v1",
            "orders": list(ORDERS),
            "heads": HEADS,
            "fold": "newest-first",
            "filler_id": 2,
            "eos_id": None,
            "compressed_size": 97_112,
            "vocab_digest": "sha256:" + "5c" * 32,
            "layers": [
                {"layer": LAYER, "rows": ROWS * 24, "moduli": [ROWS + 7 * i for i in range(24)]}
            ],
        },
        "fingerprint": "sha256:" + "a91f" * 16,
        "tokens": TOKENS,
        "documents": 18_231,
        "join_documents": False,
        "corpus": {"files": 18_240, "empty_files": 9},
        "orders": [_order(order) for order in ORDERS],
        "columns": columns,
        "clean_heads": [_clean(order) for order in ORDERS],
        "row_hits": [_row_hits(order) for order in ORDERS],
        "growth": [_growth(order) for order in ORDERS],
        "locality": _locality(),
        "sources": {
            "names": ["code", "manual pages", "prose"],
            "tokens": [40_200_000, 12_512_480, 11_000_000],
            "overlap": [
                {"order": 2, "share": [[1, 0.31, 0.28], [0.52, 1, 0.44], [0.46, 0.41, 1]]},
                {"order": 3, "share": [[1, 0.09, 0.06], [0.21, 1, 0.15], [0.14, 0.12, 1]]},
                {"order": 4, "share": [[1, 0.021, 0.009], [0.06, 1, 0.03], [0.02, 0.03, 1]]},
            ],
        },
        "top_ngrams": [_top(order) for order in ORDERS],
        "worst_rows": [_worst(order, head) for order in ORDERS for head in (0, 5)],
        "uncompressed": {
            "orders": [_order(order) | {"distinct": NGRAMS[order] * 1.17} for order in ORDERS],
            "columns": [each | {"shared": min(each["shared"] * 1.06, 1.0)} for each in columns],
        },
    }  # fmt: skip


def _order(order: int) -> dict[str, Any]:
    return {
        "order": order,
        "windows": TOKENS,
        "distinct": NGRAMS[order],
        "distinct_error": NGRAMS[order] / 512,
        "exact": False,
        "sampled": 2**18,
    }


def _column(order: int, head: int) -> dict[str, Any]:
    rows, ngrams = ROWS + 7 * (8 * (order - 2) + head), NGRAMS[order]
    occupied = rows * (1 - (1 - 1 / rows) ** ngrams)
    shared = 1 - (1 - 1 / rows) ** (ngrams - 1)
    wobble = ((head * 37 + order * 11) % 9 - 4) / 4000
    return {
        "layer": LAYER,
        "order": order,
        "head": head,
        "rows": rows,
        "occupied": int(occupied * (1 + wobble / 6)),
        "ideal_occupied": occupied,
        "ideal_occupied_error": occupied / 9000,
        "shared": min(shared * (1 + wobble), 1.0),
        "shared_error": (shared * (1 - shared) / 2**18) ** 0.5,
        "shared_occurrences": shared * 0.97,
        "shared_occurrences_error": 0.004,
        "ideal_shared": shared,
        "max_hits": 1_204_331 // order,
        "full_rows": 0,
        "flag": None,
    }


def _clean(order: int) -> dict[str, Any]:
    clean = 1 - _column(order, 0)["ideal_shared"]
    ideal = [_choose(HEADS, k) * clean**k * (1 - clean) ** (HEADS - k) for k in range(HEADS + 1)]
    ngrams = [0.96 * share + 0.04 / (HEADS + 1) for share in ideal]
    uses = [0.8 * share + 0.2 / (HEADS + 1) for share in ideal]
    return {"layer": LAYER, "order": order, "ngrams": ngrams, "occurrences": uses,
            "ideal": ideal, "purity": 0.35 + 0.4 * clean}  # fmt: skip


def _choose(n: int, k: int) -> int:
    found = 1
    for i in range(k):
        found = found * (n - i) // (i + 1)
    return found


def _row_hits(order: int) -> dict[str, Any]:
    bins = [0, *(2**power for power in range(21))]
    unused = ROWS * (1 - 1 / ROWS) ** NGRAMS[order]
    rest = [2.0 ** -(0.35 * order * abs(i - 6 + order) ** 1.25) for i in range(21)]
    rows = [int(unused), *(int((ROWS - unused) * share / sum(rest)) for share in rest)]
    return {"layer": LAYER, "order": order, "bins": bins, "rows": rows}


def _growth(order: int) -> dict[str, Any]:
    power = {2: 0.68, 3: 0.83, 4: 0.92}[order]
    tokens = [int(TOKENS * 2.0**-i) for i in range(16, -1, -1)]

    def distinct(count: float) -> float:
        return NGRAMS[order] * (count / TOKENS) ** power

    def used(ngrams: float) -> float:
        return ROWS * (1 - (1 - 1 / ROWS) ** ngrams)

    return {
        "order": order,
        "tokens": tokens,
        "distinct": [distinct(x) for x in tokens],
        "error": [distinct(x) / 400 for x in tokens],
        "occupied": [{"layer": LAYER, "rows": [int(used(distinct(x))) for x in tokens]}],
        "extrapolated": [
            {"factor": factor, "tokens": TOKENS * factor, "distinct": distinct(TOKENS * factor),
             "error": distinct(TOKENS * factor) * wrong,
             "occupied": [{"layer": LAYER, "share": used(distinct(TOKENS * factor)) / ROWS}]}
            for factor, wrong in ((10, 0.06), (100, 0.17))
        ],
    }  # fmt: skip


def _locality() -> dict[str, Any]:
    shares = [10 ** (-4 + i / 5) for i in range(21)]
    shares[-1] = 1.0
    sizes = [2**power for power in range(8, 22)]
    hot, lru = [], []
    for order, power in zip(ORDERS, (0.12, 0.2, 0.31), strict=True):
        counted = [share**power for share in shares]
        hot.append({"layer": LAYER, "order": order, "rows_share": shares, "counted": counted,
                    "held_out": [each * (1 - power / 2) + (each**9) * power / 2
                                 for each in counted]})  # fmt: skip
        rates = [min(0.99, (size / 2**21) ** (power * 0.9) * (1.02 - power)) for size in sizes]
        lru.append({"layer": LAYER, "order": order, "cache_rows": sizes, "hit_rate": rates,
                    "error": [0.004] * (len(sizes) - 1) + [0.0]})  # fmt: skip
    return {"hot": hot, "lru": lru, "held_out_tokens": TOKENS // 10}


_TEXTS = ("return ␣self", "of ␣the", "in ␣the", ": \\n", "import ␣os", "if ␣not", "for ␣i",
          "␣def ␣_", "␣is ␣not", "self .", "\\t return", "␣number", "Error (", "naïve ␣café",
          "= ␣None", "raise ␣TypeError", "e .g.")  # fmt: skip


def _top(order: int) -> dict[str, Any]:
    ngrams = [
        {"text": text if order == 2 else f"{text} {_TEXTS[(i * 5 + order) % len(_TEXTS)]}",
         "tokens": [i, i + 1], "count": int(820_000 / (i + 1) ** 0.8 / order), "error": 0}
        for i, text in enumerate(_TEXTS)
    ]  # fmt: skip
    return {"order": order, "ngrams": ngrams}


def _worst(order: int, head: int) -> dict[str, Any]:
    ngrams = [
        {"text": _TEXTS[(head * 3 + i * 7 + order) % len(_TEXTS)], "count": 90_000 // (i + 1)}
        for i in range(3)
    ]
    return {"layer": LAYER, "order": order, "head": head, "row": 190_331 * (head + 1),
            "hits": 164_913, "ngrams": ngrams}  # fmt: skip
