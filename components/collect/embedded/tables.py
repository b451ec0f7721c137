"""The tables that vega_datasets' wheel carries, as labelled series of numbers to draw."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from components.collect.embedded.config import Table
from components.collect.embedded.fonts import package_directory

SOURCE = "vega_datasets"
LICENSE = "MIT"  # of the package; docs/data.md
_MISSING = ("", "NA")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

Record = dict[str, Any]


@dataclass(frozen=True)
class Series:
    """A column of a table over its labels.

    Attributes:
        table: its name.
        title: what the numbers are.
        labels: distinct, in the order of the table.
        values: rounded to three significant digits: what is drawn is what is asked for.
        ordered: the labels follow each other in time.
    """

    table: Table
    title: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    ordered: bool


@dataclass(frozen=True)
class _Columns:
    """How a table becomes series: for each value of ``group``, the mean of each column of ``values`` by label."""

    label: str
    values: dict[str, str]
    group: str = ""
    ordered: bool = True
    suffix: str = "json"


_TABLES: dict[Table, _Columns] = {
    "airports": _Columns("state", {"latitude": "Mean latitude of airports"}, ordered=False, suffix="csv"),
    "barley": _Columns("variety", {"yield": "Barley yield"}, group="site", ordered=False),
    "cars": _Columns(
        "Year",
        {"Miles_per_Gallon": "Miles per gallon", "Horsepower": "Horsepower", "Weight_in_lbs": "Weight (lbs)"},
        group="Origin",
    ),
    "crimea": _Columns("date", {"disease": "Deaths by disease", "wounds": "Deaths by wounds"}),
    "driving": _Columns("year", {"miles": "Miles per person", "gas": "Price of gas"}),
    "iowa-electricity": _Columns("year", {"net_generation": "Electricity"}, group="source", suffix="csv"),
    "iris": _Columns(
        "species",
        {
            "sepalLength": "Sepal length",
            "sepalWidth": "Sepal width",
            "petalLength": "Petal length",
            "petalWidth": "Petal width",
        },
        ordered=False,
    ),
    "ohlc": _Columns("date", {"close": "Volatility, close", "high": "Volatility, high"}),
    "seattle-temps": _Columns("date", {"temp": "Temperature, Seattle"}, suffix="csv"),
    "seattle-weather": _Columns(
        "date", {"temp_max": "Highest temperature", "wind": "Wind", "precipitation": "Rain"}, suffix="csv"
    ),
    "sf-temps": _Columns("date", {"temp": "Temperature, San Francisco"}, suffix="csv"),
    "stocks": _Columns("date", {"price": "Price"}, group="symbol", suffix="csv"),
    "us-employment": _Columns(
        "month",
        {"construction": "Construction jobs", "retail_trade": "Retail jobs", "mining_and_logging": "Mining jobs"},
        suffix="csv",
    ),
    "wheat": _Columns("year", {"wheat": "Price of wheat", "wages": "Wages"}),
}


@lru_cache(maxsize=32)
def table_series(table: Table) -> tuple[Series, ...]:
    """All series of a table with at least three numbers.

    Raises:
        InputError: vega_datasets is not installed.
    """
    columns = _TABLES[table]
    sums: dict[tuple[str, str], dict[str, tuple[float, int]]] = {}
    for record in _records(table, columns.suffix):
        if (text := str(record[columns.label])) in _MISSING:
            continue
        label = _label(table, text)
        for column, title in columns.values.items():
            if (number := record.get(column)) in (None, ""):
                continue
            series = sums.setdefault((f"{record[columns.group]}" if columns.group else "", title), {})
            total, count = series.get(label, (0.0, 0))
            series[label] = (total + float(number), count + 1)
    return tuple(
        Series(
            table,
            f"{title}, {group}" if group else title,
            tuple(series),
            tuple(rounded(total / count) for total, count in series.values()),
            columns.ordered,
        )
        for (group, title), series in sums.items()
        if len(series) >= 3
    )


def rounded(value: float) -> float:
    """Three significant digits."""
    return float(f"{value:.3g}")


def written(value: float) -> str:
    """A number as it is printed and answered: "0.25", "39.8", "36200"."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:g}"


def _records(table: Table, suffix: str) -> Iterable[Record]:
    path = package_directory("vega_datasets") / "_data" / f"{table}.{suffix}"
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file) if suffix == "csv" else json.load(file)


def _label(table: Table, text: str) -> str:
    """A date as people label an axis; anything else as it is."""
    match table:
        case "cars" | "iowa-electricity":
            return text[:4]
        case "crimea" | "us-employment":
            return f"{_MONTHS[int(text[5:7]) - 1]} {text[2:4]}"
        case "seattle-temps" | "sf-temps":
            return _MONTHS[int(text[5:7]) - 1]
        case "seattle-weather":
            return f"{_MONTHS[int(text[5:7]) - 1]} {text[2:4]}"
        case "ohlc":
            return f"{_MONTHS[int(text[5:7]) - 1]} {int(text[8:10])}"
        case "stocks":
            month, _, year = text.split()
            return f"{month} {year[2:]}"
        case _:
            return text
