"""Configuration of the InternVL3.5 network. Imports no torch."""

from pathlib import Path

from pydantic import Field, model_validator

from model.config import Section

ENGLISH_SYSTEM_PROMPT = "Answer briefly."


class VisionConfig(Section):
    """InternViT (reference: InternVL3.5, section 2.1; the defaults are InternViT-300M)."""

    hidden_size: int = Field(1024, gt=0)
    """Width of the tower."""
    num_hidden_layers: int = Field(24, gt=0)
    """Transformer layers."""
    num_attention_heads: int = Field(16, gt=0)
    """Heads of each layer."""
    intermediate_size: int = Field(4096, gt=0)
    """Width inside the MLP."""
    image_size: int = Field(448, gt=0)
    """Side of a tile in pixels."""
    patch_size: int = Field(14, gt=0)
    """Side of a patch in pixels."""
    norm_type: str = Field("layer_norm", pattern="^(layer_norm|rms_norm)$")
    """`layer_norm` (300M) or `rms_norm` (6B)."""
    use_qk_norm: bool = False
    """Normalise queries and keys over the whole width (6B)."""
    attention_bias: bool = True
    """Biases of queries, keys and values (300M)."""
    layer_scale_init_value: float = Field(0.1, gt=0)
    """Start of the learned scale of each residual branch; a shallow tower that starts from nothing learns faster with
    1."""
    position_init_std: float = Field(0.02, gt=0)
    """Deviation of new position embeddings."""

    @model_validator(mode="after")
    def _divisible(self) -> "VisionConfig":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size must be a multiple of num_attention_heads")
        if self.image_size % self.patch_size:
            raise ValueError("image_size must be a multiple of patch_size")
        return self


class YarnConfig(Section):
    """YaRN scaling of the rotary frequencies (arXiv 2309.00071; the defaults are GPT-OSS-20B)."""

    factor: float = Field(32.0, ge=1)
    """Context length over the original one."""
    original_max_position_embeddings: int = Field(4096, gt=0)
    """Positions that the frequencies were made for."""
    beta_fast: float = Field(32.0, gt=0)
    """Frequencies that turn more often than this within the original context are left alone."""
    beta_slow: float = Field(1.0, gt=0)
    """Frequencies that turn less often than this are slowed down by the whole factor."""
    truncate: bool = False
    """Round the borders between the two to whole frequencies."""


class LanguageConfig(Section):
    """A causal language model of transformers (the defaults are Qwen3-0.6B)."""

    model_type: str = "qwen3"
    """Its name in transformers."""
    hidden_size: int = Field(1024, gt=0)
    """Width of the model."""
    num_hidden_layers: int = Field(28, gt=0)
    """Transformer layers."""
    num_attention_heads: int = Field(16, gt=0)
    """Query heads of each layer."""
    num_key_value_heads: int = Field(8, gt=0)
    """Key and value heads, shared by groups of query heads."""
    head_dim: int = Field(128, gt=0)
    """Width of a head."""
    intermediate_size: int = Field(3072, gt=0)
    """Width inside the MLP."""
    max_position_embeddings: int = Field(40960, gt=0)
    """Longest sequence in tokens."""
    vocab_size: int | None = Field(None, gt=0)
    """Rows of the embedding; None takes as many as the tokenizer has ids."""
    rope_theta: float = Field(1e6, gt=0)
    """Base of the rotary frequencies."""
    yarn: YarnConfig | None = None
    """Scaling of the rotary frequencies to longer contexts (GPT-OSS)."""
    tie_word_embeddings: bool = True
    """The output head is the input embedding (Qwen3 up to 4B)."""
    extra: dict[str, int | float | bool | str] = Field(default_factory=dict)
    """Further keys of the transformers configuration (experts of a mixture, ...)."""


class ModelConfig(Section):
    """ViT, pixel unshuffle, projector, language model, tiling."""

    vision: VisionConfig = VisionConfig()
    """The vision tower."""
    language: LanguageConfig = LanguageConfig()
    """The language model."""
    vision_checkpoint: Path | None = None
    """Local directory of a pretrained vision tower; random weights when None."""
    language_checkpoint: Path | None = None
    """Local directory of a pretrained language model; random weights when None."""
    downsample_ratio: float = Field(0.5, gt=0, le=1)
    """Pixel unshuffle keeps this share of each side of the patch grid."""
    min_tiles: int = Field(1, ge=1)
    """Fewest tiles of an image, thumbnail not counted."""
    max_tiles: int = Field(12, ge=1)
    """Most tiles of an image, thumbnail not counted."""
    system_prompt: str = ENGLISH_SYSTEM_PROMPT
    """Stands before every conversation; saved in the chat template."""

    @property
    def rows_per_tile(self) -> int:
        """Visual tokens of one tile: (image_size / patch_size * downsample_ratio) ** 2."""
        return int(self.vision.image_size // self.vision.patch_size * self.downsample_ratio) ** 2

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        if self.min_tiles > self.max_tiles:
            raise ValueError("min_tiles must not exceed max_tiles")
        grid = self.vision.image_size // self.vision.patch_size
        if not (grid * self.downsample_ratio).is_integer():
            raise ValueError("the patch grid must be divisible by 1 / downsample_ratio")
        return self
