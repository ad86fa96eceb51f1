"""Tables filled on Ray clusters: run as a script with a workspace; prints what came of it.

A process of its own, for the reasons that `ray_cluster` has.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from engram_cli.commands import init_corpus
from engram_cli.commands.build_table import BuildTableRequest, build_table
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.init_corpus import FillRequest
from engram_cli.commands.workspace import Workspace
from engram_cli.engines import filling
from engram_cli.errors import EngramError
from engram_cli.table.journal import filled
from engram_cli.table.places import partial_folder

MEMORY = 8 * 2**30  # what a node says it has: nothing is held to it


class Heard:
    """Remembers what it was told; does something once in the first step of each named stage."""

    def __init__(self, **then: Any) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []
        self.done: dict[str, int] = {}
        self._then = then

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.stages.append(what)

    def advance(self, amount: int) -> None:
        stage = self.stages[-1]
        self.done[stage] = self.done.get(stage, 0) + amount
        then = self._then.pop(stage.split()[0], None) if amount else None
        if then is not None:
            then()

    def note(self, text: str) -> None:
        self.notes.append(text)


def small_tasks() -> None:
    """So that a small corpus makes many tasks."""
    init_corpus.PARTITION_BYTES = 1024
    filling._LONGEST = 300
    filling._LEAST_ROWS = 20


def main(here: Path) -> dict[str, Any]:
    """Fill here, on a cluster that loses nodes, broken off and gone on with, with an error."""
    began = time.perf_counter()
    small_tasks()
    found: dict[str, Any] = {}
    space = Workspace(here)
    near = FillRequest(sources=(here / "corpus",), workspace=space, memory=2**30)
    request = BuildTableRequest(
        geometry=Geometry(heads=2, rows_per_head=(60, 70), layers=(1,), pad_id=2),
        vocab=space.vocab,
        out=here / "local.zarr",
        dim=6,
        init="next-token",
        chunk_rows=32,
        fill=near,
    )
    whole = build_table(request).digest
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            **{"num_cpus": 0, "object_store_memory": 2**27, "memory": MEMORY},
            # A dead node is noticed within a second, and even the smallest arrays lie on nodes;
            # by default it takes ten times as long, and 100 kB are kept by who asked for them.
            "_system_config": {
                "health_check_period_ms": 300,
                "health_check_failure_threshold": 3,
                "max_direct_call_object_size": 64,
            },
        },
    )
    node: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 2**27, "memory": MEMORY}
    nodes = [cluster.add_node(**node)]
    far = replace(near, engine="ray", ray_address=cluster.address)

    def lose_the_node() -> None:
        nodes.append(cluster.add_node(**node))
        cluster.remove_node(nodes.pop(0), allow_graceful=False)

    def stop() -> None:
        raise KeyboardInterrupt

    def run(name: str, heard: Heard, fill: FillRequest = far) -> str:
        return build_table(replace(request, out=here / f"{name}.zarr", fill=fill), heard).digest

    heard = Heard(tokens=lose_the_node, sums=lose_the_node)
    found["lost"] = run("lost", heard) == whole
    found["stages"], found["done"], found["notes"] = heard.stages, heard.done, heard.notes
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    deadline = time.monotonic() + 60.0
    while (alive := sum(bool(each["Alive"]) for each in ray.nodes())) > 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    found["alive"] = alive
    for stage in ("sums", "rows"):
        try:
            run("again", Heard(**{stage: stop}))
        except KeyboardInterrupt:
            found[stage] = filled(partial_folder(here / "again.zarr"))[0]
    deadline = time.monotonic() + 60.0
    while ray.available_resources().get("CPU") != 2.0 and time.monotonic() < deadline:
        time.sleep(0.1)
    found["idle"] = ray.available_resources().get("CPU") == 2.0
    heard = Heard()
    found["again"], found["again notes"] = run("again", heard) == whole, heard.notes
    for name, fill in {
        "bad": replace(far, sources=(here / "bad",)),
        "large": replace(far, memory=2**40),
        "small": replace(far, memory=2**28),
    }.items():
        try:
            run(name, Heard(), fill)
        except EngramError as error:
            found[name] = [type(error).__name__, error.message]
    ray.shutdown()
    cluster.shutdown()
    found["seconds"] = time.perf_counter() - began
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
