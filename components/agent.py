"""torchrun, bound to the process that started it: ``python -m components.agent PARENT SCRATCH ARGUMENTS...``.

It ends without a traceback, and says in ``agent.json`` of the scratch directory with which status the ranks ended that
ended first, by rank.
"""

import json
import sys
from pathlib import Path

from components.process import die_with_parent
from model.training.stopping import STOPPED_STATUS


def main(parent: int, scratch: Path, arguments: list[str]) -> int:
    """Run torchrun; returns the exit status."""
    die_with_parent(parent)
    # These take seconds: after the line above.
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.run(run.parse_args(arguments))
    except SignalException:
        return STOPPED_STATUS
    except ChildFailedError as error:
        ended = {rank: failure.exitcode for rank, failure in error.failures.items()}
        (scratch / "agent.json").write_text(json.dumps(ended))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
