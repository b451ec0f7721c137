"""The weights of a network as its checkpoints name them."""

from torch import Tensor

from model.families.interface import Network


def checkpoint_tensors(network: Network) -> dict[str, Tensor]:
    """What stock transformers and vLLM load: contiguous, where the network's weights lie.

    Router and second projector of a Flash network are left out: both tools stop at tensors that they do not know.
    """
    if network.config.model_type == "internvl":
        from model.flash.checkpoint import FLASH_PREFIXES, module_tensors

        tensors = module_tensors(network).items()
        return {name: x.detach().contiguous() for name, x in tensors if not name.startswith(FLASH_PREFIXES)}
    from model.families.qwen_checkpoint import published_tensors

    return published_tensors(network, nested=network.config.model_type.startswith("qwen3"))
