"""build_preferences: answers are sampled once, judged by the rows' scorers, and paired by the published rules."""

import json
import os
import socket
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from components.build_preferences import engines, step
from components.build_preferences.judging import keeps_format
from components.build_preferences.pairing import answer_pairs, dropout_pair, entailed
from components.build_preferences.queries import beginning, without_media
from components.build_preferences.step import run
from components.context import StepContext
from components.rollouts import Answer, read_rollouts
from model.data.artifact import payload_sha256
from model.data.errors import InputError
from model.data.schema import check_row, scorer
from model.data.shards import open_dataset
from model.training.policy_config import SamplingServer
from model.training.rollout import NetworkSampler
from scoring.score import score_answer
from tests.tiny import question_row
from tests.tiny_rollouts import SMALL, guessing_rows, save_guesser, save_questions

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(model directory, dataset directory, rows)."""
    import torch

    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("guesser")
    rows = guessing_rows(42)
    return save_guesser(directory / "model"), save_questions(directory / "rows", rows), rows


def build(world, directory, config=SMALL, context=None, rows=None):
    context = context or StepContext(state_dir=directory / "state")
    outputs = {name: directory / name for name in ("pairs", "rollouts")}
    result = run(config, rows=rows or world[1], model=world[0], **outputs, context=context)
    return outputs["pairs"], outputs["rollouts"], result


@pytest.fixture(scope="module")
def built(world, tmp_path_factory):
    return build(world, tmp_path_factory.mktemp("built"))


def identities(pairs, rollouts):
    return [payload_sha256(pairs), payload_sha256(rollouts), (rollouts / "report.html").read_bytes()]


def test_right_answers_are_chosen_over_wrong_ones_as_the_rows_own_scorer_says(built, world):
    by_id = {row["id"]: row for row in world[2]}
    pairs = list(open_dataset(built[0], verify=True).rows())
    assert {check_row(pair) for pair in pairs} == {None}
    for pair in pairs:
        row = by_id[pair["id"].rpartition("/pair-")[0]]
        assert (pair["media"], pair["messages"], pair["answers"]) == (row["media"], row["messages"], row["answers"])
        if row["task"] == "caption":
            assert pair["chosen"] == "7 8 7 8" != pair["rejected"] and pair["rejected"].startswith("7 8")
        else:
            judge = row["scorer"]["name"], row["scorer"]["parameters"]
            assert score_answer(*judge, pair["chosen"], row["answers"]).value == 1
            assert score_answer(*judge, pair["rejected"], row["answers"]).value == 0
    assert {pair["task"] for pair in pairs} == {"read", "text", "caption"}


def test_every_row_gave_pairs_or_is_a_reject_that_says_why(built, world):
    dataset = open_dataset(built[0])
    paired = {pair["id"].rpartition("/pair-")[0] for pair in dataset.rows()}
    rejects = {reject["id"]: reject["reason"] for reject in dataset.rejects()}
    assert paired.isdisjoint(rejects) and paired | set(rejects) == {row["id"] for row in world[2]}
    assert any("none of 12 answers is right" in reason for reason in rejects.values())
    assert dataset.manifest["statistics"]["pairs"] == len(dataset)


def test_rollouts_hold_every_answer_and_the_accuracy_of_every_query(built, world):
    queries = {query.id: query for query in read_rollouts(built[1])}
    assert list(queries) == [row["id"] for row in world[2]]
    for row in world[2]:
        query = queries[row["id"]]
        if row["task"] == "caption":
            assert query.accuracy is None and len(query.answers) == 1
            continue
        right = [score_answer("numeric", "{}", a.text, row["answers"]).value == 1 for a in query.answers]
        stopped = [a.finish_reason == "stop" for a in query.answers]
        assert [a.outcome == "right" for a in query.answers] == [r and s for r, s in zip(right, stopped, strict=True)]
        assert query.accuracy == sum(a.outcome == "right" for a in query.answers) / 12
    numbers = built[2].numbers
    assert numbers["answers_right"] + numbers["answers_wrong"] + numbers["answers_malformed"] == 28 * 12
    assert numbers["answers_continued"] == 14


def test_the_lengths_of_chosen_and_rejected_answers_are_means_over_pairs_of_sampled_ones(built):
    answers = {query.id: {a.text: a.tokens for a in query.answers} for query in read_rollouts(built[1])}
    pairs = [pair for pair in open_dataset(built[0]).rows() if pair["task"] != "caption"]
    for side in ("chosen", "rejected"):
        tokens = [answers[pair["id"].rpartition("/pair-")[0]][pair[side]] for pair in pairs]
        assert built[2].numbers[f"{side}_tokens"] == pytest.approx(sum(tokens) / len(pairs))


def test_the_report_shows_histograms_families_and_examples_with_their_images(built):
    page = (built[1] / "report.html").read_text()
    for text in ("Accuracy of a query", "Pairs of a query", "Length of an answer", "caption", "rejected"):
        assert text in page
    assert 'src="data:image/png;base64,' in page

    class Addresses(HTMLParser):
        found: list = []

        def handle_starttag(self, tag, attrs):
            self.found += [value for name, value in attrs if name in ("src", "href")]

    Addresses().feed(page)
    assert Addresses.found and all(address.startswith("data:image/") for address in Addresses.found)


def test_stopped_between_any_two_chunks_and_run_again_it_gives_the_same_bytes(built, world, tmp_path, monkeypatch):
    sample, asked = NetworkSampler.sample, []

    def stop_in_the_second_chunk(self, queries, count, sampling, seed):
        asked.extend(query.row["id"] for query in queries)
        if len(asked) > 32:
            raise KeyboardInterrupt
        return sample(self, queries, count, sampling, seed)

    context = StepContext(state_dir=tmp_path / "state")
    monkeypatch.setattr(NetworkSampler, "sample", stop_in_the_second_chunk)
    with pytest.raises(KeyboardInterrupt):
        build(world, tmp_path, context=context)
    assert not (tmp_path / "pairs").exists() and not (tmp_path / "rollouts").exists()
    asked_before = asked[:32]
    asked.clear()
    monkeypatch.setattr(
        NetworkSampler,
        "sample",
        lambda self, queries, *rest: asked.extend(q.row["id"] for q in queries) or sample(self, queries, *rest),
    )
    pairs, rollouts, _ = build(world, tmp_path, context=context)
    assert sorted(asked_before + asked) == sorted(row["id"] for row in world[2])
    assert identities(pairs, rollouts) == identities(*built[:2])


def test_rows_that_were_refused_at_the_first_start_stay_refused(world, tmp_path, monkeypatch):
    """A reference at the border of its time may be refused at one start and accepted at the next."""
    slow = {"read-0": "its scorer numeric rejects its own reference (over 2 s)"}
    monkeypatch.setattr(step, "check_references", lambda *_: dict(slow))
    whole = build(world, tmp_path / "whole")
    sample, asked = NetworkSampler.sample, []

    def stop_in_the_second_chunk(self, queries, *rest):
        asked.extend(queries)
        if len(asked) > 32:
            raise KeyboardInterrupt
        return sample(self, queries, *rest)

    with monkeypatch.context() as first, pytest.raises(KeyboardInterrupt):
        first.setattr(NetworkSampler, "sample", stop_in_the_second_chunk)
        build(world, tmp_path / "killed")
    monkeypatch.setattr(step, "check_references", lambda *_: {})
    again = build(world, tmp_path / "killed")
    assert identities(*again[:2]) == identities(*whole[:2])
    rejects = {reject["id"]: reject["reason"] for reject in open_dataset(again[0]).rejects()}
    assert rejects["read-0"] == slow["read-0"]


@pytest.mark.parametrize("text", ["", "[1]", '{"a"'])
def test_a_damaged_file_of_refused_rows_is_named(world, tmp_path, text):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "refused.json").write_text(text)
    with pytest.raises(InputError, match=r"refused\.json: damaged \(.*\); remove .*state to start anew"):
        build(world, tmp_path)


@pytest.mark.parametrize("stored", ["", '[{"id": "read-0"', "[]", '{"a": 1}'])
def test_a_damaged_file_of_answers_is_named_before_anything_is_sampled(world, tmp_path, monkeypatch, stored):
    answers = tmp_path / "state" / "answers"
    answers.mkdir(parents=True)
    (answers / "00000000.json").write_text(stored)
    monkeypatch.setattr(NetworkSampler, "sample", None)
    with pytest.raises(InputError, match=r"answers/00000000.json: damaged \(.*\); remove it"):
        build(world, tmp_path)


def test_memory_for_decoding_changes_no_answer(built, world, tmp_path):
    small = SMALL.model_copy(update={"decode_tokens": 700})
    pairs, rollouts, _ = build(world, tmp_path, small)
    assert identities(pairs, rollouts) == identities(*built[:2])


def test_at_most_max_queries_of_a_source_are_asked(world, tmp_path):
    pairs, rollouts, result = build(world, tmp_path, SMALL.model_copy(update={"max_queries": 9}))
    assert len(list(read_rollouts(rollouts))) == 9
    reasons = [reject["reason"] for reject in open_dataset(pairs).rejects()]
    assert sum("max_queries 9" in reason for reason in reasons) == 33 == result.numbers["queries_not_asked"]


def test_no_pair_at_all_is_one_line_with_the_numbers(world, tmp_path):
    config = SMALL.model_copy(update={"open_tasks": (), "rollouts": 2})
    rows = [row | {"answers": ["123"]} for row in world[2] if row["task"] != "caption"][:6]
    with pytest.raises(InputError) as error:
        build(world, tmp_path, config, rows=save_questions(tmp_path / "hard", rows))
    assert "6 queries x 2 answers: 0 queries answered always rightly, 6 never, 0 sometimes" in str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "pairs").exists()


def test_rows_that_cannot_be_asked_are_rejects_and_bad_scorers_stop_the_step(world, tmp_path):
    long = question_row("long", [], "7", "7" * 600) | {"scorer": scorer("numeric")}
    own = question_row("own", [], "7") | {"answers": ["seven"], "scorer": scorer("multiple_choice", letters="AB")}
    blind = question_row("blind", [], "7 8 7", task="caption")
    seen = next(row for row in world[2] if row["task"] == "caption")
    wordy = seen | {"id": "wordy", "messages": [*seen["messages"][:-1], {"role": "assistant", "content": "7 8 " * 130}]}
    rows = save_questions(tmp_path / "rows", [*world[2][:9], long, blind, wordy])
    pairs, _, _ = build(world, tmp_path, rows=rows)
    rejects = {reject["id"]: reject["reason"] for reject in open_dataset(pairs).rejects()}
    assert "leaves no room for an answer (max_tokens 512" in rejects["long"]
    assert "no image that could be left out" in rejects["blind"]
    assert rejects["wordy"].startswith("a pair of it may have "), "its image and whole answer are learned from too"
    with pytest.raises(InputError, match="row 'own': multiple_choice: the reference 'seven'"):
        build(world, tmp_path / "again", rows=save_questions(tmp_path / "bad", [*world[2][:3], own]))


def test_a_server_samples_in_place_of_the_model_whose_weights_stay_unread(built, world, tmp_path, monkeypatch):
    from model.families.opening import load_network, load_processor

    here = NetworkSampler(load_network(world[0]), load_processor(world[0]))
    asked = []

    def sample(self, queries, *rest):
        asked.append((self.server, self.model))
        return here.sample(queries, *rest)

    monkeypatch.setattr(engines.VllmSampler, "sample", sample)
    monkeypatch.setattr(engines, "load_network", None)
    server = SamplingServer(url="http://127.0.0.1:8000", model="guesser")
    pairs, rollouts, _ = build(world, tmp_path, SMALL.model_copy(update={"server": server}))
    ((connected, name),) = set(asked)
    assert (connected.url, name) == ("http://127.0.0.1:8000", "guesser")
    with pytest.raises(RuntimeError, match="client has been closed"):
        connected.get("/health")
    assert identities(pairs, rollouts) == identities(*built[:2])


def test_a_server_that_does_not_answer_is_one_line(world, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(engines.VllmServer, "close", lambda self: closed.append(self.url))
    server = SamplingServer(url="http://127.0.0.1:9", model="guesser")
    with pytest.raises(InputError, match=r"row read-0: vLLM at http://127\.0\.0\.1:9: .*ConnectError"):
        build(world, tmp_path, SMALL.model_copy(update={"server": server, "open_tasks": ()}))
    assert closed == ["http://127.0.0.1:9"]


def test_a_server_that_is_too_slow_is_one_line(world, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        server = SamplingServer(url=url, model="guesser", timeout_s=0.2)
        with pytest.raises(InputError, match=r"row read-0: vLLM at http://127\.0\.0\.1:\d+: .*ReadTimeout"):
            build(world, tmp_path, SMALL.model_copy(update={"server": server, "open_tasks": ()}))


@pytest.mark.parametrize("layout", ["text_config", "llm_config", None])
def test_context_and_vocabulary_are_read_in_every_published_layout(tmp_path, layout):
    text = {"vocab_size": 7, "max_position_embeddings": 9}
    (tmp_path / "config.json").write_text(json.dumps({layout: text} if layout else text))
    assert engines.text_settings(tmp_path) == text
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="the language model has no vocab_size"):
        engines.text_settings(tmp_path)


@pytest.mark.slow
def test_killed_while_it_samples_and_run_again_it_gives_the_same_bytes(built, world, tmp_path):
    script = Path(__file__).with_name("kill_preferences.py")
    command = [sys.executable, str(script), str(world[0]), str(world[1]), str(tmp_path), "5"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == 5 and found["seconds"] < 5, "a request to stop is no slower than a kill"
    assert sum(0 < chunks < found["all"] for chunks in found["chunks"]) >= 2, "killed while it samples"
    assert identities(tmp_path / "pairs", tmp_path / "rollouts") == identities(*built[:2])


def answers(**outcomes):
    """Answers "outcome-0", "outcome-1", ... of each outcome."""
    return [
        Answer(f"{outcome}-{number}", 3, "stop", 0.0, outcome) for outcome, n in outcomes.items() for number in range(n)
    ]


def test_fifteen_pairs_of_a_query_are_drawn_the_same_ones_every_time():
    config = step.BuildPreferencesConfig()
    pairs = answer_pairs("row", answers(right=8, wrong=8), config)
    assert len(set(pairs)) == len(pairs) == 15
    assert pairs == answer_pairs("row", answers(right=8, wrong=8), config)
    assert pairs != answer_pairs("other", answers(right=8, wrong=8), config)
    assert len(answer_pairs("row", answers(right=3, wrong=2), config)) == 6


def test_malformed_answers_fill_the_room_that_wrong_ones_leave():
    config = step.BuildPreferencesConfig()
    kinds = [pair.kind for pair in answer_pairs("row", answers(right=3, wrong=2, malformed=20), config)]
    assert kinds == ["correctness"] * 6 + ["format"] * 9
    without = config.model_copy(update={"format_pairs": False})
    assert len(answer_pairs("row", answers(right=3, wrong=2, malformed=20), without)) == 6
    assert answer_pairs("row", answers(right=3, failed=9, continued=9), config) == []


def test_equal_texts_count_once_and_untrainable_ones_never():
    texts = ["seven", "seven", "", "seven<|im_end|>", "see <image>", "\ufffd"]
    both = [Answer(text, 1, "stop", 1.0, "right") for text in texts] + answers(wrong=1) * 3
    assert [pair[1:] for pair in answer_pairs("row", both, step.BuildPreferencesConfig())] == [("seven", "wrong-0")]


@pytest.mark.parametrize(
    ("right", "wrong", "holds"),
    [
        ("7", "7 or 8", True),
        ("Paris", "It is PARIS,  France", True),
        ("two  dogs", "two dogs and a cat", True),
        ("", "anything", True),
        ("7", "17", False),
        ("7", "7.5", False),
        ("7", "3,7", False),
        ("7", "-7", False),
        ("7", "The answer is 7.", True),
        ("cat", "concatenate", False),
        ("7 or 8", "7", False),
        ("(a+b)*", "(a+b)* c", True),
    ],
)
def test_a_wrong_answer_that_holds_the_right_one_is_no_negative(right, wrong, holds):
    assert entailed(right, wrong) is holds


def test_pairs_are_compared_by_their_final_answers():
    right = Answer("<think>7 or 8, so 7</think>\\boxed{7}", 9, "stop", 1.0, "right")
    wrong = Answer("<think>not 7</think>\\boxed{8}", 9, "stop", 0.0, "wrong")
    both = Answer("<think>hm</think>\\boxed{7 or 8}", 9, "stop", 0.0, "wrong")
    pairs = answer_pairs("row", [right, wrong, both], step.BuildPreferencesConfig())
    assert [pair.rejected for pair in pairs] == [wrong.text]


THINK = "<think>Seven and one, that is eight.</think>"


@pytest.mark.parametrize(
    ("asked", "answer", "kept"),
    [
        ("How many?", "eight", True),
        ("How many? Put it in \\boxed{}.", "eight", False),
        ("How many? Put it in \\boxed{}.", "It is \\boxed{8}", True),
        ("Think in <think> and </think>.", THINK + "8", True),
        ("Think in <think> and </think>.", THINK, False),
        ("Think in <think> and </think>.", "<think>hm</think>8", False),
        ("Think in <think> and </think>.", "8", False),
        ("Think in <think> and </think>; \\boxed{}.", THINK + "8", False),
        ("Think in <think> and </think>; \\boxed{}.", THINK + "\\boxed{8}", True),
        ("Think in <think> and </think>; \\boxed{}.", THINK + THINK + "\\boxed{8}", False),
        ("Think in <think> and </think>; \\boxed{}.", "<think>Seven and one, so \\boxed{8}", False),
    ],
)
def test_an_answer_keeps_the_format_that_its_row_asks_for(asked, answer, kept):
    assert keeps_format(question_row("row", [], "8", asked), answer) is kept


def test_half_of_the_words_begin_the_answer_that_is_continued_blind():
    assert beginning("A dog  runs\nover grass.", 0.5) == "A dog"
    assert beginning("A dog  runs\nover grass.", 0.8) == "A dog  runs\nover"
    assert beginning("Dog.", 0.5) == ""
    messages = [{"role": "user", "content": "<image>\nAnd <video>\n<image>?"}, {"role": "assistant", "content": "A"}]
    row = question_row("row", [], "A") | {"messages": messages, "media": [{}]}
    assert without_media(row)["messages"][0]["content"] == "And ?" and without_media(row)["media"] == []


def test_a_continuation_that_is_the_original_gives_no_pair():
    again = [Answer("A dog runs.", 3, "stop", 0.0, "continued")]
    assert dropout_pair("A dog runs. ", again) == []
    assert [pair[1:] for pair in dropout_pair("A cat.", again)] == [("A cat.", "A dog runs.")]
