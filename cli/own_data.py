"""``fovea run --data DIR``: from a directory of somebody's own data to the overrides that train on it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.data.errors import InputError

if TYPE_CHECKING:
    from pipelines.profile import Profile

DEFAULT_PROFILE = "tiny"
PRETRAIN_TASK = "pretrain"
# A network from nothing learns to see in one stage and to answer in the other. Each row is in one of them: a second
# copy would be dropped as a duplicate.
_PRETRAIN_SHARE = 0.4
_OTHER_SOURCES = ("digits", "embedded", "dataset", "source")
# The shape of tiny for texts that are no digits: more words, longer rows. The line ends with fine-tuning: preferences
# and queries come from a model that is right now and then, and of unknown rows nobody can promise that.
_FOR_ANY_TEXTS: dict[str, Any] = {
    "line": ["collect", "curate", "pretrain", "sft", "evaluate", "gate", "register", "deploy"],
    "collect": {"vocabulary": 2048},
    "pretrain": {"training": {"max_tokens": 1024}},
    "sft": {"training": {"max_tokens": 1024}},
}


def profile_on(directory: Path, name: str | None, settings: list[str] | None) -> tuple["Profile", str]:
    """The profile that trains on a directory of the user's, and what was found in it.

    Args:
        directory: a source (components/collect/importers), or datasets ``train`` and ``heldout`` of our own.
        name: of the profile; one for texts of any kind when None.
        settings: what the user sets, as ``section.key=value``.

    Raises:
        InputError: the directory cannot be used, or the profile with it.
    """
    from pipelines.profile import load_profile, parse_overrides

    given = parse_overrides(settings or [])
    changes, found = _data_overrides(directory, given, default_profile=name is None)
    return _without_repeats(load_profile(name or DEFAULT_PROFILE, changes), given), found


def _data_overrides(directory: Path, given: dict[str, Any], *, default_profile: bool) -> tuple[dict[str, Any], str]:
    """Overrides that make a profile train on ``directory``, under those that the user gave; and what was found there.

    Args:
        directory: a source (components/collect/importers), or datasets ``train`` and ``heldout`` of our own.
        given: the user's overrides; they win.
        default_profile: the user named no profile.

    Raises:
        InputError: there is no such directory, or nothing in it that is known.
    """
    from pipelines.profile import merge

    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory")
    path = str(directory.absolute())
    collect: dict[str, Any] = dict.fromkeys(_OTHER_SOURCES)
    overrides: dict[str, Any] = {"collect": collect}
    if (directory / "train").is_dir() and (directory / "heldout").is_dir():
        collect["dataset"], found = path, "datasets train and heldout"
    else:
        named, found = _source(directory, (given.get("collect") or {}).get("source") or {})
        collect["source"] = {"path": path, "pretrain_share": _PRETRAIN_SHARE} | named
        overrides["curate"] = {"pretrain_tasks": [PRETRAIN_TASK]}
    if default_profile:
        overrides = merge(overrides, _FOR_ANY_TEXTS)
    return merge(overrides, given), found


def _without_repeats(profile: "Profile", given: dict[str, Any]) -> "Profile":
    """The profile without the repeats of question families that are those of its own corpus; the user's stay."""
    changed = {}
    for name in ("vico", "route"):
        if (section := getattr(profile, name)) is not None:
            named = (given.get(name) or {}).get("repeat") or {}
            kept = {family: factor for family, factor in section.repeat.items() if family in named}
            changed[name] = section.model_copy(update={"repeat": kept})
    return profile.model_copy(update=changed)


def _source(directory: Path, given: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The format of a source, and the words for it."""
    if (named := given.get("format", "auto")) != "auto":
        return {"format": named}, f"format {named}"
    from components.collect.importers.config import AutoSource
    from components.collect.importers.rows import open_importer

    importer = open_importer(AutoSource(path=directory, file=given.get("file")))
    return {"format": importer.config.format}, importer.found
