"""``curate``: every row is written or rejected with a reason, and the reasons are right."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from sklearn.datasets import load_sample_image

from components.context import StepContext
from components.curate.config import CurateConfig
from components.curate.duplicates import (
    Signature,
    near_duplicate_candidates,
    near_pairs,
    reject_near_duplicates,
)
from components.curate.images import inspect_image, perceptual_hash, pixel_difference, reduced_grey
from components.curate.recipe import DEFAULT, Decode, Decontaminate, NearDuplicates, Schema
from components.curate.step import run
from model.data.artifact import payload_sha256
from model.data.errors import InputError
from model.data.schema import image_media, scorer
from model.data.shards import open_dataset, write_dataset

CONFIG = CurateConfig()
CATEGORIES = [section.category for section in DEFAULT]


def encode(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def picture(seed, side=56):
    """A picture like no other: blurred noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def row(index, data=None, answer="3", task="count", question="How many?", row_id=None):
    data = encode(picture(index)) if data is None else data
    return {
        "id": row_id or f"row-{index}",
        "source": "test",
        "license": "CC0-1.0",
        "media": [image_media(data, image_format="PNG", width=56, height=56)],
        "messages": [{"role": "user", "content": f"<image>\n{question}"}, {"role": "assistant", "content": answer}],
        "task": task,
        "answers": [answer],
        "scorer": scorer("exact"),
    }


def text_row(row_id, question, answer="Yes."):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return row(0, row_id=row_id, answer=answer) | {"media": [], "messages": turns}


def curate(directory, rows, heldout=(), config=CONFIG, shards=1):
    write_dataset(directory / "corpus", rows, shards=shards)
    write_dataset(directory / "heldout", heldout)
    outputs = {name: directory / name for name in ("transcriptions", "questions")}
    context = StepContext(state_dir=directory / "state")
    result = run(config, corpus=directory / "corpus", heldout=directory / "heldout", **outputs, context=context)
    return result, *(open_dataset(path, verify=True) for path in outputs.values())


def reasons(*datasets):
    return {reject["id"]: reject["reason"] for dataset in datasets for reject in dataset.rejects()}


def ids(dataset):
    return [one["id"] for one in dataset.rows()]


# Which rows go where


def test_transcriptions_and_questions_part_in_their_order(tmp_path):
    tasks = ["transcribe", "read", "count", "transcribe", "locate"]
    _, transcriptions, questions = curate(tmp_path, [row(i, task=task) for i, task in enumerate(tasks)])
    assert ids(transcriptions) == ["row-0", "row-3"]
    assert ids(questions) == ["row-1", "row-2", "row-4"]


def test_the_facts_about_images_are_filled_in(tmp_path):
    photo = encode(picture(1).resize((60, 40)).convert("CMYK"), "JPEG")
    _, _, questions = curate(tmp_path, [row(1, photo)])
    (medium,) = next(questions.rows())["media"]
    assert (medium["format"], medium["width"], medium["height"]) == ("JPEG", 60, 40)
    assert medium["bytes"] == photo
    assert len(medium["phash"]) == 16


def test_the_same_rows_give_the_same_bytes_and_the_order_of_rows_survives_shards(tmp_path):
    rows = [row(0, encode(picture(i % 400, side=8)), row_id=f"row-{i}") for i in range(1100)]
    kept = []
    for name, shards in (("one", 3), ("two", 3), ("whole", 1)):
        _, _, questions = curate(tmp_path / name, rows, shards=shards)
        kept.append(ids(questions))
    assert payload_sha256(tmp_path / "one" / "questions") == payload_sha256(tmp_path / "two" / "questions")
    assert kept[0] == kept[1] == kept[2] == [f"row-{i}" for i in range(400)]


def test_the_funnel_is_in_the_manifest_and_in_the_numbers(tmp_path):
    rows = [row(0), row(1, task="transcribe"), row(0, row_id="again"), row(2, b"")]
    result, transcriptions, questions = curate(tmp_path, rows)
    funnel = questions.manifest["funnel"]
    assert funnel == transcriptions.manifest["funnel"]
    assert funnel["rows_in"] == 4
    assert funnel["rejected"] == dict.fromkeys(CATEGORIES, 0) | {"duplicate": 1, "image": 1}
    assert funnel["rows_out"] == {"transcriptions": 1, "questions": 1}
    assert result.numbers["rejected_duplicate"] == 1


