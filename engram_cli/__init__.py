"""Engram tables: compressed vocabularies, exact n-gram hashing, table stores and attachment.

The names below are the public Python API. They are imported on first use, so that importing the
package costs nothing. A function of a command takes one request and returns one result.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engram_cli.version import __version__

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
    from engram_cli.commands.doctor.command import DoctorResult as DoctorResult
    from engram_cli.commands.doctor.command import doctor as doctor
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
    from engram_cli.commands.patch.command import ApplyPatchResult as ApplyPatchResult
    from engram_cli.commands.patch.command import ListPatchesResult as ListPatchesResult
    from engram_cli.commands.patch.command import PatchInfo as PatchInfo
    from engram_cli.commands.patch.command import ShowPatchResult as ShowPatchResult
    from engram_cli.commands.patch.command import StackPatchesResult as StackPatchesResult
    from engram_cli.commands.patch.command import UndoPatchResult as UndoPatchResult
    from engram_cli.commands.patch.command import apply_patches as apply_patches
    from engram_cli.commands.patch.command import list_patches as list_patches
    from engram_cli.commands.patch.command import show_patch as show_patch
    from engram_cli.commands.patch.command import stack_patches as stack_patches
    from engram_cli.commands.patch.command import undo_patch as undo_patch
    from engram_cli.commands.patch_make.command import make_patch_of_facts as make_patch_of_facts
    from engram_cli.commands.patch_make.result import PatchMakeResult as PatchMakeResult
    from engram_cli.commands.plan.command import PlanResult as PlanResult
    from engram_cli.commands.plan.command import plan as plan
    from engram_cli.commands.probe import ProbeResult as ProbeResult
    from engram_cli.commands.probe import probe as probe
    from engram_cli.commands.report import ReportResult as ReportResult
    from engram_cli.commands.report import write_report as write_report
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
    from engram_cli.commands.requests.tables import ConvertRequest as ConvertRequest
    from engram_cli.commands.requests.train import TrainRequest as TrainRequest
    from engram_cli.commands.requests.update import UpdateTableRequest as UpdateTableRequest
    from engram_cli.commands.requests.update_stats import UpdateStatsRequest as UpdateStatsRequest
    from engram_cli.commands.trace import TraceResult as TraceResult
    from engram_cli.commands.trace import trace_text as trace_text
    from engram_cli.commands.train.command import TrainResult as TrainResult
    from engram_cli.commands.train.command import train as train
    from engram_cli.commands.update.command import update_table as update_table
    from engram_cli.commands.update.result import UpdateTableResult as UpdateTableResult
    from engram_cli.commands.update_stats import UpdateStatsResult as UpdateStatsResult
    from engram_cli.commands.update_stats import update_stats as update_stats
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

_HOMES = {
    "ApplyPatchRequest": "engram_cli.commands.requests.patch",
    "UndoPatchRequest": "engram_cli.commands.requests.patch",
    "ListPatchesRequest": "engram_cli.commands.requests.patch",
    "StackPatchesRequest": "engram_cli.commands.requests.patch",
    "ShowPatchRequest": "engram_cli.commands.requests.patch",
    "ApplyPatchResult": "engram_cli.commands.patch.command",
    "UndoPatchResult": "engram_cli.commands.patch.command",
    "ListPatchesResult": "engram_cli.commands.patch.command",
    "StackPatchesResult": "engram_cli.commands.patch.command",
    "ShowPatchResult": "engram_cli.commands.patch.command",
    "PatchInfo": "engram_cli.commands.patch.command",
    "apply_patches": "engram_cli.commands.patch.command",
    "undo_patch": "engram_cli.commands.patch.command",
    "list_patches": "engram_cli.commands.patch.command",
    "stack_patches": "engram_cli.commands.patch.command",
    "show_patch": "engram_cli.commands.patch.command",
    "Patch": "engram_cli.patches.patch",
    "LayerPatch": "engram_cli.patches.patch",
    "read_patch": "engram_cli.patches.patch_file",
    "write_patch": "engram_cli.patches.patch_file",
    "make_patch": "engram_cli.patches.making",
    "stored_patch": "engram_cli.patches.making",
    "ArtifactError": "engram_cli.errors",
    "AttachRequest": "engram_cli.commands.requests.tables",
    "AttachResult": "engram_cli.commands.attach.command",
    "Budget": "engram_cli.commands.requests.plan",
    "BuildTableRequest": "engram_cli.commands.requests.tables",
    "BuildTableResult": "engram_cli.commands.build_table",
    "CheckFailed": "engram_cli.errors",
    "CompressVocabRequest": "engram_cli.commands.requests.corpus",
    "CompressVocabResult": "engram_cli.commands.compress_vocab",
    "CompressedVocab": "engram_cli.vocab.compress",
    "ConvertRequest": "engram_cli.commands.requests.tables",
    "ConvertResult": "engram_cli.commands.convert.command",
    "CorpusError": "engram_cli.errors",
    "DemoRequest": "engram_cli.commands.requests.reading",
    "DemoResult": "engram_cli.commands.demo.command",
    "DiffRequest": "engram_cli.commands.requests.diff",
    "DiffResult": "engram_cli.commands.diff.result",
    "DependencyError": "engram_cli.errors",
    "EngineError": "engram_cli.errors",
    "EngramCallback": "engram_cli.training.callback",
    "EngramCollator": "engram_cli.training.collator",
    "EngramError": "engram_cli.errors",
    "DoctorRequest": "engram_cli.commands.requests.doctor",
    "DoctorResult": "engram_cli.commands.doctor.command",
    "EvaluateRequest": "engram_cli.commands.requests.evaluation",
    "EvaluateResult": "engram_cli.commands.evaluate.result",
    "ExploreRequest": "engram_cli.commands.requests.explore",
    "FillRequest": "engram_cli.commands.requests.corpus",
    "Geometry": "engram_cli.commands.geometry",
    "GoldenRequest": "engram_cli.commands.requests.reading",
    "GoldenResult": "engram_cli.commands.golden.command",
    "Hardware": "engram_cli.table.planning.placement",
    "HashLayout": "engram_cli.hashing.layout",
    "HashStatsRequest": "engram_cli.commands.requests.corpus",
    "HashStatsResult": "engram_cli.commands.hash_stats",
    "IncompleteError": "engram_cli.errors",
    "InputError": "engram_cli.errors",
    "InspectRequest": "engram_cli.commands.requests.reading",
    "InspectResult": "engram_cli.commands.inspect.result",
    "LayoutError": "engram_cli.errors",
    "LookupRequest": "engram_cli.commands.requests.reading",
    "LookupResult": "engram_cli.commands.lookup.command",
    "MergeStatsRequest": "engram_cli.commands.merge_stats",
    "MergeStatsResult": "engram_cli.commands.merge_stats",
    "MismatchError": "engram_cli.errors",
    "OutputError": "engram_cli.errors",
    "PatchMakeRequest": "engram_cli.commands.requests.patch_make",
    "PatchMakeResult": "engram_cli.commands.patch_make.result",
    "PlanRequest": "engram_cli.commands.requests.plan",
    "PlanResult": "engram_cli.commands.plan.command",
    "ProbeRequest": "engram_cli.commands.requests.probe",
    "ProbeResult": "engram_cli.commands.probe",
    "Progress": "engram_cli.progress",
    "ReportRequest": "engram_cli.commands.requests.reading",
    "ReportResult": "engram_cli.commands.report",
    "RuntimeAttachError": "engram_cli.errors",
    "SourceError": "engram_cli.errors",
    "TableStore": "engram_cli.table.store",
    "TokenIdError": "engram_cli.errors",
    "TraceRequest": "engram_cli.commands.requests.reading",
    "TraceResult": "engram_cli.commands.trace",
    "TrainRequest": "engram_cli.commands.requests.train",
    "TrainResult": "engram_cli.commands.train.command",
    "UndecodableError": "engram_cli.errors",
    "UpdateStatsRequest": "engram_cli.commands.requests.update_stats",
    "UpdateStatsResult": "engram_cli.commands.update_stats",
    "UpdateTableRequest": "engram_cli.commands.requests.update",
    "UpdateTableResult": "engram_cli.commands.update.result",
    "VerifyRequest": "engram_cli.commands.requests.reading",
    "VerifyResult": "engram_cli.commands.verify.command",
    "VocabularyError": "engram_cli.errors",
    "Workspace": "engram_cli.commands.workspace",
    "WriteResult": "engram_cli.commands.convert.to",
    "attach": "engram_cli.runtime.attach",
    "attach_checkpoint": "engram_cli.commands.attach.command",
    "build_table": "engram_cli.commands.build_table",
    "compress_vocab": "engram_cli.vocab.compress",
    "convert": "engram_cli.commands.convert.to",
    "convert_table": "engram_cli.commands.convert.command",
    "detach": "engram_cli.runtime.attach",
    "diff": "engram_cli.commands.diff.command",
    "doctor": "engram_cli.commands.doctor.command",
    "evaluate": "engram_cli.commands.evaluate.command",
    "golden": "engram_cli.commands.golden.command",
    "hash_layout": "engram_cli.hashing.schemes",
    "hash_stats": "engram_cli.commands.hash_stats",
    "hash_tokens": "engram_cli.hashing.hasher",
    "inspect": "engram_cli.commands.inspect.command",
    "lookup": "engram_cli.commands.lookup.command",
    "make_patch_of_facts": "engram_cli.commands.patch_make.command",
    "merge_stats": "engram_cli.commands.merge_stats",
    "open_table": "engram_cli.table.store",
    "plan": "engram_cli.commands.plan.command",
    "probe": "engram_cli.commands.probe",
    "read_vocab": "engram_cli.vocab.parquet",
    "run_compress_vocab": "engram_cli.commands.compress_vocab",
    "run_demo": "engram_cli.commands.demo.command",
    "trace_text": "engram_cli.commands.trace",
    "train": "engram_cli.commands.train.command",
    "update_stats": "engram_cli.commands.update_stats",
    "update_table": "engram_cli.commands.update.command",
    "verify": "engram_cli.commands.verify.command",
    "write_report": "engram_cli.commands.report",
    "write_vocab": "engram_cli.vocab.parquet",
}

__all__ = [
    "ApplyPatchRequest",
    "ApplyPatchResult",
    "ArtifactError",
    "AttachRequest",
    "AttachResult",
    "Budget",
    "BuildTableRequest",
    "BuildTableResult",
    "CheckFailed",
    "CompressVocabRequest",
    "CompressVocabResult",
    "CompressedVocab",
    "ConvertRequest",
    "ConvertResult",
    "CorpusError",
    "DemoRequest",
    "DemoResult",
    "DependencyError",
    "DiffRequest",
    "DiffResult",
    "DoctorRequest",
    "DoctorResult",
    "EngineError",
    "EngramCallback",
    "EngramCollator",
    "EngramError",
    "EvaluateRequest",
    "EvaluateResult",
    "ExploreRequest",
    "FillRequest",
    "Geometry",
    "GoldenRequest",
    "GoldenResult",
    "Hardware",
    "HashLayout",
    "HashStatsRequest",
    "HashStatsResult",
    "IncompleteError",
    "InputError",
    "InspectRequest",
    "InspectResult",
    "LayerPatch",
    "LayoutError",
    "ListPatchesRequest",
    "ListPatchesResult",
    "LookupRequest",
    "LookupResult",
    "MergeStatsRequest",
    "MergeStatsResult",
    "MismatchError",
    "OutputError",
    "Patch",
    "PatchInfo",
    "PatchMakeRequest",
    "PatchMakeResult",
    "PlanRequest",
    "PlanResult",
    "ProbeRequest",
    "ProbeResult",
    "Progress",
    "ReportRequest",
    "ReportResult",
    "RuntimeAttachError",
    "ShowPatchRequest",
    "ShowPatchResult",
    "SourceError",
    "StackPatchesRequest",
    "StackPatchesResult",
    "TableStore",
    "TokenIdError",
    "TraceRequest",
    "TraceResult",
    "TrainRequest",
    "TrainResult",
    "UndecodableError",
    "UndoPatchRequest",
    "UndoPatchResult",
    "UpdateStatsRequest",
    "UpdateStatsResult",
    "UpdateTableRequest",
    "UpdateTableResult",
    "VerifyRequest",
    "VerifyResult",
    "VocabularyError",
    "Workspace",
    "WriteResult",
    "__version__",
    "apply_patches",
    "attach",
    "attach_checkpoint",
    "build_table",
    "compress_vocab",
    "convert",
    "convert_table",
    "detach",
    "diff",
    "doctor",
    "evaluate",
    "golden",
    "hash_layout",
    "hash_stats",
    "hash_tokens",
    "inspect",
    "list_patches",
    "lookup",
    "make_patch",
    "make_patch_of_facts",
    "merge_stats",
    "open_table",
    "plan",
    "probe",
    "read_patch",
    "read_vocab",
    "run_compress_vocab",
    "run_demo",
    "show_patch",
    "stack_patches",
    "stored_patch",
    "trace_text",
    "train",
    "undo_patch",
    "update_stats",
    "update_table",
    "verify",
    "write_patch",
    "write_report",
    "write_vocab",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'engram_cli' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
