"""Hyper-parameters of the objectives beyond next-token prediction. Imports no torch.

A default is a published value; what was never published has no default, so that a profile has to say it.
"""

from typing import Literal

from pydantic import Field, model_validator

from model.config import Section


class MpoObjective(Section):
    """L = w_p L_preference + w_q L_quality + w_g L_generation (InternVL3.5, section 2.3; MPO, arXiv 2411.10442)."""

    preference_weight: float = Field(0.8, ge=0)
    """Of the DPO loss: chosen above rejected."""
    quality_weight: float = Field(0.2, ge=0)
    """Of the BCO loss: each answer good or bad by itself, against a running mean of rewards."""
    generation_weight: float = Field(1.0, ge=0)
    """Of the negative log-likelihood of the chosen answer, per token."""
    generation_length: float | None = Field(None, gt=0)
    """Tokens that this likelihood is divided by; None for the answer's own number (MPO, equation 8). By its own, what
    decides between a short answer and a long one, its first token, weighs more in the short one, and answers shorten;
    by one constant it weighs the same in both (as Dr. GRPO, arXiv 2503.20783, has it for policies)."""
    beta: float = Field(0.1, gt=0)
    """Scale of log(pi / pi_reference) in preference and quality."""

    @model_validator(mode="after")
    def _something(self) -> "MpoObjective":
        if self.preference_weight + self.quality_weight + self.generation_weight == 0:
            raise ValueError("at least one weight must be above zero")
        return self


class GspoObjective(Section):
    """Clipped sequence-level importance ratio s = exp(mean_t log(pi / pi_old)) (InternVL3.5, equations 4 to 6)."""

    epsilon_low: float = Field(gt=0, lt=1)
    """s is clipped at 1 - epsilon_low. No default: the paper does not say it, and the released scripts leave
    0.2, at which a length-normalised ratio is hardly ever clipped (GSPO, arXiv 2507.18071: 3e-4)."""
    epsilon_high: float = Field(gt=0)
    """s is clipped at 1 + epsilon_high (GSPO: 4e-4)."""


FULL_XI, COMPRESSED_XI = 0.25, 0.0625
"""Visual tokens per patch of a tile: of its 1,024 patches, 1/4 makes 256 tokens, 1/16 makes 64."""


class VicoObjective(Section):
    """Consistency: KL(reference at full resolution || model at a random compression) (InternVL3.5, section 2.3)."""

    xi: tuple[Literal[0.25, 0.0625], ...] = Field((FULL_XI, COMPRESSED_XI), min_length=1)
    """Visual tokens per patch, drawn uniformly: 1/4 or 1/16, which are what the two projectors make. A value that is
    named twice is drawn twice as often."""
    draw: Literal["image", "mixed", "tile"] = "image"
    """What has one xi: an image, as published; ``mixed`` draws for every tile of half of the images,
    ``tile`` for every tile of all. The router chooses by tile, so images that are compressed in part are what the model
    will see; drawn by image it never learns from one."""
    next_token_weight: float = Field(0.0, ge=0)
    """Of the next-token loss on the same response tokens. The paper's formula has none; whether one was added is not
    said."""


class RouterObjective(Section):
    """Cross-entropy of the Visual Resolution Router on labels from the loss ratio (InternVL3.5, section 2.3).

    r = L(1/16) / L(1/4); a tile is labelled `compress` when r is under the percentile of the latest r.
    """

    percentile: float = Field(50.0, gt=0, lt=100)
    """The paper aims at balanced labels, so 50."""
    window: int = Field(gt=0)
    """Latest ratios among which the percentile is taken. Not published."""
    floor: float = Field(gt=0)
    """Added to both losses, in nats per token: L(1/4) is a divergence from the reference, and may be 0. Not
    published."""
    measure: Literal["image", "tile"]
    """What is compressed to measure L(1/16): all tiles of an image, which then share their label, or one tile, while
    the others stay. Not published."""
