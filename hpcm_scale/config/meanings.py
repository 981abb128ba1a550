"""The docstrings under the fields of a configuration, read from its source when they are shown."""

import ast
import inspect
from itertools import pairwise
from textwrap import dedent

from hpcm_scale.config.strict import StrictModel


def meanings(kind: type[StrictModel]) -> dict[str, str]:
    """Field -> its docstring on one line, for the fields that have one; inherited ones as well."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not (issubclass(base, StrictModel) and base is not StrictModel):
            continue
        (body,) = ast.parse(dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, after in pairwise(body.body):
            match field, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(text)):
                    found[name] = " ".join(str(text).split())
    return found
