"""The package's rooms: imports run down only, and tests are named so that a line holds them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hpcm_scale"
ROOMS = (
    "errors", "files", "units", "heap", "plotting", "config", "data", "models", "entropy",
    "weights", "numpy_engine", "runs", "training", "planning", "codec", "conformance", "pillow",
    "evaluation", "scaling", "ladder", "cluster", "bench", "cli",
)  # fmt: skip
"""From the ground up: each may import those before it."""
FRONT = {"__init__", "__main__"}
LONGEST_TEST_NAME = 59
TORCHLESS = (
    "errors",
    "files",
    "units",
    "heap",
    "plotting",
    "config",
    "runs",
    "scaling",
    "numpy_engine",
)


def imported(path: Path) -> list[str]:
    """Dotted names of this package that a module imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.startswith("hpcm_scale.")]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downwards(path):
    room = room_of(path)
    if room in FRONT:
        return
    assert room in ROOMS, f"{room} has no place in the order of rooms"
    for name in imported(path):
        other = name.split(".")[1]
        if other in ROOMS and other != room:
            assert ROOMS.index(other) < ROOMS.index(room), f"imports {name} from above"


def test_no_two_modules_import_each_other():
    names = {
        ".".join(("hpcm_scale", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in MODULES
    }
    arrows = {
        name: {other for other in imported(path) if other in names and other != name}
        for name, path in names.items()
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"circle: {' -> '.join((*above, name))}"
        if name not in done:
            for other in arrows[name]:
                visit(other, (*above, name))
            done.add(name)

    for name in arrows:
        if not name.startswith("hpcm_scale.cli."):  # its verbs register with one program
            visit(name, ())


def test_the_lower_rooms_do_not_import_torch():
    for path in MODULES:
        if room_of(path) not in TORCHLESS:
            continue
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] == "torch" for n in names), path


def test_test_names_fit_a_line():
    long = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            test = isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
            if test and len(node.name) > LONGEST_TEST_NAME:
                long.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not long, "\n".join(long)
