"""Configuration of the bounded cache of an endless video. Imports no torch."""

from pydantic import Field

from model.config import Section


class CacheConfig(Section):
    """What survives in the cache (StreamingVLM, section 3.1; the defaults are the published ones)."""

    text_sink: int = Field(512, ge=0)
    """First tokens of the earlier commentary, kept for ever."""
    text_window: int = Field(512, ge=0)
    """Latest tokens of the earlier commentary."""
    vision_window_seconds: float = Field(16.0, gt=0)
    """Seconds of video whose visual tokens are kept."""
    reply_window_seconds: float = Field(16.0, gt=0)
    """Replies this recent stay beside their video; older ones join the earlier commentary."""
    frames_per_second: float = Field(2.0, gt=0)
    """Frames taken from the video."""
    seconds_per_turn: float = Field(1.0, gt=0)
    """Video seconds between two replies."""
    max_new_tokens_per_turn: int = Field(20, gt=0)
    """Longest reply."""
