"""How the models of ``flash_retention`` are trained: ``vico`` in two phases, then ``route``.

In the first phase every way to show an image is drawn as often, and the reference is the model before. The second goes
on at half of the rates, with two of three tiles compressed; its reference is what the first one made, in full, so it
holds on to that and brings the answers to compressed tiles closer to it. The router is measured against the model
before.

What was trained stays beside the line, a directory for each seed and stage: a run that was stopped goes on there.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.context import StepContext
from model.data.artifact import payload_sha256
from model.data.errors import InputError
from pipelines.profile import Profile

PHASES: tuple[dict[str, Any], ...] = (
    {
        "steps": 1400,
        "xi": (0.25, 0.0625),
        "learning_rate": 2e-4,
        "projector_learning_rate": 1e-4,
        "vision_learning_rate": 4e-4,
    },
    {
        "steps": 900,
        "xi": (0.25, 0.0625, 0.0625),
        "learning_rate": 1e-4,
        "projector_learning_rate": 5e-5,
        "vision_learning_rate": 2e-4,
    },
)
"""Of ``vico``: with so many steps the language model has time to come back to what it was at full resolution."""
ROUTE_STEPS = 200
REPEAT = {"locate": 2.0, "read_beside": 3.0, "read_sparse": 3.0, "read": 0.5, "maximum": 0.5, "count": 0.5}
"""Places and images of two kinds of tile take longer to learn than large digits."""
TRANSCRIPTION_SHARE = 0.15
THREADS = 1  # a second one saves a third of the time, and a core can do something else


def start_of(line: Path) -> Path:
    """The model that ``vico`` starts from in a line.

    Raises:
        InputError: there is none.
    """
    for name in ("gspo", "mpo", "sft"):
        if (line / name / "model").is_dir():
            return line / name / "model"
    raise InputError(f"{line / 'sft' / 'model'}: no such model; run make demo first")


def settings() -> dict[str, Any]:
    """What the training depends on, beside the profile's sections and the start."""
    return {
        "phases": list(PHASES),
        "route_steps": ROUTE_STEPS,
        "repeat": REPEAT,
        "transcription_share": TRANSCRIPTION_SHARE,
    }


def retrain(profile: Profile, line: Path, start: Path, beside: Path, seed: int) -> tuple[Path, float]:
    """Run ``vico`` and ``route`` on the model at ``start``: the routed model, and the processor seconds it took.

    Args:
        profile: whose sections are changed by the settings here.
        line: whose rows they learn from.
        start: a model directory.
        beside: where models are kept, under the hash of the start, the sections and the settings.
        seed: of both stages.
    """
    known = [payload_sha256(start), profile.vico.model_dump_json(), profile.route.model_dump_json(), settings()]
    name = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:12]
    kept, data = beside / f"{name}-{seed}", {"rows": line / "curate" / "questions"}
    data["heldout"] = line / "collect" / "heldout"
    model, seconds = start, 0.0
    for number, phase in enumerate(PHASES):
        model, spent = _once(kept / f"vico-{number}", _phase(profile, line, data, model, phase, seed + 100 * number))
        seconds += spent
    model, spent = _once(kept / "route", _routing(profile, data, model, start, seed))
    return model, seconds + spent


def _once(made: Path, train: Callable[[Path], None]) -> tuple[Path, float]:
    """The model that ``train`` leaves in ``made``, unless it stands there; and the processor seconds that it took, of
    one that was stopped those since it went on."""
    if not made.is_dir():
        work = made.with_name(made.name + ".partial")
        shutil.rmtree(work / "model", ignore_errors=True)  # of a run that was killed while it wrote
        begun = time.process_time()
        train(work)
        (work / "seconds.json").write_text(json.dumps(time.process_time() - begun))
        work.replace(made)
    return made / "model", json.loads((made / "seconds.json").read_bytes())


def _phase(
    profile: Profile, line: Path, data: dict[str, Path], init: Path, phase: dict[str, Any], seed: int
) -> Callable[[Path], None]:
    """One run of ``vico``. Only a model that has no second projector gets the profile's warmup of it."""
    from components.vico.step import run

    section, changes = profile.vico, dict(phase)
    objective = section.objective.model_copy(update={"draw": "tile", "xi": changes.pop("xi")})
    warmup = section.warmup
    if warmup is not None:
        warmup = warmup.model_copy(update={"seed": seed, "threads": THREADS}) if phase is PHASES[0] else None
    training = section.training.model_copy(update=changes | {"seed": seed, "threads": THREADS})
    update = {"training": training, "objective": objective, "warmup": warmup, "heldout_rows": 1}
    update |= {"repeat": REPEAT, "transcription_share": TRANSCRIPTION_SHARE}

    def train(work: Path) -> None:
        context = StepContext(state_dir=work / "state")
        paths = {"transcriptions": line / "curate" / "transcriptions", "init": init, "model": work / "model"}
        run(section.model_copy(update=update), **data, **paths, context=context)

    return train


def _routing(profile: Profile, data: dict[str, Path], init: Path, reference: Path, seed: int) -> Callable[[Path], None]:
    """``route``, with every row of the mixture as often as it comes, and no threshold: that is chosen later."""
    from components.route.step import run

    changes = {"steps": ROUTE_STEPS, "seed": seed, "threads": THREADS}
    training = profile.route.training.model_copy(update=changes)
    update = {"training": training, "heldout_rows": 1, "compared_rows": 0, "repeat": {}}
    update |= {"calibration": None, "compress_above": 0.5}

    def train(work: Path) -> None:
        paths = {"init": init, "reference": reference, "model": work / "model"}
        run(profile.route.model_copy(update=update), **data, **paths, context=StepContext(state_dir=work / "state"))

    return train
