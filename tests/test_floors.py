"""The floor plan of the package: imports go down only, heavy libraries stay with their owners."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "opusclip_mlops"

FLOORS = [
    {"errors", "redaction", "slots", "lean_mlflow", "amounts", "object_storage", "model_hooks"}
    | {"ranks", "manifest", "new_store"},
    {"passports", "values", "setting_values", "confusion_counts"}
    | {"trace_events"}
    | {"downsampling", "page_text", "unread_output"},
    {
        "config",
        "records",
        "folder",
        "metadata",
        "pixels",
        "provenance",
        "wandb_log",
        "targets",
        "decisions",
    }
    | {
        "tensors",
        "written",
        "weights",
        "optical_flow",
        "decoding",
        "clip_files",
        "samples",
        "histograms",
        "untouched",
    }
    | {"page_charts", "page_document", "page_media"}
    | {"shards", "unfinished"},
    {"animation", "encoding", "inspecting", "repackaging", "intervals"}
    | {"sharded_state", "rank_generators"}
    | {"loop_parts", "operation_sums"}
    | {"reductions", "open_points", "merging_gaps"}
    | {"webhooks"},
    {"journal", "checkpoints", "video", "performance", "environment", "waiting"}
    | {"accounting", "backlog", "faults", "launch", "naming", "selection", "timing"}
    | {"bottlenecks", "rank_merging"}
    | {
        "line_names",
        "points",
        "words",
        "references",
        "mirror_work",
        "mirror_state",
        "layout",
        "refusals",
    }
    | {"pictures", "repeats", "event_files", "policy", "retention", "chain", "generations"}
    | {"verdicts", "panels", "origins", "staging", "temporal", "drift", "significance"},
    {"run_families", "merging_log", "gathering"}
    | {"noticeboard", "staged_training", "consolidating"}
    | {"mlflow_requests", "insight_documents", "operations", "exits"}
    | {"torch_traces", "shown_files"}
    | {"dead_units", "model_graph"}
    | {"media", "metrics", "keeping", "sessions", "flight", "system_metrics", "wandb_layout"}
    | {"insight_views"}
    | {"curves", "contrasts"}
    | {"events", "watermarks", "tables", "listing", "mirror_processes", "arrivals"}
    | {"smoke", "smoke_worker", "version_page"}
    | {"patience", "fetching", "asking", "wall_page", "begun_uploads", "blind_votes"},
    {"table_cells", "loop_hooks", "posting", "stopping", "rendezvous", "joint_loads"}
    | {"vain_waiting", "life_signs", "shares_elsewhere", "unrecorded"}
    | {"attendance", "joint_notices"}
    | {"mirror_names", "rewinding"}
    | {"wandb_artifacts"},
    {"dashboards", "efficiency"}
    | {"insight_events", "projector", "insight_charts", "event_names"}
    | {"rows_before"}
    | {"watched_model", "rank_share"}
    | {"joint_saves", "putting_back"}
    | {"panel_steps", "wall_clips", "wall_measures", "named_runs", "frame_sources", "evaluations"}
    | {"blind_results", "blind_page", "blind_server"}
    | {"deaths", "meeting"}
    | {"insight_uploads", "insight_reading"},
    {
        "crash_report",
        "loop_clock",
        "scoring",
        "scored_runs",
        "walls",
        "accounts",
        "films",
        "sources",
        "uploads",
        "checkpoint_uploads",
        "passport_files",
        "wandb_client",
        "event_log",
        "run_history",
        "artifacts",
        "versions",
        "version_files",
        "loading",
        "pruning",
        "ledger",
        "standing",
        "registry_rows",
    },
    {"contents", "settling", "touches", "wall_shipping", "wall_across"}
    | {"rank_relay", "owner_watch"}
    | {"bottleneck_report", "alerts", "metric_rows"},
    {"sinks", "holdings", "gates", "runs", "watching", "lookout", "comparing"}
    | {"compare_words"}
    | {"chronicle", "deciding"}
    | {"blind_runs"},
    {"delivery", "differences", "mirror_writer", "signatures", "candidates", "promotion"}
    | {"blind_voting"}
    | {"trial_values"}
    | {"material", "guarded", "announcing", "watchable"}
    | {"compare_charts", "compare_samples"},
    {"mirror_load"} | {"compare_page"} | {"held_folders", "joining", "parting"},
    {"shipper", "registry", "session", "mirroring", "gated"},
    {"replay", "mirror_worker", "saving", "sampling", "insights"},
    {"profiling", "resuming"},
    {"tracker", "verifying", "server", "run_status", "descent", "open_sweeps"},
    {"sweeps"} | {"operating"},
    {"projects", "doctor", "monitoring"} | {"reports"},
    {"server_console", "doctor_console", "webhooks_console"}
    | {"console", "mirror_console", "registry_console", "samples_console", "packing"}
    | {"scoring_console"}
    | {"lineage_console", "ab_console"}
    | {"compare_console"}
    | {"alerts_console"}
    | {"launching"},
    {"registry_cli", "scoring_cli", "samples_cli"}
    | {"server_cli", "doctor_cli", "webhooks_cli", "ab_cli"}
    | {"profiling_cli", "alerts_cli"}
    | {"compare_cli"}
    | {"report_cli"}
    | {"launch_cli"}
    | {"sweep_cli"},
    {"cli", "__main__"},
]
FREE = {
    "alerts",
    "launching",
    "reports",
    "projects",
    "server",
    "metrics",
    "doctor",
    "monitoring",
    "significance",
    "sweeps",
}  # shelves whose files may import each other
ROOF = len(FLOORS)  # the root package: it exports from below, so nobody imports from it

OWNERS = {
    "mlflow": {
        "alerts.past",
        "reports",
        "posting",
        "environment",
        "gated",
        "projects",
        "artifacts",
        "asking",
        "bottleneck_report",
        "candidates",
        "chronicle",
        "comparing",
        "contents",
        "fetching",
        "run_history",
        "ledger",
        "listing",
        "lookout",
        "mirror_worker",
        "mirroring",
        "patience",
        "promotion",
        "refusals",
        "pruning",
        "registry",
        "registry_cli",
        "registry_rows",
        "packing",
        "runs",
        "server",
        "settling",
        "sinks.mlflow",
        "sinks.relay",
        "rank_relay",
        "life_signs",
        "owner_watch",
        "smoke_worker",
        "standing",
        "version_files",
        "versions",
        "accounts",
        "descent",
        "material",
        "uploads",
        "insight_uploads",
        "insight_reading",
        "mlflow_requests",
        "begun_uploads",
        "checkpoint_uploads",
        "passport_files",
        "walls",
        "wall_clips",
        "wall_shipping",
        "wall_across",
        "panel_steps",
        "named_runs",
        "blind_runs",
        "scored_runs",
        "guarded",
        "announcing",
        "doctor",
        "monitoring",
        "launching",
        "resuming",
        "watchable",
        "run_families",
        "sweeps.trial_runs",
        "sweeps.results",
    },
    "torch": {"checkpoints", "metrics", "performance", "projects", "scoring", "tensors"}
    | {"consolidating", "noticeboard", "rank_generators", "sharded_state", "shards"}
    | {"dead_units", "histograms", "model_graph", "untouched", "watched_model"}
    | {"frame_sources", "torch_traces"}
    | {"launching.agent", "rendezvous"},
    "torchmetrics": {"metrics", "scoring"},
    "wandb": {"holdings.wandb", "sinks.wandb", "wandb_client", "wandb_log", "insight_charts"}
    | {"wandb_artifacts", "sweeps.wandb_engine", "sweeps.wandb_agent"},
    "tensorboard": {"events", "insight_events", "projector"},
    "av": {"clip_files", "decoding", "encoding", "inspecting", "repackaging"},
    "PIL": {"animation", "pictures", "insight_charts", "shown_files"},
}
LIGHT = ["opusclip_mlops", *(f"opusclip_mlops.{name}" for name in ("cli", "shipper", "tracker"))]
HEAVY = [*OWNERS, "numpy", "boto3", "sqlalchemy", "pandas"]


@functools.cache
def modules() -> tuple[str, ...]:
    """Every module below the package, by its name inside it: `tracker`, `sinks.mlflow`."""
    paths = (path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py")))
    return tuple(module_name(path) for path in paths if path != Path("__init__.py"))


def module_name(path: Path) -> str:
    """`sinks` for sinks/__init__.py, `sinks.mlflow` for sinks/mlflow.py."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source(module: str) -> Path:
    """The file a module is written in."""
    file = PACKAGE.joinpath(*module.split("."))
    return file / "__init__.py" if file.is_dir() else file.with_suffix(".py")


