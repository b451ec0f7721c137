"""The pointer that a commit holds: a .dvc file and the default remote, read out of git without a checkout."""

import configparser
import subprocess
from pathlib import Path
from typing import Any

import yaml

from components.pointer import Pointer, parse_pointer
from model.data.errors import InputError

_SECONDS, _MOST_BYTES = 60, 1 << 20


def pointer_at(repository: Path, revision: str, path: str, remote: str | None) -> Pointer:
    """What the .dvc file at ``path`` of commit ``revision`` points at.

    Args:
        repository: work tree or bare repository.
        revision: a full commit hash.
        path: relative to the root of the repository.
        remote: where the bytes lie; None takes the default remote of that revision's ``.dvc/config``.

    Raises:
        InputError: no repository, revision or file; or the file tracks no directory.
    """
    where = f"{path} at {revision[:12]}"
    tracked = _tracked(_show(repository, revision, path), where)
    found = remote or _default_remote(_show(repository, revision, ".dvc/config"), repository, where)
    return parse_pointer({**tracked, "remote": found}, where)


def _show(repository: Path, revision: str, path: str) -> bytes:
    command = ["git", "-C", str(repository), "cat-file", "blob", f"{revision}:{path}"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"{repository}: git cannot be asked: {error}") from error
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").strip() or "no reason given").splitlines()[-1]
        raise InputError(f"{repository}: {reason.removeprefix('fatal: ')}")
    if len(done.stdout) > _MOST_BYTES:
        raise InputError(f"{repository}: {path} at {revision[:12]} is larger than any .dvc file")
    return done.stdout


def _tracked(data: bytes, where: str) -> dict[str, Any]:
    """md5, size and number of files of the one directory that a .dvc file tracks."""
    try:
        outs = yaml.safe_load(data)["outs"]
        (out,) = outs
        tracked = {name: out[name] for name in ("md5", "size", "nfiles")}
    except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{where}: it does not track one directory") from error
    if out.get("hash", "md5") != "md5":
        raise InputError(f"{where}: written by DVC 2; `dvc cache migrate` and commit it again")
    return tracked


def _default_remote(data: bytes, repository: Path, where: str) -> str:
    config = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        # DVC indents the options of a section; a parser of INI files takes that for a continued line.
        config.read_string("\n".join(line.strip() for line in data.decode().splitlines()))
        url = config[f"'remote \"{config['core']['remote']}\"'"]["url"]
    except (configparser.Error, KeyError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: .dvc/config there names no default remote; set fetch.remote") from error
    if "://" in url or Path(url).is_absolute():
        return url
    return str(repository.absolute() / ".dvc" / url)
