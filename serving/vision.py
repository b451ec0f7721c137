"""The vision predictor's process: ``python -m serving.vision --model DIR`` (Open Inference Protocol, gRPC V2).

kserve's servicer and model run under a gRPC server of our own: kserve's listens on every interface. The port is bound
before torch is imported, so that a port in use is reported at once.
"""

import asyncio
import logging
import signal
from pathlib import Path

import grpc
from prometheus_client import start_http_server

from model.data.errors import InputError
from model.flash.processor import load_processor
from serving.config import VisionServerConfig
from serving.process import announce, parse_arguments, run_main

_GRACE_S = 2.0


def main(argv: list[str]) -> None:
    """Serve until SIGTERM."""
    config, directory, announcement = parse_arguments(VisionServerConfig, argv, model=True)
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(_serve(config, directory, announcement))


async def _serve(config: VisionServerConfig, directory: Path, announcement: Path | None) -> None:
    # kserve's interceptor turns its errors, and those our model raises, into gRPC statuses.
    from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor

    limits = [
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        # Without this a second server would share the port in silence.
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(interceptors=(ExceptionToStatusInterceptor(),), options=limits)
    host = f"[{config.host}]" if ":" in config.host else config.host
    try:
        port = server.add_insecure_port(f"{host}:{config.port}")
    except RuntimeError as error:
        raise InputError(f"cannot listen on {config.host} port {config.port}: in use, or not an address") from error
    announce(announcement, port)
    # Imports no torch: an incomplete directory is reported at once.
    load_processor(directory)
    _register(server, config, directory)
    await server.start()
    if config.metrics_port is not None:
        start_http_server(config.metrics_port, config.host)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    await server.stop(_GRACE_S)


def _register(server: grpc.aio.Server, config: VisionServerConfig, directory: Path) -> None:
    """Load the model and add it to ``server``."""
    import torch
    from kserve import ModelRepository
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
    from kserve.protocol.grpc.servicer import InferenceServicer
    from kserve.protocol.model_repository_extension import ModelRepositoryExtension

    from serving.vision_predictor import VisionPredictor

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    predictor = VisionPredictor(directory, config)
    predictor.load()
    repository = ModelRepository()
    repository.update(predictor)
    servicer = InferenceServicer(DataPlane(repository), ModelRepositoryExtension(repository))
    add_GRPCInferenceServiceServicer_to_server(servicer, server)


if __name__ == "__main__":
    run_main(main)