def floor(module: str) -> int:
    """The number of a module's floor; the root package stands above all."""
    shelf = module.split(".")[0]
    return next((number for number, names in enumerate(FLOORS) if shelf in names), ROOF)


def imported(module: str, *, typing_only: bool = True) -> Iterator[str]:
    """Full names of what a module imports, at its top and inside its functions."""
    full_name = f"opusclip_mlops.{module}"
    package = full_name if source(module).name == "__init__.py" else full_name.rpartition(".")[0]
    tree = ast.parse(source(module).read_text())
    skipped = set() if typing_only else set(typing_blocks(tree))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def typing_blocks(tree: ast.Module) -> Iterator[ast.AST]:
    """What stands under `if TYPE_CHECKING:` and costs nothing when the program runs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for statement in node.body:
                yield from ast.walk(statement)


def inside(module: str) -> set[str]:
    """The modules of the package that a module imports; "" is the root package itself."""
    known = set(modules())
    names = (name.split(".")[1:] for name in imported(module) if is_ours(name))
    return {owner_of(parts, known) for parts in names if parts != ["__version__"]}


def is_ours(name: str) -> bool:
    """Whether a full name lies in the package."""
    return name.split(".")[0] == "opusclip_mlops"


def owner_of(parts: list[str], known: set[str]) -> str:
    """The module in which an imported name lives: `records.Batch` lives in `records`."""
    while parts and ".".join(parts) not in known:
        parts = parts[:-1]
    return ".".join(parts)


def may_import(module: str, other: str) -> bool:
    """Down always; on one shelf as `FREE` says, elsewhere `__init__` only."""
    if floor(other) != floor(module):
        return floor(other) < floor(module)
    shelf, _, name = module.partition(".")
    other_shelf, _, other_name = other.partition(".")
    same_shelf = shelf == other_shelf
    return same_shelf and (shelf in FREE or not name or not other_name)


@pytest.mark.parametrize("module", modules())
def test_every_module_is_on_a_floor(module: str) -> None:
    """A new module is put into the table above before it is used."""
    assert floor(module) < ROOF


@pytest.mark.parametrize("module", modules())
def test_imports_go_down_only(module: str) -> None:
    """No module imports from its own floor or one above, not even inside a function."""
    assert [other for other in sorted(inside(module)) if not may_import(module, other)] == []


@pytest.mark.parametrize("module", modules())
def test_heavy_libraries_are_imported_by_their_owners_only(module: str) -> None:
    """MLflow, torch, W&B, TensorBoard, PyAV and Pillow each have files of their own."""
    used = {name.split(".")[0] for name in imported(module, typing_only=False)}
    owned = {module, module.split(".")[0]}
    assert [name for name in sorted(used & OWNERS.keys()) if not owned & OWNERS[name]] == []


@pytest.mark.parametrize("module", LIGHT)
def test_the_trainer_and_the_supervisor_import_nothing_heavy(module: str) -> None:
    """Importing the package, the tracker, the shipper or the command loads no backend."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sorted(set(HEAVY) & set(done.stdout.split())) == []


@pytest.mark.parametrize("module", modules())
def test_files_are_short(module: str) -> None:
    """A file that reaches 400 lines is two files."""
    assert len(source(module).read_text().splitlines()) < 400


def test_one_place_catches_everything() -> None:
    """Only the loop round a sink goes on after any error at all; all else names what it expects."""
    places = [
        f"{module}:{node.lineno}"
        for module in modules()
        for node in ast.walk(ast.parse(source(module).read_text()))
        if isinstance(node, ast.ExceptHandler) and catches_everything(node)
    ]
    assert len(places) == 1, places


def catches_everything(handler: ast.ExceptHandler) -> bool:
    """Whether a handler takes any error: `except:` or `except Exception:`."""
    named = ast.walk(handler.type) if handler.type else []
    return handler.type is None or any(
        isinstance(node, ast.Name) and node.id == "Exception" for node in named
    )
