"""Layouts of widgets as programs have them: rows and columns of labelled widgets, and where each lies in a window."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from components.collect.embedded.config import ScreenLayout

Box = tuple[int, int, int, int]
Kind = Literal["button", "entry", "check", "tab", "label", "item", "slider", "space"]
_GAP = 4


@dataclass(frozen=True)
class Widget:
    """A widget: its kind, its label, and how many times as wide (or high) as its neighbours it is."""

    kind: Kind
    label: str
    weight: float = 1.0


@dataclass(frozen=True)
class Group:
    """Widgets and groups side by side (a row) or below each other (a column), sharing its room by their weights."""

    direction: Literal["row", "column"]
    members: "Sequence[Widget | Group]"
    weight: float = 1.0


def place_widgets(group: Group, box: Box) -> Iterator[tuple[Widget, Box]]:
    """The widgets of a group with their boxes within ``box``, which they fill but for gaps."""
    left, top, right, bottom = box
    across = group.direction == "row"
    start, room = (left, right - left) if across else (top, bottom - top)
    room -= _GAP * (len(group.members) - 1)
    total, before = sum(member.weight for member in group.members), 0.0
    for number, member in enumerate(group.members):
        first = round(start + room * before / total) + _GAP * number
        before += member.weight
        last = round(start + room * before / total) + _GAP * number
        inner = (first, top, last, bottom) if across else (left, first, right, last)
        if isinstance(member, Group):
            yield from place_widgets(member, inner)
        else:
            yield member, inner


def _row(*members: Widget | Group, weight: float = 1.0) -> Group:
    return Group("row", members, weight)


def _column(*members: Widget | Group, weight: float = 1.0) -> Group:
    return Group("column", members, weight)


def _of(kind: Kind, *labels: str) -> list[Widget]:
    return [Widget(kind, label) for label in labels]


LAYOUTS: dict[ScreenLayout, tuple[str, Group]] = {
    "calculator": (
        "Calculator",
        _column(
            Widget("entry", "Result", 1.2),
            _row(*_of("button", "7", "8", "9", "Clear")),
            _row(*_of("button", "4", "5", "6", "Times")),
            _row(*_of("button", "1", "2", "3", "Minus")),
            _row(*_of("button", "0", "Point", "Equals", "Plus")),
        ),
    ),
    "checkout": (
        "Checkout",
        _column(
            _row(*_of("tab", "Cart", "Address", "Payment")),
            _row(Widget("entry", "Card number", 2), Widget("entry", "Code")),
            _row(*_of("entry", "Street", "Town")),
            _row(*_of("check", "Gift wrap", "Express")),
            _row(Widget("button", "Back"), Widget("space", ""), Widget("button", "Pay now")),
        ),
    ),
    "editor": (
        "Editor",
        _column(
            _row(*_of("tab", "File", "Edit", "View", "Help")),
            _row(*_of("button", "New", "Open", "Save", "Undo", "Redo")),
            _row(Widget("entry", "Text", 3), _column(*_of("item", "Outline", "Notes", "Search")), weight=4),
            _row(*_of("label", "Line 1", "UTF-8")),
        ),
    ),
    "files": (
        "Files",
        _column(
            _row(Widget("button", "Up", 0.6), Widget("entry", "Path", 3), Widget("button", "Refresh")),
            _row(
                _column(*_of("item", "Home", "Desktop", "Music", "Trash")),
                _column(*_of("item", "report.txt", "photo.png", "table.csv", "notes.md"), weight=2),
                weight=4,
            ),
            _row(Widget("space", ""), *_of("button", "Delete", "Copy", "Select")),
        ),
    ),
    "login": (
        "Sign in",
        _column(
            Widget("label", "Welcome"),
            Widget("entry", "User name"),
            Widget("entry", "Password"),
            _row(*_of("check", "Stay signed in", "Show password")),
            _row(*_of("button", "Cancel", "Sign in")),
            _row(*_of("tab", "Register", "Lost password")),
        ),
    ),
    "mail": (
        "Mail",
        _row(
            _column(Widget("button", "Compose"), *_of("item", "Inbox", "Sent", "Drafts", "Spam")),
            _column(
                _row(*_of("button", "Reply", "Forward", "Archive")),
                Widget("entry", "Subject"),
                Widget("entry", "Message", 4),
                _row(*_of("button", "Attach", "Send")),
                weight=2.2,
            ),
        ),
    ),
    "player": (
        "Player",
        _column(
            _row(*_of("tab", "Songs", "Albums", "Artists")),
            _row(_column(*_of("item", "Track 1", "Track 2", "Track 3")), Widget("slider", "Volume", 1.4), weight=3),
            Widget("slider", "Position"),
            _row(*_of("button", "Previous", "Play", "Stop", "Next")),
            _row(*_of("check", "Shuffle", "Repeat")),
        ),
    ),
    "settings": (
        "Settings",
        _row(
            _column(*_of("tab", "General", "Display", "Sound", "Network")),
            _column(
                *_of("check", "Dark mode", "Large text", "Updates"),
                Widget("slider", "Brightness"),
                Widget("entry", "Language"),
                _row(*_of("button", "Reset", "Apply", "Close")),
                weight=2.5,
            ),
        ),
    ),
}
"""Title and contents of each window."""
