"""What a step takes and gives, read from its KFP component without importing kfp (which takes a second)."""

import ast
from dataclasses import dataclass
from pathlib import Path

from model.data.errors import InputError
from pipelines.profile import require_built

_COMPONENTS = Path(__file__).parents[1] / "components"
_ARTIFACTS = frozenset({"Artifact", "Dataset", "Model"})
"""Outputs that are directories; Metrics, HTML and the like are KFP's own faces."""


@dataclass(frozen=True)
class Interface:
    """Names of a step's inputs and outputs, all of them directories; ``optional`` are inputs that may be left out."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    optional: tuple[str, ...] = ()


def interface_of(step: str) -> Interface:
    """The inputs and outputs that ``components/<step>/component.py`` declares.

    Raises:
        InputError: no such step, or none yet.
    """
    require_built(step)
    tree = ast.parse((_COMPONENTS / step / "component.py").read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == step)
    kinds: dict[str, list[str]] = {"Input": [], "Output": []}
    optional = []
    for argument in function.args.args:
        annotation = argument.annotation
        if may_be_none := isinstance(annotation, ast.BinOp):  # Input[Artifact] | None
            annotation = annotation.left
        kind, artifact = _annotation(annotation)
        if kind in kinds and artifact in _ARTIFACTS:
            kinds[kind].append(argument.arg)
            optional += [argument.arg] * may_be_none
    return Interface(tuple(kinds["Input"]), tuple(kinds["Output"]), tuple(optional))


def _annotation(node: ast.expr | None) -> tuple[str, str]:
    """``Input[Model]`` as ("Input", "Model"); anything else as ("", "")."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and isinstance(node.slice, ast.Name):
        return node.value.id, node.slice.id
    return "", ""


def named_paths(
    step: str, pairs: list[str], expected: tuple[str, ...], kind: str, optional: tuple[str, ...] = ()
) -> dict[str, Path]:
    """``name=DIR`` arguments as a mapping, complete but for those in ``optional``, and without strangers.

    Raises:
        InputError: a pair is malformed, unknown, given twice or missing.
    """
    paths: dict[str, Path] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals or not path:
            raise InputError(f"--{kind} {pair!r}: write name=DIR")
        if name not in expected:
            raise InputError(f"--{kind} {name}: step {step} has the {kind}s {', '.join(expected) or 'none'}")
        if name in paths:
            raise InputError(f"--{kind} {name}: given twice")
        paths[name] = Path(path)
    if missing := [name for name in expected if name not in paths and name not in optional]:
        raise InputError(f"step {step}: --{kind} {missing[0]}=DIR is missing")
    return paths
