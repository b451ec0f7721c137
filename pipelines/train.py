"""The pipeline ``train``: from data to a deployed model. KFP's own caching is off; the store decides what is done.

A profile's ``line`` says which of the training steps run: what a step trains on is the model of the last one before it,
and the last model of all is what is evaluated, judged, registered and deployed.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature
from typing import Any

from kfp import dsl, kubernetes
from kfp.dsl import PipelineTask
from kfp.dsl.graph_component import GraphComponent
from kfp.dsl.python_component import PythonComponent

from components.build_preferences.component import build_preferences
from components.collect.component import collect
from components.curate.component import curate
from components.deploy.component import deploy
from components.evaluate.component import evaluate
from components.gate.component import gate
from components.gspo.component import gspo
from components.mpo.component import mpo
from components.pretrain.component import pretrain
from components.register.component import register
from components.route.component import route
from components.select_queries.component import select_queries
from components.sft.component import sft
from components.vico.component import vico
from model.data.errors import InputError
from pipelines.platform import apply_platform
from pipelines.profile import Profile, section_json

_DATA = ("collect", "curate")
_CASCADE = ("build_preferences", "mpo", "select_queries", "gspo")
_FLASH = ("vico", "route")
_DELIVERY = ("evaluate", "gate", "register", "deploy")
STEPS = (*_DATA, "pretrain", "sft", *_CASCADE, *_FLASH, *_DELIVERY)
"""The full line."""
_OPTIONAL = ("sft", *_CASCADE, *_FLASH)
_NEEDS = {"mpo": "build_preferences", "select_queries": "build_preferences", "gspo": "select_queries", "route": "vico"}
"""Optional steps that work on what another one makes."""
_READ_BY = {"build_preferences": ("mpo", "select_queries"), "select_queries": ("gspo",)}
"""Optional steps that make no model, and who reads what they make."""
_RUN_ID_LABEL = "metadata.labels['pipeline/runid']"


def configs_of(profile: Profile) -> dict[str, str]:
    """The pipeline's arguments: the section of each step of the profile's line, as JSON.

    Raises:
        InputError: the profile's line is not one that this pipeline can be.
    """
    _check(profile)
    # KFP would read "{{$...}}" in a string as a placeholder of its own. In JSON a dollar can be written without one.
    return {step: section_json(profile, step).replace("$", "\\u0024") for step in profile.line}


def _check(profile: Profile) -> None:
    """Refuse a line with steps that this pipeline does not have, or without some that it cannot do without."""
    for step in profile.line:
        if step not in STEPS:
            raise InputError(
                f"profile {profile.name}: line: the pipeline train has no {step}; it has {', '.join(STEPS)}"
            )
    if missing := [step for step in STEPS if step not in (*profile.line, *_OPTIONAL)]:
        raise InputError(f"profile {profile.name}: line: the pipeline train does not go without {', '.join(missing)}")
    for step, needed in _NEEDS.items():
        if step in profile.line and needed not in profile.line:
            raise InputError(f"profile {profile.name}: line: {step} works on what {needed} makes; name both")
    for step, readers in _READ_BY.items():
        if step in profile.line and not set(readers) & set(profile.line):
            raise InputError(
                f"profile {profile.name}: line: {step} is for {' and '.join(readers)}; name one or leave it out"
            )


def _line(configs: Mapping[str, Any], place: Callable[[PipelineTask, str], object]) -> None:
    """The tasks and what flows between them; ``place`` fits each task to where it runs."""

    def add(component: PythonComponent, **inputs: Any) -> Mapping[str, Any]:
        step = component.python_func.__name__
        task = component(config=configs[step], **inputs)
        place(task, step)
        return task.outputs

    data = add(collect)
    heldout = data["heldout"]
    rows = add(curate, corpus=data["corpus"], heldout=heldout)
    questions = rows["questions"]
    base = add(pretrain, rows=rows["transcriptions"], heldout=heldout, tokenizer=data["tokenizer"])
    model = base["model"]
    if "sft" in configs:
        model = add(sft, rows=questions, heldout=heldout, init=model)["model"]
    if "build_preferences" in configs:
        answers = add(build_preferences, rows=questions, model=model)
    if "mpo" in configs:
        model = add(mpo, rows=answers["pairs"], heldout=heldout, init=model)["model"]
    if "select_queries" in configs:
        chosen = add(select_queries, rows=questions, rollouts=answers["rollouts"])
    if "gspo" in configs:
        model = add(gspo, rows=chosen["queries"], heldout=heldout, init=model)["model"]
    if "vico" in configs:
        mixture = {"rows": questions, "transcriptions": rows["transcriptions"]}
        full, model = model, add(vico, **mixture, heldout=heldout, init=model)["model"]
    if "route" in configs:
        model = add(route, rows=questions, heldout=heldout, init=model, reference=full)["model"]
    evaluation = add(evaluate, model=model, heldout=heldout)["evaluation"]
    verdict = add(gate, model=model, heldout=heldout, evaluation=evaluation)["verdict"]
    registration = add(register, model=model, evaluation=evaluation, verdict=verdict)["registration"]
    add(deploy, model=model, verdict=verdict, registration=registration)


def _pipeline(
    name: str,
    description: str,
    line: Sequence[str],
    place: Callable[[PipelineTask, str], object],
    defaults: Mapping[str, str] | None = None,
) -> GraphComponent:
    """A KFP pipeline with one string argument for each step of ``line``."""

    def pipeline(*configs: Any) -> None:
        _line(dict(zip(line, configs, strict=True)), place)

    # KFP reads the arguments off the signature, and the line is known only here.
    pipeline.__signature__ = Signature(
        [
            Parameter(
                step,
                Parameter.POSITIONAL_OR_KEYWORD,
                annotation=str,
                default=Parameter.empty if defaults is None else defaults[step],
            )
            for step in line
        ]
    )
    return dsl.pipeline(name=name, description=description)(pipeline)


def train_pipeline(line: Sequence[str] = STEPS) -> GraphComponent:
    """The line on this machine. Each argument is the JSON configuration of the step of that name."""
    return _pipeline("train", f"{', '.join(line)}.", line, lambda task, step: task.set_caching_options(False))


def build_train_pipeline(profile: Profile) -> GraphComponent:
    """The same line for a cluster: the profile's configuration as defaults, its images and resources on each task.

    Raises:
        InputError: the profile's line is not one that this pipeline can be.
    """

    def place(task: PipelineTask, step: str) -> None:
        apply_platform(task, step, profile.platform)
        task.set_env_variable("FOVEA_PROFILE", profile.name)
        kubernetes.use_field_path_as_env(task, "KFP_RUN_ID", _RUN_ID_LABEL)

    name = f"train-{profile.name.replace('_', '-')}"
    return _pipeline(name, profile.description, profile.line, place, configs_of(profile))
