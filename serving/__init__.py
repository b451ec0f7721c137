"""Decoupled serving of a model: vision predictor, language predictor, gateway (InternVL3.5, section 3.4).

Three processes. ``vision`` and ``language`` each load one half of a model directory; ``gateway`` loads none and
runs without torch. ``launch`` starts and stops the three on one machine. Imports only model, scoring and
planning; modules on the gateway's side import no torch.
"""
