"""Running a network outside of its engine while ZeRO-3 divides its weights among the processes."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


@contextmanager
def whole_weights(network: nn.Module) -> Iterator[None]:
    """Every process holds all weights, and may run the network as often as it likes; then as before.

    All processes have to enter and leave together. Inside, no hook of a module runs: those of DeepSpeed would divide a
    module's weights again after its forward pass, and wait for the other processes to gather them. Weights must not
    be changed. Without ZeRO-3 there is nothing to do.
    """
    divided = [p for p in network.parameters() if hasattr(p, "ds_id")]
    if not divided:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(divided):
        modules = list(network.modules())
        kept = [{name: getattr(module, name) for name in _HOOKS} for module in modules]
        for module in modules:
            for name in _HOOKS:
                setattr(module, name, OrderedDict())
        try:
            yield
        finally:
            for module, hooks in zip(modules, kept, strict=True):
                for name, found in hooks.items():
                    setattr(module, name, found)
