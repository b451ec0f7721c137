"""The version of a step's code: a hash of the static import closure of its module inside the repository.

A commit that touches nothing a step imports re-runs nothing; an edited loss re-runs the steps that import it.
"""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

ROOMS = ("model", "scoring", "planning", "components", "serving", "pipelines", "cli", "benchmarks")


def code_version(module: Path, root: Path, packages: tuple[str, ...] = ROOMS) -> str:
    """SHA-256 over relative paths and bytes of every file that ``module`` may import.

    Args:
        module: the file to start from, below ``root``.
        root: directory that holds ``packages``.
        packages: top-level packages that count as the repository; everything else is the dependency lock's matter.
    """
    root, digest = root.resolve(), hashlib.sha256()
    for path in import_closure(module, root, packages):
        digest.update(
            f"{path.relative_to(root).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return digest.hexdigest()


def import_closure(module: Path, root: Path, packages: tuple[str, ...] = ROOMS) -> list[Path]:
    """The files that importing ``module`` can execute, sorted; imports inside functions count.

    Raises:
        FileNotFoundError: ``module`` does not exist.
    """
    root = root.resolve()
    pending, closure = [module.resolve()], set()
    while pending:
        path = pending.pop()
        if path in closure:
            continue
        closure.add(path)
        for name in (_dotted(path, root), *_imported_names(path, root)):
            pending += _files_of(name, root, packages)
    return sorted(closure)


def _dotted(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _files_of(name: str, root: Path, packages: tuple[str, ...]) -> Iterator[Path]:
    """The ``__init__.py`` files on the way to the dotted ``name``, and its module where there is one."""
    parts = name.split(".")
    if parts[0] not in packages:
        return
    for length in range(1, len(parts) + 1):
        base = root.joinpath(*parts[:length])
        for candidate in (base / "__init__.py", base.with_suffix(".py")):
            if candidate.is_file():
                yield candidate


def _imported_names(path: Path, root: Path) -> Iterator[str]:
    """Dotted names that a file imports; ``from a import b`` names ``a.b``, which may be a module or not."""
    package = _dotted(path, root).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*start, *(node.module or "").split(".")]).strip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _is_import_module(node.func):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))


def _is_import_module(function: ast.expr) -> bool:
    return (isinstance(function, ast.Attribute) and function.attr == "import_module") or (
        isinstance(function, ast.Name) and function.id in ("import_module", "__import__")
    )
