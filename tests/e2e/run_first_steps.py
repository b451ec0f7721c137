"""Run collect, curate and pretrain of `micro` with kfp.local: python run_first_steps.py OUT [IMAGE].

In subprocesses of this interpreter, or in containers of IMAGE. Everything is written below OUT, which containers see
under the same path; OUT/steps.jsonl records each finished step.
"""

import os
import sys
from pathlib import Path

import docker
from kfp import dsl, local
from kfp.dsl import PipelineTask
from kfp.dsl.graph_component import GraphComponent

from components.collect.component import collect
from components.curate.component import curate
from components.pretrain.component import pretrain
from components.settings import Settings
from pipelines.profile import load_profile, section_json


def first_steps(image: str) -> GraphComponent:
    """The pipeline; its image is baked in, because kfp.local does not resolve a parameter there."""

    def placed(task: PipelineTask) -> PipelineTask:
        task.set_caching_options(False)
        return task.set_container_image(image) if image else task

    @dsl.pipeline(name="first-steps")
    def pipeline(collect_config: str, curate_config: str, pretrain_config: str) -> None:
        data = placed(collect(config=collect_config))
        heldout = data.outputs["heldout"]
        rows = placed(curate(config=curate_config, corpus=data.outputs["corpus"], heldout=heldout))
        placed(
            pretrain(
                config=pretrain_config,
                rows=rows.outputs["transcriptions"],
                heldout=heldout,
                tokenizer=data.outputs["tokenizer"],
            )
        )

    return pipeline


def main() -> None:
    out, image = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    surroundings = Settings.at(out).environment() | {"FOVEA_RUN_DIR": str(out)}
    if image:
        client = docker.from_env()
        runner = local.DockerRunner(
            network_mode="host",
            user=f"{os.getuid()}:{os.getgid()}",
            mounts=[docker.types.Mount(str(out), str(out), type="bind")],
            environment=surroundings | {"FOVEA_IMAGE_DIGEST": client.images.get(image).id},
        )
    else:
        os.environ.update(surroundings)
        runner = local.SubprocessRunner(use_venv=False)
    local.init(runner, pipeline_root=str(out / "kfp"), raise_on_error=True)
    profile = load_profile("micro")
    sections = {f"{step}_config": section_json(profile, step) for step in ("collect", "curate", "pretrain")}
    first_steps(image)(**sections)


if __name__ == "__main__":
    main()
