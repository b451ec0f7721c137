"""The process behind ``scoring.judge``: reads requests, writes verdicts, and is ended by the kernel at its limits.

Run as ``python -m scoring.judge_worker PARENT SECONDS MEMORY_MB``.
"""

import ctypes
import json
import logging
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from scoring.math_answer import load_library, score_math
from scoring.score import Score, score_answer

_PR_SET_PDEATHSIG = 1


def main(parent: int, seconds: float, memory_mb: int) -> None:
    """Serve requests until standard input ends."""
    _end_with(parent)
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    # What a library prints must not stand between the verdicts.
    replies = os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("r+b", buffering=0) as nothing:
        os.dup2(nothing.fileno(), 1)
        replies.write(b"ready\n")
        replies.flush()
        os.dup2(nothing.fileno(), 2)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if request["name"] == "math":
            with suppress(ValueError):  # which scoring says again
                load_library()  # takes a second, which is not the answer's
        # The default action of SIGPROF ends the process, also inside a C function that never returns to Python.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        verdict = _judge(request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps(verdict).encode() + b"\n")
        replies.flush()


def _end_with(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _judge(request: dict[str, Any]) -> dict[str, Any]:
    scorer = score_math if request["name"] == "math" else score_answer
    try:
        score = scorer(**request)
    except ValueError as error:
        if _unusable(scorer, request):
            return {"fault": str(error)[:500]}
        return {"failed": f"{type(error).__name__}: {error}"[:500]}
    except MemoryError:
        return {"failed": "out of memory"}
    except Exception as error:  # noqa: BLE001 - a scorer may raise anything: that is what this process is for
        return {"failed": f"{type(error).__name__}: {error}"[:500]}
    return {"value": score.value, "parsed": score.parsed}


def _unusable(scorer: Callable[..., Score], request: dict[str, Any]) -> bool:
    """Whether the row is to blame for an error, not the answer: then its own reference makes the scorer raise too."""
    if not request["answers"]:
        return True
    try:
        scorer(**request | {"prediction": request["answers"][0]})
    except ValueError:
        return True
    return False


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
