"""A profile: the typed configuration of a whole line, read from YAML. Imports no torch and no kfp."""

import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from components.build_preferences.config import BuildPreferencesConfig
from components.collect.config import CollectConfig
from components.curate.config import CurateConfig
from components.deploy.config import DeployConfig
from components.evaluate.config import EvaluateConfig
from components.fetch.config import FetchConfig
from components.gate.config import GateConfig
from components.gspo.config import GspoConfig
from components.mpo.config import MpoConfig
from components.pretrain.config import PretrainConfig
from components.quantize.config import QuantizeConfig
from components.register.config import RegisterConfig
from components.route.config import RouteConfig
from components.select_queries.config import SelectQueriesConfig
from components.sft.config import SftConfig
from components.stream_sft.config import StreamSftConfig
from components.version.config import VersionConfig
from components.vico.config import VicoConfig
from model.config import Section
from model.data.errors import InputError
from pipelines.config import PlatformConfig
from pipelines.strict_yaml import parse_yaml, read_yaml

PROFILES = Path(__file__).parent / "profiles"
_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,63}")
_MOST_PROBLEMS = 20

# Every class has a `register` method from ABCMeta; a profile is no abstract class and never calls it.
warnings.filterwarnings("ignore", message='Field name "register" in "Profile" shadows')


class Profile(Section):
    """What a line runs, with which settings, and where. The steps' sections stand in the order of the line."""

    name: str = Field(pattern=f"^{_NAME.pattern}$")
    """The file's name without its ending; not written in the file."""
    description: str
    """One line for ``fovea profiles``."""
    source: str
    """Where the hyper-parameters come from."""
    family: Literal["internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"] = "internvl"
    """Base family of the model. Families other than InternVL start from a released checkpoint."""
    line: tuple[str, ...] = Field(min_length=1)
    """The steps that run. A step may have a section and not be in the line."""
    platform: PlatformConfig = PlatformConfig()
    """The cluster that the pipeline is compiled for."""

    collect: CollectConfig
    """Build or import rows, held-out rows and tokenizer."""
    curate: CurateConfig = CurateConfig()
    """Check, deduplicate, decontaminate; split the rows between the stages."""
    version: VersionConfig = VersionConfig()
    """A dataset pushed to the DVC remote, and its pointer. Run by itself: `fovea stage version`."""
    fetch: FetchConfig = FetchConfig()
    """A dataset brought back by its pointer. Run by itself: `fovea stage fetch`."""
    pretrain: PretrainConfig
    """Native pre-training, or the checkpoint to start from."""
    sft: SftConfig
    """Supervised fine-tuning."""
    build_preferences: BuildPreferencesConfig | None = None
    """Rollouts and pairs for MPO."""
    mpo: MpoConfig | None = None
    """Offline stage of Cascade RL."""
    select_queries: SelectQueriesConfig | None = None
    """Queries for GSPO."""
    gspo: GspoConfig | None = None
    """Online stage of Cascade RL."""
    vico: VicoConfig | None = None
    """Visual consistency training."""
    route: RouteConfig | None = None
    """Training of the Visual Resolution Router."""
    stream_sft: StreamSftConfig | None = None
    """Fine-tuning for endless video."""
    quantize: QuantizeConfig | None = None
    """Weights in fewer bits."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Answers for every held-out row, and their scores."""
    gate: GateConfig = GateConfig()
    """The verdict: against the champion, on the same rows."""
    register: RegisterConfig = RegisterConfig()
    """A version in the model registry."""
    deploy: DeployConfig = DeployConfig()
    """The served model."""

    @model_validator(mode="after")
    def _line_is_described(self) -> "Profile":
        for stage in self.line:
            if stage not in STAGES:
                raise ValueError(f"line: no stage is named {stage!r}; stages: {', '.join(STAGES)}")
            if getattr(self, stage) is None:
                raise ValueError(f"line: stage {stage} has no section in this profile")
        if list(self.line) != [stage for stage in STAGES if stage in self.line]:
            raise ValueError(f"line: stages are given once each, in this order: {', '.join(STAGES)}")
        return self

    @model_validator(mode="after")
    def _family_fits(self) -> "Profile":
        if self.family != "internvl" and self.pretrain.init_from is None:
            raise ValueError(f"pretrain.init_from: family {self.family} starts from a released checkpoint")
        if self.family != "internvl" and {"vico", "route"} & set(self.line):
            raise ValueError(f"line: vico and route are for InternVL; family {self.family} has no second projector")
        return self


