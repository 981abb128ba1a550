"""The private names of DeepSpeed and torch that training uses are in the installed versions."""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from hpcm_scale.training import deepspeed_internals
from hpcm_scale.training.deepspeed_internals import NAMES, skip_shared_memory_operator

TRAINING = Path(deepspeed_internals.__file__).parent


def owner(path: str) -> Any:
    """A module, or a class in one. `import deepspeed.comm.torch` alone would give torch itself."""
    try:
        return import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(import_module(module), name)


@pytest.mark.parametrize(("path", "name"), [(p, n) for p, names in NAMES.items() for n in names])
def test_every_private_name_is_there(path, name):
    assert hasattr(owner(path), name)


def test_the_shared_memory_operator_is_replaced(monkeypatch):
    backend = import_module("deepspeed.comm.torch")
    monkeypatch.setattr(backend, "build_shm_op", backend.build_shm_op)
    skip_shared_memory_operator()
    assert backend.build_shm_op() is None


def test_no_other_module_uses_a_private_name():
    """`object._name` on anything but self, cls and the module's own names."""
    found = []
    for path in TRAINING.glob("*.py"):
        if path.name == "deepspeed_internals.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
                continue
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if (
                not own
                and not node.attr.startswith("__")
                and node.attr not in ("_replace", "_exit")
            ):
                found.append(f"{path.name}:{node.lineno}: {node.attr}")
    assert not found
