"""Turns of a conversation as the formats write them, to messages."""

from typing import Any

from components.collect.importers.record import MediaSource, Record, Refusal, given_id, mapping, place_media, text
from model.data.schema import Message

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}


def read_turns(turns: Any) -> list[Message]:
    """``[{from, value}]`` or ``[{role, content}]`` as messages, texts as they are.

    Raises:
        Refusal: no list of turns, or one that a row has no place for (a function call, a tool's answer).
    """
    if not isinstance(turns, list) or not turns:
        raise Refusal("conversations are missing or empty")
    messages: list[Message] = []
    for turn in turns:
        turn = mapping(turn, "a turn")
        who = turn.get("from", turn.get("role"))
        role = _ROLES.get(who) if isinstance(who, str) else None
        if role is None:
            raise Refusal(f"a turn of {str(who)[:40]!r} has no place in a row")
        content = turn.get("value", turn.get("content"))
        messages.append({"role": role, "content": text(content, f"the text of a turn of {who!r}")})  # type: ignore[typeddict-item]
    return messages


def conversation(record: dict[str, Any], turns: Any, media: list[MediaSource], place: str) -> Record:
    """A record of a conversation about ``media``; its last message is its answer."""
    messages = read_turns(turns)
    place_media(messages, media)
    return Record(place, id=given_id(record), split=split_of(record), messages=messages, media=media)


def split_of(record: dict[str, Any]) -> str | None:
    """The split that the record names."""
    value = record.get("split")
    return None if value is None else text(value, "split")
