"""Imports point strictly down, and each framework has its home."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "scorefield"
FILES = sorted(SOURCE.rglob("*.py"))

LEVELS = {
    0: ["tensors", "noise", "errors", "recipe", "levels", "torchvision_ops"],
    1: ["archives", "schedules", "divergence", "ode", "nets", "data"],
    2: ["prediction", "times", "grids", "jacobian", "metrics", "techniques", "operators", "augmentation"],
    3: ["models"],
    4: ["checkpoints", "kernels", "constraints", "probability_flow", "fokker_planck", "tweedie", "variational"],
    5: ["samplers", "objectives", "dequantisation", "variational_chain"],
    6: ["training", "records", "editing"],
    7: ["cli"],
}
LEVEL = {name: level for level, names in LEVELS.items() for name in names}

# Within a level only these may be asked for by their neighbours.
SIDEWAYS = {("training", "records")}

HOMES = {
    "pytorch_lightning": {"training", "cli"},
    "lightning": set(),
    "lightning_fabric": {"training", "cli"},
    "hydra": {"cli"},
    "omegaconf": {"cli"},
    "wandb": {"training"},
    "wandb_workspaces": {"training"},
    "torchmetrics": {"metrics", "training"},
    "torch_fidelity": {"metrics"},
    "arviz_stats": {"metrics"},
    "matplotlib": {"records"},
    "PIL": {"records", "training", "data"},
    "torchvision": {"data", "metrics"},
    "sklearn": {"data"},
}


def part(path: Path) -> str:
    """The module or subpackage of scorefield that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Absolute names of what a file imports; with ``everywhere=False`` at the top of the file only."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which level they reach"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def below(path: Path) -> set[str]:
    """Parts of scorefield that a file imports, other than its own."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith("scorefield.")}
    return names - {part(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down_and_frameworks_stay_at_home(path):
    own = part(path)
    if own == "__init__":
        assert imports(path, everywhere=False) <= {"typing.Any"}
        return
    assert own in LEVEL, f"{own} has no level: put it into the table"
    for other in below(path):
        assert LEVEL[other] < LEVEL[own] or (own, other) in SIDEWAYS, f"{own} (level {LEVEL[own]}) imports {other}"
    for name in imports(path):
        framework = name.split(".")[0]
        assert own in HOMES.get(framework, {own}), f"{framework} belongs to {sorted(HOMES[framework])}, not to {own}"


def test_the_table_names_every_part():
    parts = {part(path) for path in FILES} - {"__init__"}
    assert parts <= LEVEL.keys()


def test_at_most_one_abstract_class_per_module():
    for path in FILES:
        classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
        abstract = [c.name for c in classes if any(getattr(base, "id", None) == "ABC" for base in c.bases)]
        assert len(abstract) <= 1, f"{path.relative_to(SOURCE)}: {abstract}"


def test_the_mathematics_needs_no_trainer():
    frameworks = sorted(HOMES.keys() - {"PIL"})
    parts = ["", ".noise", *(f".{name}" for level in (1, 2, 3, 4, 5) for name in LEVELS[level] if name != "metrics")]
    present = [
        name for name in parts if not name or (SOURCE / name[1:]).is_dir() or (SOURCE / f"{name[1:]}.py").exists()
    ]
    code = "import sys, importlib\n" + "\n".join(
        f"importlib.import_module('scorefield{name}')\n"
        f"found = [m for m in {frameworks} if m in sys.modules]\n"
        f"assert not found, ('scorefield{name}', found)"
        for name in present
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr


def test_frameworks_import_beside_this_build_of_torch():
    """Also where torchvision was built for another one, and its operators do not load."""
    for code in (
        "import scorefield.training, torchvision, torchmetrics, pytorch_lightning, torch_fidelity",
        # as where torchvision's own operators do not load, and with the commands' declaration waiting for an import
        "import scorefield.torchvision_ops as ops; ops._own_operators_load = lambda: False; import scorefield.cli\n"
        "import scorefield.metrics, scorefield.training",
    ):
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert answer.returncode == 0, answer.stderr
