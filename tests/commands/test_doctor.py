"""doctor: what /proc, /sys and nvidia-smi say, what fits, and each known problem."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_bundle, make_layout, make_spec

from engram_cli.commands.doctor import command, disk_reads, gpus, machine
from engram_cli.commands.doctor import findings as doctor_findings
from engram_cli.commands.doctor.command import doctor
from engram_cli.commands.doctor.disk_reads import measure_reads
from engram_cli.commands.doctor.findings import findings
from engram_cli.commands.doctor.gpus import Gpu, GpuLink, Gpus, Torch, read_gpus
from engram_cli.commands.doctor.machine import HugePages, Memory, SharedMemory, read_memory
from engram_cli.commands.requests.doctor import DoctorRequest
from engram_cli.errors import InputError
from engram_cli.vocab.compress import CompressedVocab

GB = 10**9
MEMORY = Memory(
    total_bytes=256 * GB,
    available_bytes=200 * GB,
    cgroup_bytes=None,
    memlock_bytes=None,
    transparent_huge_pages="madvise",
    huge_pages=(),
    hugetlbfs=(),
    numa_nodes=2,
)
SHARED = SharedMemory(
    folder="/dev/shm", file_system="tmpfs", total_bytes=128 * GB, free_bytes=127 * GB
)
PAIR = Gpus(
    found=True,
    driver="580.159.04",
    gpus=tuple(
        Gpu(index=index, name="NVIDIA H200", total_bytes=150 * GB, free_bytes=free * GB)
        for index, free in enumerate((140, 100))
    ),
    links=(GpuLink(first=0, second=1, link="NV18", peer_access=True),),
)
TORCH = Torch(cuda="13.0", gpus=2)

LISTED = """\
0, NVIDIA H200, 143771, 143162, 580.159.04
1, NVIDIA H200, 143771, [N/A], 580.159.04
"""
TOPOLOGY = """\
\t\x1b[4mGPU0\tGPU1\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tSYS\t0-31\t0\t\tN/A
GPU1\tNV18\t X \tSYS\t0-31\t0\t\tN/A
NIC0\tSYS\tSYS\t X

Legend:

  X    = Self
"""
READS = """\
 \tGPU0\tGPU1
 GPU0\tX\t{}
 GPU1\tOK\tX

Legend:

  X    = Self
  OK   = Status Ok
  CNS  = Chipset not supported
"""


def tree(root: Path, files: dict[str, str]) -> Path:
    """Files with their texts below `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_what_proc_and_sys_say(tmp_path: Path) -> None:
    pages = "sys/kernel/mm/hugepages/hugepages-2048kB"
    root = tree(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 600 kB\n",
            "proc/self/cgroup": "0::/user.slice/job\n",
            "proc/self/mounts": "none /mnt/huge hugetlbfs rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\n",
            "sys/fs/cgroup/user.slice/memory.max": "500000\n",
            "sys/fs/cgroup/user.slice/job/memory.max": "max\n",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
            f"{pages}/nr_hugepages": "20\n",
            f"{pages}/free_hugepages": "12\n",
            "sys/kernel/mm/hugepages/hugepages-oddkB/nr_hugepages": "20\n",
            "sys/devices/system/node/node0/x": "",
            "sys/devices/system/node/node1/x": "",
            "sys/devices/system/node/node_list": "",
        },
    )
    assert read_memory(root, memlock=8192) == Memory(
        total_bytes=1_024_000,
        available_bytes=614_400,
        cgroup_bytes=500_000,
        memlock_bytes=8192,
        transparent_huge_pages="madvise",
        huge_pages=(HugePages(page_bytes=2**21, pages=20, free_pages=12),),
        hugetlbfs=("/mnt/huge",),
        numa_nodes=2,
    )


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"sys/fs/cgroup/memory.max": "7000\n"}, 7000),  # in a container
        ({"proc/self/cgroup": "nonsense\n5:cpu:/x\n"}, None),
        (
            {
                "proc/self/cgroup": "3:cpu,memory:/docker/a\n",
                "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes": "9000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            9000,
        ),
        ({"sys/fs/cgroup/memory.max": "max\n"}, None),
    ],
)
def test_limits_of_control_groups(files: dict[str, str], limit: int | None, tmp_path: Path) -> None:
    found = read_memory(tree(tmp_path, files), memlock=-1)
    assert found.cgroup_bytes == limit
    assert found.memlock_bytes is None
    assert (found.total_bytes, found.numa_nodes, found.transparent_huge_pages) == (None,) * 3


def test_shared_memory_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGRAM_SHARED_MEMORY", str(tmp_path / "missing"))
    found = machine.read_shared_memory()
    assert found.folder is None
    assert found.problem is not None
    assert "is no folder" in found.problem


def test_shared_memory(shared_base: Path) -> None:
    found = machine.read_shared_memory()
    assert (found.folder, found.file_system) == (str(shared_base), "tmpfs")
    assert found.leftover_bytes == 0
    assert os.listdir(shared_base) == []


def smi(reads: str = "OK", missing: Sequence[str] = ()) -> Any:
    """An nvidia-smi."""

    def run(arguments: Sequence[str]) -> str | None:
        if any(each in arguments for each in missing):
            return None
        if "-p2p" in arguments:
            return READS.format(reads)
        return TOPOLOGY if "topo" in arguments else LISTED

    return run


def test_gpus_and_their_links() -> None:
    found = read_gpus(smi())
    assert found.driver == "580.159.04"
    assert [each.name for each in found.gpus] == ["NVIDIA H200"] * 2
    assert [each.total_bytes for each in found.gpus] == [143771 * 2**20] * 2
    assert [each.free_bytes for each in found.gpus] == [143162 * 2**20, 0]
    assert found.links == (GpuLink(first=0, second=1, link="NV18", peer_access=True),)
    assert found.links[0].nvlink


def test_gpus_that_do_not_read_each_other() -> None:
    assert read_gpus(smi("CNS")).links[0].peer_access is False
    assert read_gpus(smi(missing=["-p2p"])).links[0].peer_access is None
    assert read_gpus(smi(missing=["-m"])).links[0].link is None


def test_no_gpus() -> None:
    assert read_gpus(lambda arguments: None) == Gpus(found=False)
    assert read_gpus(lambda arguments: "") == Gpus(found=True)
    assert read_gpus(lambda arguments: "nonsense\n") == Gpus(found=True)
    assert gpus.output_of(["engram-has-no-such-program"]) is None


def found(**changed: Any) -> list[tuple[bool, str]]:
    """Problems of a machine without any, but for what is changed."""
    given = {"memory": MEMORY, "shared": SHARED, "gpus": PAIR, "torch": TORCH} | changed
    own = given.pop("script", Path("/nowhere/engram"))
    return [(each.prevents_use, each.problem) for each in findings(**given, script=own)]


@pytest.mark.parametrize(
    ("changed", "problem", "prevents"),
    [
        ({"memory": replace(MEMORY, transparent_huge_pages="never")}, "huge pages are off", False),
        ({"memory": replace(MEMORY, cgroup_bytes=8 * GB)}, "limits memory to 8,000,000,000", False),
        ({"memory": replace(MEMORY, memlock_bytes=65_536)}, "limited to 65,536 bytes", False),
        ({"shared": replace(SHARED, free_bytes=64_000_000)}, "64,000,000 bytes free", False),
        ({"shared": replace(SHARED, leftover_bytes=5)}, "5 bytes of rows in /dev/shm", False),
        ({"shared": SharedMemory(folder=None, problem="no")}, "shared by processes: no", False),
        ({"gpus": replace(PAIR, driver="570.1")}, "570.1 is too old for torch's CUDA 13.0", True),
        ({"torch": Torch(cuda=None)}, "built without CUDA", False),
        ({"torch": Torch(cuda="13.0", gpus=0)}, "sees none of the GPUs", False),
        ({"torch": Torch(problem="OSError: lib")}, "cannot be imported (OSError: lib)", True),
        (
            {"gpus": replace(PAIR, links=(replace(PAIR.links[0], peer_access=False),))},
            "GPUs 0-1 cannot read",
            False,
        ),
    ],
)
def test_each_problem(changed: dict[str, Any], problem: str, prevents: bool) -> None:
    (one,) = found(**changed)
    assert problem in one[1]
    assert one[0] is prevents


def test_no_problem() -> None:
    assert found() == []
    small = replace(MEMORY, memlock_bytes=65_536)
    assert found(memory=small, gpus=Gpus(found=False), torch=None) == []


def test_another_packages_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "engram"
    script.write_text("#!/usr/bin/python3\nfrom other.cli import main\nmain()\n")
    (one,) = found(script=script)
    assert one == (
        False,
        f"{script} is the script of another package: the shell runs it as engram",
    )
    script.write_text("#!/usr/bin/python3\nfrom engram_tables import main\nmain()\n")
    assert found(script=script) == []
    monkeypatch.setattr("engram_tables.clash", lambda: ("the package engram-cli replaced x", True))
    assert found() == [(True, "the package engram-cli replaced x")]
    monkeypatch.setattr(doctor_findings.shutil, "which", lambda name: None)
    assert findings(MEMORY, SHARED, PAIR, TORCH)[0].prevents_use


def test_reads_of_a_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_reads, "TEMPORARY_BYTES", 2**20)
    reads = measure_reads(tmp_path, seconds=0.01)
    assert reads.problem is None
    assert reads.file is None
    assert reads.reads_per_second is not None
    assert reads.reads_per_second > 0
    assert reads.one_thread_reads_per_second is not None
    assert os.listdir(tmp_path) == []


def test_reads_of_the_largest_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("small", 2**24), ("inner/large", 2**24 + 1)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.truncate(size)
    (tmp_path / "link").symlink_to(tmp_path / "inner/large")
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    assert measure_reads(tmp_path, seconds=0.01).file == str(tmp_path / "inner/large")
    assert measure_reads(tmp_path / "small", seconds=0.01).file == str(tmp_path / "small")
    monkeypatch.setattr(disk_reads, "_direct", lambda handle: None)
    reads = measure_reads(tmp_path, seconds=0.01)
    assert reads.cached
    assert reads.reads_per_second is not None


def test_nothing_is_written_where_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_reads, "free_bytes", lambda place: 600 * 2**20)
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    reads = measure_reads(tmp_path, seconds=0.01)
    assert reads.problem == "629,145,600 bytes are free, too few for a test file"
    assert reads.reads_per_second is None
    assert measure_reads(tmp_path, wanted=False).problem is None


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert measure_reads(tmp_path, seconds=0.01).problem == f"{tmp_path}: Permission denied"


@pytest.fixture
def a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs of 140 and 100 GB free."""
    monkeypatch.setattr(command, "read_gpus", lambda: PAIR)
    monkeypatch.setattr(command, "read_torch", lambda: TORCH)
    monkeypatch.setattr(command, "read_memory", lambda: MEMORY)
    monkeypatch.setattr(command, "read_shared_memory", lambda: SHARED)
    monkeypatch.setattr(doctor_findings.shutil, "which", lambda name: None)


def test_room_without_an_artifact(a_machine: None, tmp_path: Path) -> None:
    result = doctor(DoctorRequest(paths=(tmp_path,), disk=False))
    assert result.ok
    assert result.findings == ()
    assert result.artifacts == ()
    assert [(each.placement, each.free_bytes) for each in result.placements[:-1]] == [
        ("hbm", 140 * GB),
        ("shard=2", 200 * GB),
        ("host", 200 * GB),
        ("host,shared", 127 * GB),
    ]
    assert result.placements[-1].placement == "disk"


def test_what_holds_a_bundle(
    a_machine: None, tmp_path: Path, small_vocab: CompressedVocab, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(make_layout(small_vocab), "bfloat16", dim=33)
    path = make_bundle(tmp_path / "bundle", spec)
    rows = sum(spec.rows(layer) for layer in spec.layers)
    small = replace(SHARED, free_bytes=7200)
    monkeypatch.setattr(command, "read_shared_memory", lambda: small)
    (fit,) = doctor(DoctorRequest(paths=(path, tmp_path), disk=False)).artifacts
    assert (fit.rows, fit.row_bytes, fit.record_bytes, fit.dtype) == (rows, 66, 72, "bfloat16")
    by_name = {each.placement: each for each in fit.placements}
    assert by_name["hbm"].needed_bytes == rows * 66
    assert (by_name["hbm"].rows, by_name["hbm"].fits) == (rows, True)
    assert by_name["host"].needed_bytes == rows * 72
    assert (by_name["host,shared"].rows, by_name["host,shared"].fits) == (100, False)
    assert (by_name["disk"].where, by_name["disk"].fits) == ("its files", True)


def test_a_path_that_is_not_there(a_machine: None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        doctor(DoctorRequest(paths=(tmp_path / "typo",)))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="was not written by engram"):
        doctor(DoctorRequest(paths=(tmp_path / "notes.txt",), disk=False))
