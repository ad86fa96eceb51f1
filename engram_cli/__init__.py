"""Engram tables: compressed vocabularies, exact n-gram hashing, table stores and attachment.

The names below are the public Python API. They are imported on first use, so that importing the
package costs nothing. A function of a command takes one request and returns one result.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engram_cli.version import __version__ as __version__

if TYPE_CHECKING:
    from engram_cli.commands.attach.command import AttachResult as AttachResult
    from engram_cli.commands.attach.command import attach_checkpoint as attach_checkpoint
    from engram_cli.commands.build_table import BuildTableResult as BuildTableResult
    from engram_cli.commands.build_table import build_table as build_table
    from engram_cli.commands.compress_vocab import CompressVocabResult as CompressVocabResult
    from engram_cli.commands.compress_vocab import run_compress_vocab as run_compress_vocab
    from engram_cli.commands.convert.command import ConvertResult as ConvertResult
    from engram_cli.commands.convert.command import convert_table as convert_table
    from engram_cli.commands.convert.to import WriteResult as WriteResult
    from engram_cli.commands.convert.to import convert as convert
    from engram_cli.commands.demo.command import DemoResult as DemoResult
    from engram_cli.commands.demo.command import run_demo as run_demo
    from engram_cli.commands.diff.command import diff as diff
    from engram_cli.commands.diff.result import DiffResult as DiffResult
    from engram_cli.commands.doctor.command import doctor as doctor
    from engram_cli.commands.doctor.result import DoctorResult as DoctorResult
    from engram_cli.commands.evaluate.command import evaluate as evaluate
    from engram_cli.commands.evaluate.result import EvaluateResult as EvaluateResult
    from engram_cli.commands.geometry import Geometry as Geometry
    from engram_cli.commands.golden.command import GoldenResult as GoldenResult
    from engram_cli.commands.golden.command import golden as golden
    from engram_cli.commands.hash_stats import HashStatsResult as HashStatsResult
    from engram_cli.commands.hash_stats import hash_stats as hash_stats
    from engram_cli.commands.inspect.command import inspect as inspect
    from engram_cli.commands.inspect.result import InspectResult as InspectResult
    from engram_cli.commands.lookup.command import LookupResult as LookupResult
    from engram_cli.commands.lookup.command import lookup as lookup
    from engram_cli.commands.merge_stats import MergeStatsRequest as MergeStatsRequest
    from engram_cli.commands.merge_stats import MergeStatsResult as MergeStatsResult
    from engram_cli.commands.merge_stats import merge_stats as merge_stats
    from engram_cli.commands.patch.command import apply_patches as apply_patches
    from engram_cli.commands.patch.command import list_patches as list_patches
    from engram_cli.commands.patch.command import show_patch as show_patch
    from engram_cli.commands.patch.command import stack_patches as stack_patches
    from engram_cli.commands.patch.command import undo_patch as undo_patch
    from engram_cli.commands.patch.result import ApplyPatchResult as ApplyPatchResult
    from engram_cli.commands.patch.result import ListPatchesResult as ListPatchesResult
    from engram_cli.commands.patch.result import PatchInfo as PatchInfo
    from engram_cli.commands.patch.result import ShowPatchResult as ShowPatchResult
    from engram_cli.commands.patch.result import StackPatchesResult as StackPatchesResult
    from engram_cli.commands.patch.result import UndoPatchResult as UndoPatchResult
    from engram_cli.commands.patch_make.command import make_patch_of_facts as make_patch_of_facts
    from engram_cli.commands.patch_make.result import PatchMakeResult as PatchMakeResult
    from engram_cli.commands.plan.command import PlanResult as PlanResult
    from engram_cli.commands.plan.command import plan as plan
    from engram_cli.commands.probe import ProbeResult as ProbeResult
    from engram_cli.commands.probe import probe as probe
    from engram_cli.commands.report import ReportResult as ReportResult
    from engram_cli.commands.report import write_report as write_report
    from engram_cli.commands.requests.convert import ConvertRequest as ConvertRequest
    from engram_cli.commands.requests.corpus import CompressVocabRequest as CompressVocabRequest
    from engram_cli.commands.requests.corpus import FillRequest as FillRequest
    from engram_cli.commands.requests.corpus import HashStatsRequest as HashStatsRequest
    from engram_cli.commands.requests.diff import DiffRequest as DiffRequest
    from engram_cli.commands.requests.doctor import DoctorRequest as DoctorRequest
    from engram_cli.commands.requests.evaluation import EvaluateRequest as EvaluateRequest
    from engram_cli.commands.requests.explore import ExploreRequest as ExploreRequest
    from engram_cli.commands.requests.patch import ApplyPatchRequest as ApplyPatchRequest
    from engram_cli.commands.requests.patch import ListPatchesRequest as ListPatchesRequest
    from engram_cli.commands.requests.patch import ShowPatchRequest as ShowPatchRequest
    from engram_cli.commands.requests.patch import StackPatchesRequest as StackPatchesRequest
    from engram_cli.commands.requests.patch import UndoPatchRequest as UndoPatchRequest
    from engram_cli.commands.requests.patch_make import PatchMakeRequest as PatchMakeRequest
    from engram_cli.commands.requests.plan import Budget as Budget
    from engram_cli.commands.requests.plan import PlanRequest as PlanRequest
    from engram_cli.commands.requests.probe import ProbeRequest as ProbeRequest
    from engram_cli.commands.requests.reading import DemoRequest as DemoRequest
    from engram_cli.commands.requests.reading import GoldenRequest as GoldenRequest
    from engram_cli.commands.requests.reading import InspectRequest as InspectRequest
    from engram_cli.commands.requests.reading import LookupRequest as LookupRequest
    from engram_cli.commands.requests.reading import ReportRequest as ReportRequest
    from engram_cli.commands.requests.reading import TraceRequest as TraceRequest
    from engram_cli.commands.requests.reading import VerifyRequest as VerifyRequest
    from engram_cli.commands.requests.tables import AttachRequest as AttachRequest
    from engram_cli.commands.requests.tables import BuildTableRequest as BuildTableRequest
    from engram_cli.commands.requests.train import TrainRequest as TrainRequest
    from engram_cli.commands.requests.update import UpdateTableRequest as UpdateTableRequest
    from engram_cli.commands.requests.update_stats import UpdateStatsRequest as UpdateStatsRequest
    from engram_cli.commands.trace import TraceResult as TraceResult
    from engram_cli.commands.trace import trace_text as trace_text
    from engram_cli.commands.train.command import TrainResult as TrainResult
    from engram_cli.commands.train.command import train as train
    from engram_cli.commands.update.command import update_table as update_table
    from engram_cli.commands.update.result import UpdateTableResult as UpdateTableResult
    from engram_cli.commands.update_stats.command import UpdateStatsResult as UpdateStatsResult
    from engram_cli.commands.update_stats.command import update_stats as update_stats
    from engram_cli.commands.verify.command import VerifyResult as VerifyResult
    from engram_cli.commands.verify.command import verify as verify
    from engram_cli.commands.workspace import Workspace as Workspace
    from engram_cli.errors import ArtifactError as ArtifactError
    from engram_cli.errors import CheckFailed as CheckFailed
    from engram_cli.errors import CorpusError as CorpusError
    from engram_cli.errors import DependencyError as DependencyError
    from engram_cli.errors import EngineError as EngineError
    from engram_cli.errors import EngramError as EngramError
    from engram_cli.errors import IncompleteError as IncompleteError
    from engram_cli.errors import InputError as InputError
    from engram_cli.errors import LayoutError as LayoutError
    from engram_cli.errors import MismatchError as MismatchError
    from engram_cli.errors import OutputError as OutputError
    from engram_cli.errors import RuntimeAttachError as RuntimeAttachError
    from engram_cli.errors import SourceError as SourceError
    from engram_cli.errors import TokenIdError as TokenIdError
    from engram_cli.errors import UndecodableError as UndecodableError
    from engram_cli.errors import VocabularyError as VocabularyError
    from engram_cli.hashing.hasher import hash_tokens as hash_tokens
    from engram_cli.hashing.layout import HashLayout as HashLayout
    from engram_cli.hashing.schemes import hash_layout as hash_layout
    from engram_cli.patches.making import make_patch as make_patch
    from engram_cli.patches.making import stored_patch as stored_patch
    from engram_cli.patches.patch import LayerPatch as LayerPatch
    from engram_cli.patches.patch import Patch as Patch
    from engram_cli.patches.patch_file import read_patch as read_patch
    from engram_cli.patches.patch_file import write_patch as write_patch
    from engram_cli.progress import Progress as Progress
    from engram_cli.runtime.attach import attach as attach
    from engram_cli.runtime.attach import detach as detach
    from engram_cli.table.planning.placement import Hardware as Hardware
    from engram_cli.table.store import TableStore as TableStore
    from engram_cli.table.store import open_table as open_table
    from engram_cli.training.callback import EngramCallback as EngramCallback
    from engram_cli.training.collator import EngramCollator as EngramCollator
    from engram_cli.vocab.compress import CompressedVocab as CompressedVocab
    from engram_cli.vocab.compress import compress_vocab as compress_vocab
    from engram_cli.vocab.parquet import read_vocab as read_vocab
    from engram_cli.vocab.parquet import write_vocab as write_vocab

# The public names by the module, below `engram_cli`, that defines them.
_DEFINED_IN = {
    "commands.attach.command": "AttachResult attach_checkpoint",
    "commands.build_table": "BuildTableResult build_table",
    "commands.compress_vocab": "CompressVocabResult run_compress_vocab",
    "commands.convert.command": "ConvertResult convert_table",
    "commands.convert.to": "WriteResult convert",
    "commands.demo.command": "DemoResult run_demo",
    "commands.diff.command": "diff",
    "commands.diff.result": "DiffResult",
    "commands.doctor.command": "doctor",
    "commands.doctor.result": "DoctorResult",
    "commands.evaluate.command": "evaluate",
    "commands.evaluate.result": "EvaluateResult",
    "commands.geometry": "Geometry",
    "commands.golden.command": "GoldenResult golden",
    "commands.hash_stats": "HashStatsResult hash_stats",
    "commands.inspect.command": "inspect",
    "commands.inspect.result": "InspectResult",
    "commands.lookup.command": "LookupResult lookup",
    "commands.merge_stats": "MergeStatsRequest MergeStatsResult merge_stats",
    "commands.patch.command": "apply_patches list_patches show_patch stack_patches undo_patch",
    "commands.patch.result": (
        "ApplyPatchResult ListPatchesResult PatchInfo ShowPatchResult StackPatchesResult "
        "UndoPatchResult"
    ),
    "commands.patch_make.command": "make_patch_of_facts",
    "commands.patch_make.result": "PatchMakeResult",
    "commands.plan.command": "PlanResult plan",
    "commands.probe": "ProbeResult probe",
    "commands.report": "ReportResult write_report",
    "commands.requests.convert": "ConvertRequest",
    "commands.requests.corpus": "CompressVocabRequest FillRequest HashStatsRequest",
    "commands.requests.diff": "DiffRequest",
    "commands.requests.doctor": "DoctorRequest",
    "commands.requests.evaluation": "EvaluateRequest",
    "commands.requests.explore": "ExploreRequest",
    "commands.requests.patch": (
        "ApplyPatchRequest ListPatchesRequest ShowPatchRequest StackPatchesRequest UndoPatchRequest"
    ),
    "commands.requests.patch_make": "PatchMakeRequest",
    "commands.requests.plan": "Budget PlanRequest",
    "commands.requests.probe": "ProbeRequest",
    "commands.requests.reading": (
        "DemoRequest GoldenRequest InspectRequest LookupRequest ReportRequest TraceRequest "
        "VerifyRequest"
    ),
    "commands.requests.tables": "AttachRequest BuildTableRequest",
    "commands.requests.train": "TrainRequest",
    "commands.requests.update": "UpdateTableRequest",
    "commands.requests.update_stats": "UpdateStatsRequest",
    "commands.trace": "TraceResult trace_text",
    "commands.train.command": "TrainResult train",
    "commands.update.command": "update_table",
    "commands.update.result": "UpdateTableResult",
    "commands.update_stats.command": "UpdateStatsResult update_stats",
    "commands.verify.command": "VerifyResult verify",
    "commands.workspace": "Workspace",
    "errors": (
        "ArtifactError CheckFailed CorpusError DependencyError EngineError EngramError "
        "IncompleteError InputError LayoutError MismatchError OutputError RuntimeAttachError "
        "SourceError TokenIdError UndecodableError VocabularyError"
    ),
    "hashing.hasher": "hash_tokens",
    "hashing.layout": "HashLayout",
    "hashing.schemes": "hash_layout",
    "patches.making": "make_patch stored_patch",
    "patches.patch": "LayerPatch Patch",
    "patches.patch_file": "read_patch write_patch",
    "progress": "Progress",
    "runtime.attach": "attach detach",
    "table.planning.placement": "Hardware",
    "table.store": "TableStore open_table",
    "training.callback": "EngramCallback",
    "training.collator": "EngramCollator",
    "vocab.compress": "CompressedVocab compress_vocab",
    "vocab.parquet": "read_vocab write_vocab",
}
_HOMES = {
    name: f"engram_cli.{module}" for module, names in _DEFINED_IN.items() for name in names.split()
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'engram_cli' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