@settings(max_examples=12, deadline=None)
@given(
    kinds=st.lists(
        st.sampled_from(["new", "copy", "same id", "broken", "empty", "unanswered", "unmatched", "text", "leaked"]),
        max_size=30,
    ),
    tasks=st.lists(st.sampled_from(["transcribe", "count", "odd"]), min_size=30, max_size=30),
    shards=st.integers(1, 3),
)
def test_rows_in_are_rows_out_and_rejects(tmp_path_factory, kinds, tasks, shards):
    rows = []
    for index, (kind, task) in enumerate(zip(kinds, tasks, strict=False)):
        one = row(index, task=task)
        match kind:
            case "copy":
                one = row(0, task=task, row_id=f"row-{index}")
            case "same id":
                one["id"] = "row-0"
            case "broken":
                one = row(index, encode(picture(index))[:-40], task=task)
            case "empty":
                one = row(index, b"", task=task)
            case "unanswered":
                one["messages"].pop()
            case "unmatched":
                one["media"] = []
            case "text":
                one = text_row(f"row-{index}", f"Is {index} a number?")
            case "leaked":
                one = row(1000, task=task, row_id=f"row-{index}")
        rows.append(one)
    _, transcriptions, questions = curate(tmp_path_factory.mktemp("rows"), rows, [row(1000)], shards=shards)
    out = ids(transcriptions) + ids(questions)
    rejected = [reject["id"] for dataset in (transcriptions, questions) for reject in dataset.rejects()]
    assert sorted(out + rejected) == sorted(one["id"] for one in rows)
    assert len(out) == len(set(out))
    sound = {"new", "text", "copy", "same id"}
    assert len(out) <= sum(kind in sound for kind in kinds)


# Bad rows and bad images


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def animated(image_format):
    frames = [picture(index) for index in range(3)]
    return encode(frames[0], image_format, save_all=True, append_images=frames[1:])


BAD_IMAGES = {
    "truncated": (encode(picture(1))[:-200], "cannot be decoded"),
    "truncated-jpeg": (encode(picture(1, 200), "JPEG")[:900], "cannot be decoded"),
    "zero-byte": (b"", "0 bytes"),
    "text": (b"<html>not found</html>", "not an image of a known format"),
    "1x1": (encode(Image.new("RGB", (1, 1))), "1 x 1 pixels"),
    "20000x20000": (png_header(20_000, 20_000), "400000000"),
    "8000x8000": (png_header(8_000, 8_000), "8000 x 8000 pixels"),
    "heavy": (encode(picture(1)) + bytes(Decode().max_bytes), "bytes; the limit is 20000000"),
    "animated-gif": (animated("GIF"), "animated (3 frames)"),
    "animated-png": (animated("PNG"), "animated (3 frames)"),
}


def test_bad_images_are_rejected_with_a_reason_and_good_ones_stay(tmp_path):
    rows = [row(index, data, row_id=name) for index, (name, (data, _)) in enumerate(BAD_IMAGES.items())]
    _, _, questions = curate(tmp_path, [*rows, row(77)])
    found = reasons(questions)
    assert ids(questions) == ["row-77"]
    assert set(found) == set(BAD_IMAGES)
    for name, (_, reason) in BAD_IMAGES.items():
        assert found[name].startswith("image: media[0]: ")
        assert reason in found[name]
        assert "\n" not in found[name]


@pytest.mark.parametrize("name", ["20000x20000", "8000x8000", "heavy"])
def test_huge_images_are_refused_by_their_header(monkeypatch, name):
    def load(self):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(InputError):
        inspect_image(image_media(BAD_IMAGES[name][0], image_format="PNG", width=1, height=1), Decode())


