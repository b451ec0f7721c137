"""The language predictor's process: ``python -m serving.language --model DIR``.

The port is bound before torch is imported, so that a port in use is reported at once.
"""

import logging

from model.flash.processor import load_processor
from serving.config import LanguageServerConfig
from serving.process import announce, bind, parse_arguments, run_main


def main(argv: list[str]) -> None:
    """Serve until SIGTERM."""
    config, directory, announcement = parse_arguments(LanguageServerConfig, argv, model=True)
    logging.basicConfig(level=logging.WARNING)
    bound = bind(config.host, config.port)
    announce(announcement, bound.getsockname()[1])
    # Imports no torch: an incomplete directory is reported at once.
    load_processor(directory)
    import torch

    from serving.asgi import serve_http
    from serving.language_app import create_app
    from serving.language_engine import LanguageEngine

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    serve_http(create_app(LanguageEngine(directory, config), config), bound)


if __name__ == "__main__":
    run_main(main)
