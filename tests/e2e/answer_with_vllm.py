"""Answer requests greedily with vLLM's own engine, in vLLM's environment: python answer_with_vllm.py JOB ANSWERS.

JOB is a JSON file {model, language_only, max_new_tokens, conversations}; a conversation is a list of OpenAI messages.
ANSWERS becomes a JSON object {alone, together}: a list of token ids for each conversation, asked one by one and then in
one batch; ``together`` is a text where vLLM raised an error.
"""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    # A language-only engine is what decoupled serving runs: no vision tower, features instead of pixels.
    vision = {"limit_mm_per_prompt": {"image": 0, "video": 0}, "enable_mm_embeds": True}
    engine = LLM(
        model=job["model"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=4,
        # Every request computes its own prompt: nothing is taken from the one before.
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
        **(vision if job["language_only"] else {"limit_mm_per_prompt": {"image": 2, "video": 0}}),
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=job["max_new_tokens"])

    def ask(conversations: list) -> list[list[int]]:
        results = engine.chat(conversations, sampling, chat_template_content_format="openai", use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in results]

    answers = {"alone": [ask([conversation])[0] for conversation in job["conversations"]]}
    try:
        answers["together"] = ask(job["conversations"])
    except ValueError as error:
        answers["together"] = str(error)
    Path(sys.argv[2]).write_text(json.dumps(answers), "utf-8")


if __name__ == "__main__":
    main()