def test_cmyk_rotated_grey_and_transparent_images_pass(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    good = {
        "cmyk": encode(picture(1).convert("CMYK"), "JPEG"),
        "rotated": encode(picture(2), "JPEG", exif=exif),
        "grey": encode(picture(3).convert("L")),
        "palette": encode(picture(4).convert("P")),
        "transparent": encode(picture(5).convert("RGBA")),
        "sixteen-bit": encode(Image.fromarray(np.asarray(picture(6).convert("L")).astype(np.uint16) * 257)),
        "still-gif": encode(picture(7), "GIF"),
        "webp": encode(picture(8), "WEBP"),
    }
    _, _, questions = curate(tmp_path, [row(i, data, row_id=name) for i, (name, data) in enumerate(good.items())])
    assert ids(questions) == list(good)


def test_rows_the_schema_refuses_are_rejected_before_their_images_are_read(tmp_path):
    unanswered, unmatched, bare = row(0), row(1), row(2, b"")
    unanswered["messages"].pop()
    unmatched["messages"][0]["content"] = "How many?"
    bare["answers"] = []
    _, _, questions = curate(tmp_path, [unanswered, unmatched, bare])
    found = reasons(questions)
    assert found["row-0"].startswith("schema: no answer")
    assert found["row-1"].startswith("schema: 0 <image> placeholders for 1 media")
    assert found["row-2"].startswith("schema: answers is missing")


def test_media_that_cannot_be_checked_are_rejected(tmp_path):
    elsewhere, changed, clip = row(0), row(1), row(2)
    elsewhere["media"][0] |= {"bytes": None, "uri": "https://example.org/a.png"}
    changed["media"][0]["sha256"] = "0" * 64
    clip["media"][0]["kind"] = "video"
    clip["messages"][0]["content"] = "<video>\nHow many?"
    _, _, questions = curate(tmp_path, [elsewhere, changed, clip])
    found = reasons(questions)
    assert "lies at a uri" in found["row-0"]
    assert "sha256 is not that of its bytes" in found["row-1"]
    assert "video is not supported" in found["row-2"]


def test_a_bad_held_out_row_stops_the_step_by_name(tmp_path):
    with pytest.raises(InputError, match="held-out row 'row-1': image: media"):
        curate(tmp_path, [row(0)], [row(1, b"")])
    assert not (tmp_path / "questions").exists()


def test_a_missing_or_half_written_corpus_is_named(tmp_path):
    context = StepContext(state_dir=tmp_path / "state")
    paths = {name: tmp_path / name for name in ("corpus", "heldout", "transcriptions", "questions")}
    with pytest.raises(InputError, match="corpus: no such dataset directory"):
        run(CONFIG, **paths, context=context)
    dataset = write_dataset(paths["corpus"], [row(0)])
    write_dataset(paths["heldout"], [row(1)])
    dataset.shards[0].write_bytes(dataset.shards[0].read_bytes()[:-9])
    with pytest.raises(InputError, match=r"shard-00000-of-00001\.parquet: .*truncated"):
        run(CONFIG, **paths, context=context)


# Duplicates


def test_the_same_image_with_the_same_words_is_a_duplicate_and_with_others_is_not(tmp_path):
    rows = [
        row(0),
        row(0, row_id="copy"),
        row(0, row_id="other question", question="How many then?"),
        row(0, row_id="other answer", answer="4"),
        row(1, row_id="other image"),
        text_row("text", "Is it?"),
        text_row("text copy", "Is it?"),
    ]
    _, _, questions = curate(tmp_path, rows)
    assert reasons(questions) == {"copy": "duplicate: of row-0", "text copy": "duplicate: of text"}


def test_a_re_encoded_or_resized_image_is_a_near_duplicate(tmp_path):
    photo = Image.fromarray(load_sample_image("china.jpg"))
    rows = [
        row(0, encode(photo), row_id="photo"),
        row(0, encode(photo, "JPEG", quality=60), row_id="jpeg"),
        row(0, encode(photo.resize((320, 213))), row_id="half"),
        row(0, encode(photo.resize((320, 213))), row_id="half, other words", question="Where?"),
        row(0, encode(Image.fromarray(load_sample_image("flower.jpg"))), row_id="flower"),
    ]
    _, _, questions = curate(tmp_path, rows)
    assert reasons(questions) == {"jpeg": "near_duplicate: of photo", "half": "near_duplicate: of photo"}


def small_change():
    """Two canvases that hash alike and differ in one small mark, as two digits do."""
    one, two = np.full((56, 56), 40, np.uint8), np.full((56, 56), 40, np.uint8)
    one[8:40, 8:16] = two[8:40, 8:16] = 230
    two[18:24, 16:20] = 230
    return encode(Image.fromarray(one)), encode(Image.fromarray(two))


def test_canvases_that_hash_alike_but_differ_in_a_mark_are_kept(tmp_path):
    first, second = small_change()
    hashes = [perceptual_hash(Image.open(io.BytesIO(data))) for data in (first, second)]
    near = NearDuplicates(phash_distance=max(4, (hashes[0] ^ hashes[1]).bit_count()))
    config = CurateConfig(recipe=(Schema(), Decode(), near, Decontaminate()))
    _, _, questions = curate(tmp_path, [row(0, first), row(1, second)], config=config)
    assert ids(questions) == ["row-0", "row-1"]


def test_the_hash_alone_would_reject_canvases_of_different_digits():
    """Why pixels decide: some digit canvases are within the distance, none is within the difference."""
    from components.collect.config import DigitsConfig
    from components.collect.digits import digit_rows

    rows = digit_rows(DigitsConfig(transcriptions=600, questions=1))[0]
    images = [one["media"][0]["bytes"] for one in itertools.islice(rows, 600)]
    hashes = np.array([perceptual_hash(Image.open(io.BytesIO(data))) for data in images], np.uint64)
    pairs = near_pairs(hashes, NearDuplicates().phash_distance)
    assert len(pairs) > 0
    differences = [pixel_difference(*(reduced_grey(images[place]) for place in pair)) for pair in pairs]
    assert min(differences) > NearDuplicates().pixel_difference


@settings(max_examples=60, deadline=None)
@given(
    base=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8),
    flips=st.lists(st.tuples(st.integers(0, 7), st.sets(st.integers(0, 63), max_size=6)), max_size=20),
    distance=st.sampled_from([0, 1, 4, 7, 63, 64]),
)
def test_near_pairs_finds_what_comparing_all_pairs_finds(base, flips, distance):
    hashes = base + [base[which % len(base)] ^ sum(1 << bit for bit in bits) for which, bits in flips]
    expected = [
        [i, j]
        for i, j in itertools.combinations(range(len(hashes)), 2)
        if (hashes[i] ^ hashes[j]).bit_count() <= distance
    ]
    assert near_pairs(np.array(hashes, np.uint64), distance).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(
    hashes=st.lists(st.tuples(st.sampled_from([0, 1, 3, 255]), st.sampled_from([0, 7])), min_size=1, max_size=12),
    looks=st.lists(st.integers(0, 1), min_size=12, max_size=12),
)
def test_near_duplicates_are_those_of_comparing_every_row_with_every_kept_one(hashes, looks):
    rows = [Signature(str(i), None, phash=pair, sha256=("", ""), text_key="k") for i, pair in enumerate(hashes)]
    expected, kept = [], []
    for i, pair in enumerate(hashes):
        near = [j for j in kept if all((a ^ b).bit_count() <= 2 for a, b in zip(pair, hashes[j], strict=True))]
        match = next((j for j in near if looks[j] == looks[i]), None)
        expected.append(None if match is None else f"of {match}")
        if match is None:
            kept.append(i)
    reject_near_duplicates(rows, near_duplicate_candidates(rows, 2), lambda a, _i, b, _j: looks[a] == looks[b])
    assert [row.reason for row in rows] == expected


