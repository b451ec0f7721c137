"""Mixed preference optimisation on pairs of a better and a worse answer."""

from pathlib import Path

from components.code_version import code_version
from components.context import StepContext, StepResult
from components.mpo.config import MpoConfig
from components.training_step import finish, run_stage
from model.data.artifact import payload_sha256
from model.data.shards import open_dataset
from model.families.opening import load_network, load_processor
from model.training.pairs import check_pairs
from model.training.preferences import preference_stage
from model.training.references import ReferenceCache, ReferenceCopy

_REPOSITORY = Path(__file__).parents[2]
# What prepares rows and opens networks, and what asks them.
_REFERENCE_CODE = ("model/families/opening.py", "model/training/references.py")


def run(config: MpoConfig, *, rows: Path, heldout: Path, init: Path, model: Path, context: StepContext) -> StepResult:
    """Train ``init`` on the pairs of ``rows``, with ``init`` itself as the reference.

    Args:
        config: the training, the objective, and how the reference is had.
        rows: dataset whose rows have ``chosen`` and ``rejected``.
        heldout: dataset; its first rows per family are scored at the end.
        init: the fine-tuned model directory.
        model: the model directory to write.
        context: state directory and progress; what the reference said is kept in its cache directory.

    Raises:
        InputError: a pair or ``init`` cannot be used.
    """
    dataset = list(open_dataset(rows).rows())
    check_pairs(dataset)
    network, processor = load_network(init), load_processor(init)
    if config.reference == "copy":
        reference = ReferenceCopy(network, config.training)
    else:
        directory = (context.cache_dir or context.state_dir) / "references"
        reference = ReferenceCache(directory, _identity(init), context.progress)
    stage = preference_stage("mpo", config.training, config.objective, reference)
    result = run_stage(network, processor, dataset, stage, config.training, context)
    base = init if config.training.lora else None
    return finish(network, processor, heldout, config.heldout_rows, model, context, result, adapter_of=base)


def _identity(init: Path) -> str:
    """Of the reference: its model directory, and the code that runs it."""
    code = (code_version(_REPOSITORY / module, _REPOSITORY) for module in _REFERENCE_CODE)
    return " ".join([payload_sha256(init), *code])
