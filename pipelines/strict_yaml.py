"""Read YAML from a user: bounded, without aliases, tags or duplicate keys, with the scalars of YAML 1.2.

PyYAML follows YAML 1.1, where 1e-4 is a string, `no` is false and 010 is eight. Here a number is what it looks like.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from model.data.errors import InputError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16
_SCALARS = (
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(([0-9][0-9_]*\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)",
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars that refuses duplicate and non-text keys."""

    yaml_implicit_resolvers: dict = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


def parse_yaml(text: str, label: str) -> Any:
    """The value of one YAML document.

    Args:
        text: the document.
        label: what to call it in an error, e.g. its path.

    Raises:
        InputError: broken or unsupported YAML, in one line with the line number.
    """
    try:
        _check_events(text)
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        what = ": ".join(filter(None, (error.context, error.problem)))
        raise InputError(f"{label}: {where}{what}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{label}: {' '.join(str(error).split())}") from None


def read_yaml(path: Path, label: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: the file is missing, too large, not UTF-8, not YAML, or not a mapping.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{label}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{label}: larger than {MAX_BYTES // 1024} KiB")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{label}: not UTF-8 at byte {error.start}") from None
    value = parse_yaml(text, label)
    if not isinstance(value, dict):
        raise InputError(f"{label}: a mapping of keys to values is expected")
    return value


def _check_events(text: str) -> None:
    """Refuse what could grow beyond the file's size or depth, before anything is built from it."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        problem = None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            problem = "anchors and aliases are not supported; use extends"
        elif getattr(event, "tag", None):
            problem = "tags are not supported"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            problem = f"nested deeper than {MAX_DEPTH} levels"
        if problem:
            raise yaml.constructor.ConstructorError(None, None, problem, event.start_mark)
