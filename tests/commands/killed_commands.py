"""SIGKILL at chosen moments of every command, with and without --force; by hand, it prints JSON.

    PYTHONPATH=tests python tests/commands/killed_commands.py FOLDER [MOMENTS] [COMMAND ...]

A moment is a step that changes the disk below the folder, a flush, or a line of the modules that
create, exchange and remove: an undisturbed run counts them, and the kills are spread over them.
After each kill the old or the new artifact (or, without --force, none or the new one) has the
name. Then the same command runs again, and everything in the folder has the bytes of a run that
nobody disturbed, with nothing left over.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from commands.jobs import JOBS, Job, make_base

import engram_cli
from engram_cli.errors import OutputError

STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}
TRACED = {
    str(Path(engram_cli.__file__).parent / name)
    for name in ("files.py", "outputs.py", "temporary.py")
} | {
    str(Path(engram_cli.__file__).parent / name)
    for name in (
        "formats/row_files.py",
        "formats/row_writer.py",
        "table/places.py",
        "table/lock.py",
    )
}


def main(folder: Path, moments: int, wanted: list[str]) -> None:
    """Kill all commands, or the wanted ones, and print what was found."""
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base"
    in_child(lambda: make_base(base))
    if not wanted or "save_engram" in wanted:
        import tiny_models  # noqa: F401  torch: ten seconds, once instead of in every child
    found = {}
    for name, job in JOBS.items():
        for force in (False, True):
            if wanted and name not in wanted:
                continue
            begin = time.perf_counter()
            shown = killed(base, folder / "work", job, force, moments)
            shown["seconds"] = round(time.perf_counter() - begin)
            found[name + (" --force" if force else "")] = shown
            print(name, force, shown, file=sys.stderr)
    print(json.dumps(found))


def killed(base: Path, work: Path, job: Job, force: bool, moments: int) -> dict[str, Any]:
    """Kill a command at so many moments; how often each state was found at its output."""

    def fresh() -> None:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(base, work)

    fresh()
    old = None
    if force:
        in_child(lambda: job.before(work, False))
        old = contents(work, job.out)
        kept = work.with_name("kept")
        shutil.rmtree(kept, ignore_errors=True)
        work.rename(kept)
        shutil.copytree(kept, work)
    total = steps(job, work, force)
    whole, new = contents(work), contents(work, job.out)
    assert new
    assert new != old
    states: Counter[str] = Counter()
    # Half of them over all, half over the last quarter, where things are put in their places.
    half = moments // 2
    chosen = {1 + i * (total - 1) // half for i in range(half)}
    chosen |= {total - i * total // 4 // (moments - half) for i in range(moments - half)}
    for moment in sorted(chosen):
        shutil.rmtree(work)
        shutil.copytree(work.with_name("kept") if force else base, work)
        died = in_child(lambda at=moment: killing(job, work, force, at))
        states[state(contents(work, job.out), old, new)] += 1
        again = in_child(lambda: job.run(work, force), may_exist=not force)
        found = contents(work)
        if found != whole:
            raise SystemExit(
                f"{job.out}, moment {moment} of {total} (died: {died}, then {again}): other files "
                f"{sorted(found.keys() ^ whole.keys())}, other bytes "
                f"{sorted(n for n in found.keys() & whole.keys() if found[n] != whole[n])}"
            )
    return {"steps": total, "moments": len(chosen), "states": dict(states)}


def state(found: dict[str, Any], old: dict[str, Any] | None, new: dict[str, Any]) -> str:
    """What is at the output. A journal may still lie in a table that was just put in place."""
    plain = {name: value for name, value in found.items() if not name.endswith("/build.jsonl")}
    if plain == new:
        return "new"
    if old is None and not found:
        return "none"
    if old is not None and found == old:
        return "old"
    raise SystemExit(f"neither old nor new: {sorted(found)}")


def contents(folder: Path, name: str = "") -> dict[str, bytes | None]:
    """Everything in a folder, or of one name in it: bytes of files, None for folders."""
    start = folder / name
    places = [start, *start.rglob("*")] if start.is_dir() else [start]
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in places
        if path.exists()
    }


def steps(job: Job, work: Path, force: bool) -> int:
    """Run a command to its end and count its moments."""
    told = work.with_name("steps")

    def run() -> None:
        counted = watch(work, None)
        job.run(work, force)
        sys.settrace(None)
        told.write_text(str(counted[0]))

    in_child(run)
    return int(told.read_text())


def killing(job: Job, work: Path, force: bool, moment: int) -> None:
    """Run a command that kills itself at a moment."""
    watch(work, moment)
    job.run(work, force)


def watch(work: Path, moment: int | None) -> list[int]:
    """Count moments from here on, and send SIGKILL to this process at one of them."""
    counted, fsync = [0], os.fsync

    def tick() -> None:
        counted[0] += 1
        if counted[0] == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: Any) -> None:
        if event not in STEPS or not str(arguments[0]).startswith(str(work)):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        tick()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            tick()
        return trace

    def counted_fsync(handle: int) -> None:
        tick()
        fsync(handle)

    os.fsync = counted_fsync
    sys.addaudithook(hook)
    sys.settrace(trace)
    return counted


def in_child(run: Callable[[], object], *, may_exist: bool = False) -> str:
    """Run in a child, so that this process stays without threads; how it ended."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            run()
        except OutputError as error:
            code = 3 if may_exist and "already exists" in error.message else 1
            if code == 1:
                print(repr(error), file=sys.stderr)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            code = 1
        os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return "killed"
    if os.WEXITSTATUS(status) not in (0, 3):
        raise SystemExit("a command failed")
    return "refused" if os.WEXITSTATUS(status) else "done"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 60, sys.argv[3:])
