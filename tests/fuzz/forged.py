"""Makes checksums right again after a change, so that readers get to what was changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from engram_cli.files import canonical_json, sha256_bytes
from engram_cli.hashing.layout import HashLayout
from engram_cli.rows.checksum import file_checksum
from engram_cli.stats.stats_io import _digest
from engram_cli.table.grid import content_digest
from engram_cli.vocab.lookup import lookup_digest

Forge = Callable[[Path], None]  # in the folder of an artifact


def forge_stats(name: str) -> Forge:
    def forge(here: Path) -> None:
        folder = here / name
        document = json.loads((folder / "stats.json").read_bytes())
        document.pop("arrays", None)
        with suppress(Exception):
            document["fingerprint"] = HashLayout.from_json(document["layout"]).fingerprint
        with suppress(Exception):
            raw = (folder / "partials.safetensors").read_bytes()
            document["partials"]["digest"] = sha256_bytes(raw)
        document["digest"] = _digest(document)
        (folder / "stats.json").write_bytes(canonical_json(document))

    return forge


def forge_table(name: str) -> Forge:
    def forge(here: Path) -> None:
        meta = json.loads((here / name / "zarr.json").read_bytes())
        attributes: dict[str, Any] = meta["attributes"]
        with suppress(Exception):
            layout = HashLayout.from_json(attributes["layout"])
            attributes["fingerprint"] = layout.fingerprint
        with suppress(Exception):
            for file in attributes["manifest"]["files"]:
                path = here / name / file
                entry = [path.stat().st_size, file_checksum(path)]
                attributes["manifest"]["files"][file] = entry
        attributes["digest"] = content_digest(attributes)
        (here / name / "zarr.json").write_text(json.dumps(meta))

    return forge


def forge_bundle(place: str) -> Forge:
    def forge(here: Path) -> None:
        path = here / place / "engram.json"
        document = json.loads(path.read_bytes())
        with suppress(Exception):
            document["fingerprint"] = HashLayout.from_json(document["layout"]).fingerprint
        for name, entry in document["files"].items():
            with suppress(Exception):
                raw = (here / place / name).read_bytes()
                entry["bytes"], entry["digest"] = len(raw), sha256_bytes(raw)
        path.write_text(json.dumps(document))

    return forge


def forge_vocab(name: str) -> Forge:
    def forge(here: Path) -> None:
        table = pq.read_table(here / name)
        about = json.loads(table.schema.metadata[b"engram"])
        lookup_ids = np.array(table["compressed_id"].fill_null(-1).to_numpy(), dtype=np.int32)
        about["vocab_digest"] = lookup_digest(lookup_ids)
        table = table.replace_schema_metadata({b"engram": json.dumps(about).encode()})
        pq.write_table(table, here / name)

    return forge


def forge_checkpoint(here: Path) -> None:
    document = json.loads((here / "checkpoint.json").read_bytes())
    document["digest"] = sha256_bytes((here / document["arrays_file"]).read_bytes())
    (here / "checkpoint.json").write_text(json.dumps(document))
