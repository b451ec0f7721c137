"""``languages`` keeps rows in an allowed language, and lets short ones pass."""

import pytest

from components.curate.engine import apply_recipe
from components.curate.language import identify, judge, said
from components.curate.model_sections import Languages
from components.curate.recipe import Decode, Schema
from model.data.errors import InputError
from model.data.schema import scorer
from model.data.shards import open_dataset, write_dataset

# The first article of the Universal Declaration of Human Rights (United Nations, public domain).
ARTICLE_ONE = {
    "en": "All human beings are born free and equal in dignity and rights.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "zh": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心。",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
}


def text_row(row_id, answer, question="?"):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {
        "id": row_id,
        "source": "test",
        "license": "CC0-1.0",
        "media": [],
        "messages": turns,
        "task": "text",
        "answers": [answer],
        "scorer": scorer("exact"),
    }


@pytest.mark.parametrize(("language", "text"), ARTICLE_ONE.items())
def test_a_sentence_is_told_for_what_it_is(language, text):
    assert identify(text).language == language
    assert identify(text).probability > 0.8


def test_only_allowed_languages_stay_and_short_texts_pass():
    section = Languages(allowed=("en", "fr"))
    for language, text in ARTICLE_ONE.items():
        reason, guess = judge(text, section)
        assert (reason is None) == (language in section.allowed)
        assert guess.language == language
    assert judge("Rechten geboren 1234567890 1234567890", section) == (None, None)


def test_letters_that_are_no_language_are_told_as_that():
    assert judge("xkq zzv pqw rrt kkl mmn bbv qqx", Languages())[0].startswith("zxx (")
    assert judge("xkq zzv pqw rrt kkl mmn bbv qqx", Languages(allowed=("zxx",)))[0] is None


def test_a_text_that_is_half_in_another_language_is_refused_by_its_probability():
    mixed = "the weather vom Bahnhof today is zur Zeit not so schön in town"
    reason, guess = judge(mixed, Languages(allowed=("en", "de"), min_probability=0.999))
    assert guess.probability < 0.999
    assert reason == f"{guess.language} is likeliest with {guess.probability:.2f}; the least is 0.999"
    assert judge(mixed, Languages(allowed=("en", "de"), min_probability=0.1))[0] is None


def test_placeholders_are_not_part_of_what_is_said():
    turns = [{"content": "<image>\nWhat is this?"}, {"content": " A cat. "}]
    assert said(turns) == "What is this?\nA cat."


def test_in_a_recipe_the_row_keeps_its_language_as_a_fact(tmp_path):
    write_dataset(tmp_path / "rows", [text_row(code, text) for code, text in ARTICLE_ONE.items()])
    recipe = (Schema(), Decode(), Languages(allowed=("en", "de")))
    rows = apply_recipe(open_dataset(tmp_path / "rows"), recipe, tmp_path / "state").rows
    assert [ids for ids, reason in zip(rows.fact("id"), rows.reasons, strict=True) if reason is None] == ["en", "de"]
    assert rows.fact("language") == list(ARTICLE_ONE)
    assert rows.reasons[2].startswith("language: fr (")


def test_an_unknown_code_is_the_users_mistake(tmp_path):
    write_dataset(tmp_path / "rows", [text_row("a", "b")])
    recipe = (Schema(), Decode(), Languages(allowed=("english",)))
    with pytest.raises(InputError, match="'english' is not a language"):
        apply_recipe(open_dataset(tmp_path / "rows"), recipe, tmp_path / "state")
