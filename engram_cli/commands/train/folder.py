"""The folder of a training run: what was asked, what was decided on the way, and the result."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from engram_cli.commands.requests.train import TrainRequest
from engram_cli.commands.workspace import WORK, Workspace
from engram_cli.errors import ArtifactError, OutputError
from engram_cli.files import address_of, canonical_json, inner_file, output_errors, read_json
from engram_cli.table.lock import build_lock
from engram_cli.training.results import Outcome
from engram_cli.typed_json import as_json, read_json_as

MARK, FORMAT = "engram-train.json", "engram-train-1"
# What a run may be resumed with in another way: it changes where and how fast, not what.
_FREE = frozenset(
    {
        "out",
        "dry_run",
        "folder",
        "revision",
        "micro_batch",
        "gradient_checkpointing",
        "device",
        "encoder",
        "placement",
        "verify",
    }
)
_ARGUMENTS = {"checkpoint": "checkpoint", "sources": "training text"}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder `path` of a run: `work` holds what it makes on its way, `checkpoints` the rest."""

    path: Path

    @property
    def work(self) -> Workspace:
        """Vocabulary, statistics, table, first bundle and packed texts."""
        return Workspace(self.path / WORK)

    @property
    def bundle(self) -> Path:
        """The trained bundle."""
        return self.path / "engram"

    @property
    def adapter(self) -> Path:
        """The trained LoRA adapter."""
        return self.path / "lora"

    @property
    def model(self) -> Path:
        """The trained model, of a run that trains all of it."""
        return self.path / "model"

    def checkpoints(self, name: str) -> Path:
        """Where the Trainer of one part of the run saves its checkpoints."""
        return self.path / "checkpoints" / name

    @property
    def is_begun(self) -> bool:
        """Whether a run was started here."""
        return os.path.lexists(self.path / MARK)

    def check(self, asked: Mapping[str, Any]) -> None:
        """Raise OutputError where a run that is asked for this may not begin or continue here."""
        address = address_of(self.path)
        if address is not None or self.path.is_symlink():
            raise OutputError(
                f"{self.path} is {'an address' if address else 'a symbolic link'}",
                "name a folder on this machine with --out",
            )
        if self.is_begun:
            self._check_same(asked)
            return
        with output_errors(self.path):
            if os.path.lexists(self.path) and (not self.path.is_dir() or any(self.path.iterdir())):
                raise OutputError(
                    f"{self.path} exists and was not made by engram train",
                    "name another folder with --out",
                )
        parent = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise OutputError(
                f"{self.path} cannot be made: {parent} is not a folder that you may write to",
                "name another folder with --out",
            )

    def open(self, asked: Mapping[str, Any]) -> None:
        """Make the folder, or take one of a run that was asked the same. Raises OutputError."""
        self.check(asked)
        with output_errors(self.path):
            if not self.is_begun:
                self.path.mkdir(parents=True, exist_ok=True)
                self._write({"format": FORMAT, "asked": dict(asked), "steps": {}, "result": None})
            self.work.folder.mkdir(exist_ok=True)
        said = self._read()
        if said["asked"] != asked:
            self._write({**said, "asked": dict(asked)})

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from running here for a block. Raises OutputError if one does."""
        return build_lock(self.work.folder, self.path)

    def _check_same(self, asked: Mapping[str, Any]) -> None:
        said = self._read()
        begun = said["asked"]
        changed = sorted(name for name in asked if begun.get(name) != asked[name])
        if changed == ["held_out"] and not said["steps"]:  # it could not be read, for example
            return
        if changed:
            named = [
                each for name in changed for each in _named(name, begun.get(name), asked[name])
            ]
            named.sort(key=lambda each: each.startswith("--"))  # arguments first
            finished = said.get("result") is not None
            what, gives = (
                ("a finished run", "show its result") if finished else ("a run", "resume it")
            )
            raise OutputError(
                f"{self.path} is {what} with another {', '.join(named)}",
                f"give the same command to {gives}, or name another folder with --out",
            )

    def steps(self, name: str) -> int | None:
        """Return how many steps were decided for a part of the run, None before that."""
        found = self._read()["steps"].get(name)
        return found if type(found) is int and found > 0 else None

    def note_steps(self, name: str, steps: int) -> None:
        """Note how many steps a part of the run takes."""
        said = self._read()
        self._write({**said, "steps": {**said["steps"], name: steps}})

    @property
    def outcome(self) -> Outcome | None:
        """The result of a finished run. Raises ArtifactError for a damaged one."""
        found = self._read().get("result")
        if found is None:
            return None
        try:
            return read_json_as(Outcome, found, f"{self.path / MARK}: result")
        except ValueError as error:
            raise self._damaged(str(error)) from None

    def finish(self, outcome: Outcome) -> None:
        """Note the result: the run is over."""
        self._write({**self._read(), "result": as_json(outcome)})

    def _read(self) -> dict[str, Any]:
        said = read_json(self.path / MARK, "a training run")
        if said.get("format") != FORMAT:
            raise self._damaged("it is of another version")
        if not all(isinstance(said.get(name), dict) for name in ("asked", "steps")):
            raise self._damaged("it does not say what was asked")
        return said

    def _write(self, said: Mapping[str, Any]) -> None:
        with inner_file(self.path / MARK) as part:
            part.write_bytes(canonical_json(said))

    def _damaged(self, why: str) -> ArtifactError:
        return ArtifactError(f"{self.path / MARK}: {why}", "name another folder with --out")


def decisive(request: TrainRequest, **resolved: Any) -> dict[str, Any]:
    """Return what decides the result of a run, as plain JSON; `resolved` replaces choices."""
    asked = {each.name: getattr(request, each.name) for each in fields(request)} | resolved
    return {name: _plain(value) for name, value in asked.items() if name not in _FREE}


def _named(name: str, one: Any, other: Any) -> list[str]:
    """Return the options that differ, as they are called on the command line."""
    if isinstance(one, dict) and isinstance(other, dict):  # a group of options
        return [f"--{each.replace('_', '-')}" for each in other if one.get(each) != other[each]]
    return [_ARGUMENTS.get(name) or f"--{name.replace('_', '-')}"]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.resolve())
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value