def test_many_rows_of_one_picture_are_compared_with_one():
    rows = [Signature(str(i), None, phash=(7,), sha256=("",), text_key="k") for i in range(20_000)]
    compared = []
    reject_near_duplicates(rows, near_duplicate_candidates(rows, 4), lambda *places: compared.append(places) or True)
    assert len(compared) == 19_999


def test_pixel_difference_is_the_worst_block():
    base = np.full((56, 56), 100, np.uint8)
    assert pixel_difference(base, base) == 0
    spot = base.copy()
    spot[4:8, 4:8] = 151
    assert pixel_difference(base, spot) == pytest.approx(51 / 255)
    assert pixel_difference(base, np.full((56, 112), 100, np.uint8)) == 1.0
    assert pixel_difference(base, np.full((2, 2), 100, np.uint8)) == 0


# Contamination


def test_an_evaluation_image_contaminates_only_with_its_answer(tmp_path):
    evaluation = [row(0, row_id="held", answer="7"), row(1, row_id="held too", answer="8")]
    photo = encode(picture(0).resize((112, 112)), "JPEG", quality=90)
    rows = [
        row(0, row_id="same", answer="7", question="Which digit?"),
        row(0, photo, row_id="re-encoded", answer=" 7 "),
        row(0, row_id="same image, other answer", answer="8"),
        row(5, row_id="same answer, other image", answer="7"),
    ]
    _, _, questions = curate(tmp_path, rows, evaluation)
    expected = "contaminated: image and answer of evaluation row held"
    assert reasons(questions) == {"same": expected, "re-encoded": expected}


def test_words_contaminate_rows_without_images_only(tmp_path):
    long = "Which of the four provinces of the old kingdom had no access to the sea at all?"
    rows = [
        text_row("copied", f"A riddle. {long.upper()}"),
        text_row("shares a few words", "Which of the four provinces is the largest?"),
        row(1, row_id="with an image", question=long),
        text_row("short copy", "Is it so?"),
    ]
    _, _, questions = curate(tmp_path, rows, [text_row("held", long, "Ulm."), text_row("short", "Is it so?")])
    assert set(reasons(questions)) == {"copied", "short copy"}
    assert all(reason.startswith("contaminated: ") for reason in reasons(questions).values())


@pytest.mark.parametrize("name", ["a b", "a[1]", "a*", "a?{b}", "a\\b", "a%20#b"])
def test_a_directory_may_have_any_name(tmp_path, name):
    (tmp_path / "acb").mkdir()
    _, _, questions = curate(tmp_path / name, [row(0)], [row(1)])
    assert ids(questions) == ["row-0"]
