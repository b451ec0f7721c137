"""Write the KFP pipeline of a profile for a cluster."""

import tempfile
from pathlib import Path

from kfp.compiler import Compiler

from model.data.artifact import write_atomic
from model.data.errors import InputError
from pipelines.platform import task_platform
from pipelines.profile import Profile, planned_stages
from pipelines.train import build_train_pipeline


def compile_profile(profile: Profile, output: Path) -> list[str]:
    """Compile the profile's line to a KFP package: pipeline spec and Kubernetes platform spec in one YAML file.

    Args:
        profile: what to compile; its ``platform`` says for which cluster.
        output: the file to write, ending in .yaml; replaced as a whole.

    Returns:
        What the file leaves out of the profile, one line each.

    Raises:
        InputError: the file cannot be written there, or the line is not a pipeline's.
    """
    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"{output}: a pipeline is written to a .yaml file")
    pipeline = build_train_pipeline(profile)
    with tempfile.TemporaryDirectory() as directory:
        package = Path(directory) / "pipeline.yaml"
        Compiler().compile(pipeline, str(package))
        data = package.read_bytes()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(output, data)
    except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"{output}: {error.strerror}") from None
    return left_out(profile)


def left_out(profile: Profile) -> list[str]:
    """What a profile describes and a compiled pipeline does not do yet, one line each."""
    lines = []
    if planned := planned_stages(profile):
        lines.append(f"described but not built yet, so not in the pipeline: {', '.join(planned)}")
    if profile.family != "internvl":
        lines.append(f"family {profile.family}: deploy will refuse it; stock vLLM serves its directory")
    spread = {stage: task_platform(stage, profile.platform).nodes for stage in profile.line}
    if several := [f"{stage} ({nodes})" for stage, nodes in spread.items() if nodes > 1]:
        lines.append(f"a task runs on one node; the profile asks for more: {', '.join(several)}")
    return lines