_HEAD = ("name", "description", "source", "family", "line", "platform")
STAGES: tuple[str, ...] = tuple(name for name in Profile.model_fields if name not in _HEAD)
"""Every stage that a profile can describe, in the order of the line."""


def built_stages() -> tuple[str, ...]:
    """The stages that exist: those whose component has a ``step`` module."""
    return tuple(stage for stage in STAGES if find_spec(f"components.{stage}.step"))


def require_built(stage: str) -> None:
    """Refuse a stage that does not exist, or does not exist yet.

    Raises:
        InputError: one line that names the stages that are built.
    """
    if stage not in STAGES:
        raise InputError(f"no stage is named {stage!r}; stages: {', '.join(STAGES)}")
    if stage not in (built := built_stages()):
        raise InputError(f"stage {stage} is described by this profile but not built yet; built: {', '.join(built)}")


def planned_stages(profile: Profile) -> tuple[str, ...]:
    """The stages that a profile describes and that do not exist yet."""
    built = built_stages()
    return tuple(stage for stage in STAGES if getattr(profile, stage) is not None and stage not in built)


def section_json(profile: Profile, stage: str) -> str:
    """A stage's section as canonical JSON (sorted keys, defaults included, no spaces).

    This is what a component receives, and what enters the key of its result.

    Raises:
        InputError: no such stage, or the profile does not describe it.
    """
    section = getattr(profile, stage, None) if stage in STAGES else None
    if section is None:
        raise InputError(f"profile {profile.name}: no section {stage}")
    return json.dumps(section.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class _Layer:
    """One source of keys, and how an error names a key of it: ``prefix`` + dotted path."""

    prefix: str
    data: dict[str, Any]


def profile_names() -> tuple[str, ...]:
    """The profiles that come with Fovea."""
    return tuple(sorted(path.stem for path in PROFILES.glob("*.yaml")))


def load_profile(name_or_path: str | Path, overrides: dict[str, Any] | None = None) -> Profile:
    """Read a profile by name or path, follow ``extends``, apply overrides, check everything.

    Args:
        name_or_path: the name of a profile that comes with Fovea, or the path of a YAML file.
        overrides: nested keys that replace the file's, e.g. ``{"sft": {"training": {"steps": 10}}}``.

    Raises:
        InputError: one line per problem, with file and dotted key.
    """
    return _load(name_or_path, _Layer("override ", overrides or {}))


def load_params(path: Path) -> Profile:
    """The profile that ``params.yaml`` names, with its overrides.

    Raises:
        InputError: one line per problem, with file and dotted key.
    """
    data = read_yaml(path, str(path))
    for key in data.keys() - {"profile", "overrides"}:
        raise InputError(f"{path}: {key}: unknown key")
    overrides = data.get("overrides") or {}
    if not isinstance(data.get("profile"), str):
        raise InputError(f"{path}: profile: must be the name of a profile")
    if not isinstance(overrides, dict) or not all(isinstance(section, dict) for section in overrides.values()):
        raise InputError(f"{path}: overrides: must be a mapping of section to keys")
    return _load(data["profile"], _Layer(f"{path}: overrides.", overrides))


def parse_override(text: str) -> dict[str, Any]:
    """``sft.training.learning_rate=1e-4`` as nested keys; the value is read as YAML.

    Raises:
        InputError: not of the form key=value.
    """
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+){0,15}", key):
        raise InputError(f"override {text!r}: write key=value, e.g. sft.training.learning_rate=1e-4")
    nested = parse_yaml(value, f"override {key}")
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return nested


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Several overrides as one mapping; a later one wins."""
    merged: dict[str, Any] = {}
    for text in texts:
        merged = merge(merged, parse_override(text))
    return merged


def _load(name_or_path: str | Path, overrides: _Layer) -> Profile:
    path = _find(name_or_path)
    layers = [overrides, *_chain(path)]
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        merged = merge(merged, layer.data)
    merged["name"] = path.stem
    try:
        # Strict JSON takes a list for a tuple, but neither "64" nor true for a number.
        profile = Profile.model_validate_json(json.dumps(merged), strict=True)
    except ValidationError as error:
        raise InputError("\n".join(_problems(error, layers))) from None
    for stage in profile.line:
        try:
            require_built(stage)
        except InputError as error:
            raise InputError(f"{_where(('line',), layers)}: {error}") from None
    return profile


def _find(name_or_path: str | Path, beside: Path = Path()) -> Path:
    """The file of a profile given by name, or by path relative to ``beside``."""
    text = str(name_or_path)
    if not _NAME.fullmatch(text):
        return beside / text
    path = PROFILES / f"{text}.yaml"
    if not path.is_file():
        raise InputError(f"no profile is named {text!r}; profiles: {', '.join(profile_names())}")
    return path


def _chain(path: Path) -> list[_Layer]:
    """The file and everything it extends, the file itself first."""
    layers: list[_Layer] = []
    seen: list[Path] = []
    while True:
        label = _label(path)
        if path.resolve() in seen:
            raise InputError(f"{label}: extends: goes round in a circle")
        seen.append(path.resolve())
        data = read_yaml(path, label)
        if "name" in data:
            raise InputError(f"{label}: name: is the file's name, not a key")
        parent = data.pop("extends", None)
        layers.append(_Layer(f"{label}: ", data))
        if parent is None:
            return layers
        if not isinstance(parent, str):
            raise InputError(f"{label}: extends: must be the name or path of a profile")
        path = _find(parent, path.parent)


def _label(path: Path) -> str:
    """How errors name a file: relative to the repository for the profiles that come with it."""
    root = PROFILES.parent.parent
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """``top`` over ``base``: mappings merge, everything else is replaced."""
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _problems(error: ValidationError, layers: list[_Layer]) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False):
        path = tuple(str(part) for part in problem["loc"])
        text = problem["msg"].removeprefix("Value error, ").replace("Input should", "must")
        if path[-1:] == ("[key]",):  # of a mapping whose keys are names of something
            path, text = path[:-1], "unknown key"
        elif problem["type"] == "extra_forbidden":
            text = "unknown key"
        elif problem["type"] == "missing":
            path, text = path[:-1], f"{path[-1]} is missing"
        elif isinstance(problem["input"], str | int | float):
            text = f"{text}, not {problem['input']!r:.60}"
        lines.append(f"{_where(path, layers)}: {text}" if path else f"{layers[1].prefix}{text}")
    rest = len(lines) - _MOST_PROBLEMS
    return lines[:_MOST_PROBLEMS] + ([f"and {rest} more"] if rest > 0 else [])


def _where(path: tuple[str, ...], layers: list[_Layer]) -> str:
    """File and dotted key, for the layer that decided the key: the first that goes deepest towards it."""
    deciding = max(layers, key=lambda layer: _depth(layer.data, path))
    return f"{deciding.prefix}{'.'.join(path)}"


def _depth(data: Any, path: tuple[str, ...]) -> int:
    for depth, part in enumerate(path):
        if not isinstance(data, dict) or part not in data:
            return depth
        data = data[part]
    return len(path)
