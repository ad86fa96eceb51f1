"""Verifying a table: every chunk read again and compared with the manifest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from engram_cli.errors import ArtifactError
from engram_cli.files import local_path
from engram_cli.progress import SILENT, Progress
from engram_cli.table.attributes import Description, group_problem, read_description
from engram_cli.table.checksum import file_checksum
from engram_cli.table.store import bound_layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was read, and a line for each thing that is wrong."""

    path: Path
    files: int
    stored_bytes: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify_table(
    path: Path | str, *, threads: int = 1, progress: Progress = SILENT
) -> Verification:
    """Recompute every checksum of the table at `path`, and its vocabulary's digest.

    Raises what `open_table` raises when the attributes themselves are not to be trusted.
    """
    about = read_description(local_path(path))
    total = sum(size for size, _ in about.files.values())
    progress.start("verify", total, "bytes")
    problems = _group_problems(about)
    with ThreadPoolExecutor(threads) as pool:
        names = sorted(about.files)
        for name, problem in zip(names, pool.map(lambda n: _check(about, n), names), strict=True):
            progress.advance(about.files[name][0])
            if problem is not None:
                problems.append(f"{name}: {problem}")
    if not problems:
        try:
            bound_layout(about)
        except ArtifactError as error:
            problems.append(error.message)
    return Verification(
        path=about.path, files=len(about.files), stored_bytes=total, problems=tuple(problems)
    )


def require_sound(
    path: Path | str, hint: str, *, threads: int = 1, progress: Progress = SILENT
) -> None:
    """Raises ArtifactError, which names the first problem, when checksums of a table do not hold.

    What is copied out of a table gets checksums of its own, which would vouch for the damage.
    """
    problems = verify_table(path, threads=threads, progress=progress).problems
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ArtifactError(f"{path} is damaged: {problems[0]}{more}", hint)


def _group_problems(about: Description) -> list[str]:
    """What is wrong with the metadata of the store and of the groups that its arrays lie in."""
    inner = {name.rpartition("/")[0] for name in about.arrays} - {""}
    found = [group_problem(about.path, root=True)]
    found += [group_problem(about.path / name) for name in sorted(inner)]
    return [problem for problem in found if problem is not None]


def _check(about: Description, name: str) -> str | None:
    size, checksum = about.files[name]
    file = about.path / name
    try:
        found = file.stat().st_size
        if found != size:
            return f"has {found} bytes, the manifest says {size}"
        actual = file_checksum(file)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if actual != checksum:
        return f"its bytes have changed: checksum {actual}, the manifest says {checksum}"
    return None
