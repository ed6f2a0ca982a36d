"""What a notebook and its solutions define, for tests of it as it is written there."""

import ast
import runpy
from pathlib import Path
from types import SimpleNamespace

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def functions_of(name, constants=(), **given):
    """The functions of a notebook, and some constants, over objects that its cells would make."""
    tree = ast.parse((NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8"))
    tree.body = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in constants)
    ]
    space = SimpleNamespace(**given)
    exec(compile(tree, name, "exec"), vars(space))
    return space


def solutions_of(name):
    """What the solutions of a notebook define."""
    return SimpleNamespace(**runpy.run_path(str(NOTEBOOKS / "solutions" / f"{name}.py")))
