"""The tokenizer: a byte-level BPE trained on the corpus, or an existing one with the missing special tokens added.

Written as ``tokenizer.json`` and ``tokenizer_config.json``, which stock ``AutoTokenizer`` opens.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from model.data.errors import InputError
from model.data.schema import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER

END_OF_TEXT = "<|endoftext|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    TURN_END,
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
    "<video>",
)
# Words and numbers of up to three digits with the space before them, runs of other signs, line ends. Qwen's split
# with longer numbers: a coordinate is one token and a box four, which is what a short training can afford.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MAX_LENGTH = 32768
_FRAME = ("system\n", "user\n", "assistant\n")  # what the chat template puts around every turn
_TOKENIZER_BYTES = 256 << 20


def train_tokenizer(texts: Iterable[str], vocabulary: int, system_prompt: str) -> Tokenizer:
    """Train a byte-level BPE of at most ``vocabulary`` entries, special tokens included.

    The 256 bytes come first (so that any text can be written), then the merges, then the special tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_with_frame(texts, system_prompt), trainer)
    return _with_special_tokens(tokenizer)


def adopt_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer in ``directory``, with those of SPECIAL_TOKENS that it lacks added at the end.

    Raises:
        InputError: no readable ``tokenizer.json``.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{path}: missing; tokenizer must be a directory with a tokenizer.json")
    if path.stat().st_size > _TOKENIZER_BYTES:
        raise InputError(f"{path}: larger than any tokenizer")
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise InputError(f"{path}: not a tokenizer: {' '.join(str(error).split())[:200]}") from error
    return _with_special_tokens(tokenizer)


def write_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write the two files of a tokenizer directory, in the order that leaves no half-written one behind."""
    partial = directory.with_name(f".{directory.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "model_max_length": _MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        # transformers' InternVLProcessor reads these attributes from the tokenizer.
        "extra_special_tokens": {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    }
    (partial / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    (partial / "tokenizer_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    partial.rename(directory)


def _with_frame(texts: Iterable[str], system_prompt: str) -> Iterator[str]:
    """What a model will see as text: the frame of the turns (twice, so that its words count), and the turns."""
    yield from (*_FRAME, system_prompt) * 2
    for text in texts:
        yield text.replace(IMAGE_PLACEHOLDER, "").replace(VIDEO_PLACEHOLDER, "")


def _with_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer
