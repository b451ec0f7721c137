"""How a vLLM server gets the trainer's weights between two rollouts.

On the CPU, or where both see one file system, the server reloads a directory (``reload_weights``). On GPUs the weights
go from memory to memory through vLLM's weight-transfer API with NCCL: the trainer is rank 0 of a group of its own with
the server's workers, and broadcasts one parameter after the other.
"""

import base64
import shutil
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from model.families.interface import Network, Processor
from model.families.opening import save_network
from model.families.weights import checkpoint_tensors

if TYPE_CHECKING:
    from model.training.vllm_rollout import VllmServer

_REFUSED_WITHIN_S = 0.5
_T = TypeVar("_T")


class DirectoryTransfer:
    """Writes the model and has the server read it.

    Args:
        directory: where; replaced at every transfer. The server must see it under the same path.
        processor: of the network.
    """

    def __init__(self, directory: Path, processor: Processor) -> None:
        self.directory, self.processor = directory.resolve(), processor

    def send(self, network: Network, server: "VllmServer") -> None:
        """See ``WeightTransfer``."""
        shutil.rmtree(self.directory, ignore_errors=True)
        save_network(network, self.processor, self.directory)
        server.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(self.directory)}})


class NcclTransfer:
    """Broadcasts the weights over NCCL (vLLM's backend ``nccl``; start the server with
    ``--weight-transfer-config '{"backend": "nccl"}'``).

    The group is made at the first transfer, from a unique id that goes to the server with its request. vLLM's workers
    open it with a sum over one element, which the trainer has to take part in.
    """

    def __init__(self) -> None:
        self._group: object | None = None

    def send(self, network: Network, server: "VllmServer") -> None:
        """See ``WeightTransfer``."""
        if self._group is None:
            self._group = self._join(server, network.device)
        weights, group = checkpoint_tensors(network), self._group

        def broadcast() -> None:
            for tensor in weights.values():
                torch.cuda.nccl.broadcast([tensor], root=0, comms=[group])

        server.post("/start_weight_update")
        # The server answers when it has everything, so it is asked beside the broadcast.
        told = apart(partial(server.post, "/update_weights", {"update_info": update_info(weights)}), network.device)
        _with_workers(told, broadcast, network.device)
        server.post("/finish_weight_update", {})

    def _join(self, server: "VllmServer", device: torch.device) -> object:
        from torch.cuda import nccl

        workers = int(server.get("/get_world_size")["world_size"])
        unique_id = nccl.unique_id()

        def join() -> object:
            group = nccl.init_rank(workers + 1, unique_id, 0)
            nccl.all_reduce([torch.zeros(1, device=device)], comms=[group])
            return group

        wanted = {"init_info": init_info(unique_id, workers)}
        return _with_workers(apart(partial(server.post, "/init_weight_transfer_engine", wanted), device), join, device)


def apart(work: Callable[[], _T], device: torch.device) -> "Future[_T]":
    """What comes of ``work`` in a thread of its own, without gradients, on ``device``. It may wait for ever: the thread
    does not keep the process."""
    found: Future[_T] = Future()

    def run() -> None:
        try:
            with torch.no_grad(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                found.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it goes to who waits
            found.set_exception(error)

    Thread(target=run, name="weights", daemon=True).start()
    return found


def _with_workers(told: "Future[Any]", collective: Callable[[], _T], device: torch.device) -> _T:
    """What comes of a collective operation with the server's workers, when the server has answered too.

    A server that takes part answers at the end. One that refuses does so at once or later; the operation, which would
    wait for its workers for ever, is then not begun or left behind.

    Raises:
        InputError: it refuses.
    """
    if wait([told], _REFUSED_WITHIN_S).done:
        told.result()
    running = apart(collective, device)
    wait([running, told], return_when=FIRST_COMPLETED)
    if told.done():
        told.result()
    found = running.result()
    told.result()
    return found


def init_info(unique_id: bytes, workers: int) -> dict[str, object]:
    """What the server's workers need to join: they are ranks 1 to ``workers``."""
    return {
        "nccl_unique_id_b64": base64.b64encode(unique_id).decode(),
        "rank_offset": 1,
        "world_size": workers + 1,
        "packed": False,
    }


def update_info(weights: dict[str, Tensor]) -> dict[str, list]:
    """Names, types and shapes of what is broadcast, in that order."""
    return {
        "names": list(weights),
        "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()],
        "shapes": [list(tensor.shape) for tensor in weights.values()],
    }
