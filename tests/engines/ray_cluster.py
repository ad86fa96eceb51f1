"""A corpus counted on Ray clusters: run as a script with a workspace; prints what came of it.

A process of its own, since Ray takes over signals, leaves sockets open, and starts many others.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import EngramError

OPTIONS: dict[str, Any] = {
    "geometry": Geometry(heads=2, rows_per_head=(211,), layers=(1, 5), pad_id=2),
    "sample_size": 64,
    "exact": True,
    "compare_uncompressed": True,
    "group_by": "file",
    "holdout": 0.2,
    "join_documents": True,
    "partition_size": 1024,
}
MEMORY = 8 * 2**30  # what a node says it has: nothing is held to it


class Heard:
    """Remembers what it was told; does something once, at the first progress."""

    def __init__(self, then: Any = None) -> None:
        self.notes: list[str] = []
        self.total: int | None = None
        self.done = self.steps = 0
        self._then = then

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.total = total

    def advance(self, amount: int) -> None:
        self.done += amount
        self.steps += amount > 0
        then, self._then = self._then, None
        if then is not None:
            then()

    def note(self, text: str) -> None:
        self.notes.append(text)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def main(here: Path) -> dict[str, Any]:
    """Count here, on a cluster, on one that loses a node, with an error, and broken off."""
    began = time.perf_counter()
    found: dict[str, Any] = {}

    def run(name: str, heard: Heard, **options: Any) -> None:
        sources = options.pop("sources", (here / "corpus",))
        request = HashStatsRequest(
            sources=sources, workspace=Workspace(here), out=here / name, **OPTIONS | options
        )
        hash_stats(request, heard)

    run("local", Heard())
    whole = contents(here / "local")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            **{"num_cpus": 0, "object_store_memory": 2**27, "memory": MEMORY},
            # A dead node is noticed within a second; by default it takes ten times as long.
            "_system_config": {"health_check_period_ms": 300, "health_check_failure_threshold": 3},
        },
    )
    node: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 2**27, "memory": MEMORY}
    doomed = cluster.add_node(**node)
    far = {"engine": "ray", "ray_address": cluster.address}

    def lose_the_node() -> None:
        cluster.add_node(**node)
        cluster.remove_node(doomed, allow_graceful=False)

    heard = Heard(lose_the_node)
    run("lost", heard, **far)
    found["lost"] = {
        "equal": contents(here / "lost") == whole,
        "steps": heard.steps,
        "all": heard.done == heard.total,
        "notes": heard.notes,
    }
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    deadline = time.monotonic() + 60.0
    while (alive := sum(bool(each["Alive"]) for each in ray.nodes())) > 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    found["alive"] = alive
    run("again", Heard(), **far, threads=2)  # the connection that is there is used, and kept
    found["again"] = contents(here / "again") == whole
    found["kept"] = ray.is_initialized()
    for name, options in {
        "bad": {"sources": (here / "bad",)},
        "large": {"threads": 64},
        "pipe": {"sources": ("-",)},
        "stop": {},
    }.items():

        def stop() -> None:
            raise KeyboardInterrupt

        try:
            run(f"{name}-out", Heard(stop if name == "stop" else None), **far, **options)
        except EngramError as error:
            found[name] = [type(error).__name__, error.message]
        except KeyboardInterrupt:
            found[name] = "interrupted"
    deadline = time.monotonic() + 60.0
    while ray.available_resources().get("CPU") != 2.0 and time.monotonic() < deadline:
        time.sleep(0.1)
    found["idle"] = ray.available_resources().get("CPU") == 2.0
    found["written"] = sorted(
        path.name for path in here.iterdir() if (path / "stats.json").exists()
    )
    ray.shutdown()
    cluster.shutdown()
    found["seconds"] = time.perf_counter() - began
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
