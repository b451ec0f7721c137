"""The pipeline ``train``: from data to a deployed model. KFP's own caching is off; the store decides what is done."""

from collections.abc import Callable

from kfp import dsl, kubernetes
from kfp.dsl import PipelineTask
from kfp.dsl.graph_component import GraphComponent

from components.collect.component import collect
from components.curate.component import curate
from components.deploy.component import deploy
from components.evaluate.component import evaluate
from components.gate.component import gate
from components.pretrain.component import pretrain
from components.register.component import register
from components.sft.component import sft
from model.data.errors import InputError
from pipelines.platform import apply_platform
from pipelines.profile import Profile, section_json

STEPS = ("collect", "curate", "pretrain", "sft", "evaluate", "gate", "register", "deploy")
_RUN_ID_LABEL = "metadata.labels['pipeline/runid']"


def configs_of(profile: Profile) -> dict[str, str]:
    """The pipeline's arguments: each step's section of the profile as JSON.

    Raises:
        InputError: the profile's line is not this pipeline's.
    """
    if profile.line != STEPS:
        raise InputError(f"profile {profile.name}: line: the pipeline train has the stages {', '.join(STEPS)}")
    # KFP would read "{{$...}}" in a string as a placeholder of its own. In JSON a dollar can be written without one.
    return {step: section_json(profile, step).replace("$", "\\u0024") for step in STEPS}


def _line(configs: dict[str, str], place: Callable[[PipelineTask, str], object]) -> None:
    """The tasks and what flows between them; ``place`` fits each task to where it runs."""
    data = collect(config=configs["collect"])
    heldout = data.outputs["heldout"]
    rows = curate(config=configs["curate"], corpus=data.outputs["corpus"], heldout=heldout)
    base = pretrain(
        config=configs["pretrain"],
        rows=rows.outputs["transcriptions"],
        heldout=heldout,
        tokenizer=data.outputs["tokenizer"],
    )
    tuned = sft(config=configs["sft"], rows=rows.outputs["questions"], heldout=heldout, init=base.outputs["model"])
    model = tuned.outputs["model"]
    scored = evaluate(config=configs["evaluate"], model=model, heldout=heldout)
    evaluation = scored.outputs["evaluation"]
    judged = gate(config=configs["gate"], model=model, heldout=heldout, evaluation=evaluation)
    verdict = judged.outputs["verdict"]
    registered = register(config=configs["register"], model=model, evaluation=evaluation, verdict=verdict)
    deployed = deploy(
        config=configs["deploy"], model=model, verdict=verdict, registration=registered.outputs["registration"]
    )
    tasks = (data, rows, base, tuned, scored, judged, registered, deployed)
    for step, task in zip(STEPS, tasks, strict=True):
        place(task, step)


@dsl.pipeline(name="train", description="Collect, curate, pre-train, fine-tune, evaluate, gate, register, deploy.")
def train(
    collect: str, curate: str, pretrain: str, sft: str, evaluate: str, gate: str, register: str, deploy: str
) -> None:
    """The line on this machine. Each argument is the JSON configuration of the step of that name."""
    _line(locals(), lambda task, step: task.set_caching_options(False))


def build_train_pipeline(profile: Profile) -> GraphComponent:
    """The same line for a cluster: the profile's configuration as defaults, its images and resources on each task."""
    baked = configs_of(profile)

    def place(task: PipelineTask, step: str) -> None:
        apply_platform(task, step, profile.platform)
        task.set_env_variable("FOVEA_PROFILE", profile.name)
        kubernetes.use_field_path_as_env(task, "KFP_RUN_ID", _RUN_ID_LABEL)

    @dsl.pipeline(name=f"train-{profile.name.replace('_', '-')}", description=profile.description)
    def train_on_cluster(
        collect: str = baked["collect"],
        curate: str = baked["curate"],
        pretrain: str = baked["pretrain"],
        sft: str = baked["sft"],
        evaluate: str = baked["evaluate"],
        gate: str = baked["gate"],
        register: str = baked["register"],
        deploy: str = baked["deploy"],
    ) -> None:
        _line(locals(), place)

    return train_on_cluster
