"""A real vLLM server on the CPU, in an environment of its own."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.serving.fakes import unused_port, wait_for

VLLM_PYTHON = os.environ.get("FOVEA_VLLM_PYTHON", "")
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@contextmanager
def serving_vllm(model: Path, log: Path, options: Sequence[str], **settings: str) -> Iterator[str]:
    """Base URL of a server of ``model``; ``settings`` are further variables of its environment."""
    port = unused_port()
    fixed = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"]
    fixed += ["--host", "127.0.0.1", "--port", str(port)]
    command = [VLLM_PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *fixed, *options]
    with log.open("wb") as stream:
        environment = os.environ | SETTINGS | settings
        server = subprocess.Popen(
            command, env=environment, cwd=log.parent, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        wait_for(lambda: _healthy(port) or server.poll() is not None, seconds=600)
        assert server.poll() is None, log.read_text()[-4000:]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def _healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
