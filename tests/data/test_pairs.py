"""`image_text_pairs`: every source, order and randomness, broken samples, refusals."""

import builtins
import io
import json
import logging
import os
import sys

import keras
import numpy as np
import pytest
from numbered_pairs import (
    COLUMNS,
    SOURCES,
    NumberTokenizer,
    colour,
    decode_one_colour,
    draw_from_the_crop_seed,
    image_file,
    numbered,
    numbers,
    tar_members,
    write_images,
    write_records,
    write_shards,
    write_table,
    write_tar,
)
from PIL import Image

from keras_clip.data import image_text_pairs
from keras_clip.data.arguments import increasing_lengths
from keras_clip.data.images import ImagePreprocessor
from keras_clip.data.pairs import _tokenize_with
from keras_clip.data.tokenizer import CLIPTokenizer

backend_free = pytest.mark.backend_free
slow = pytest.mark.slow
training_then_evaluation = pytest.mark.parametrize(
    "training", [pytest.param(True, id="training"), pytest.param(False, id="evaluation", marks=slow)]
)
COUNT = 50
GOOD_AMONG_BROKEN = 240
# Cropping does not depend on the source, so with a stream it is enough to test that the seeds of the crops arrive.
DECODERS = {"tars": None, "tf.data of files": "crop_seeds"}
# Broken samples: image file, caption, and the reason for which the sample is skipped.
BROKEN = {
    "truncated png": (image_file(1, (200, 200))[:100], b"1", "undecodable image"),
    "truncated jpeg": (image_file(1, (200, 200), "JPEG")[:300], b"1", "undecodable image"),
    "text for an image": (b"<html>404 not found</html>", b"1", "undecodable image"),
    "bomb": (image_file(1, (400, 400)), b"1", "image too large"),
    "empty image": (b"", b"1", "no image"),
    "no image": (None, b"1", "no image"),
    "no caption": (image_file(1), None, "no caption"),
    "empty caption": (image_file(1), b"", "no caption"),
    "blank caption": (image_file(1), b" \n\t", "no caption"),
    "caption in latin-1": (image_file(1), b"caf\xe9", "caption not UTF-8"),
}


def pairs(source, batch_size=5, *, image_size=16, max_pixels=100_000, **options):
    options.setdefault("tokenizer", NumberTokenizer())
    preprocessor = ImagePreprocessor(image_size=image_size, max_pixels=max_pixels)
    return image_text_pairs(source, batch_size=batch_size, image_preprocessor=preprocessor, **options)


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path, numbered(COUNT))


@pytest.fixture
def one_colour(monkeypatch):
    decode_one_colour(monkeypatch)


@pytest.fixture
def crop_seeds(monkeypatch):
    draw_from_the_crop_seed(monkeypatch)


# For tests that do not depend on decoding: order, parts, captions, lengths, sources and their errors.
not_of_decoding = pytest.mark.usefixtures("one_colour")


@backend_free
class TestSources:
    @training_then_evaluation
    @pytest.mark.parametrize("source", SOURCES)
    def test_every_pair_comes_once(self, source, training, tmp_path, request):
        store, mapping = SOURCES[source]
        if source not in ("tars", "tf.data of arrays"):
            request.getfixturevalue("one_colour")
        dataset = pairs(store(tmp_path, numbered(COUNT)), mapping=mapping, training=training)
        assert dataset.element_spec["images"].shape.as_list() == [5 if training else None, 16, 16, 3]
        epochs = [numbers(dataset) for _ in range(2)]
        assert [sorted(epoch) for epoch in epochs] == [list(range(COUNT))] * 2
        assert (epochs[0] == epochs[1]) == (not training)
        assert dataset.skipped.total == 0

    @not_of_decoding
    def test_evaluation_keeps_the_order_of_the_shards_and_the_last_batch(self, shards):
        found = list(pairs(shards, 8, training=False))
        assert [len(batch["images"]) for batch in found] == [8] * 6 + [2]
        assert numbers(found) == [*range(0, COUNT, 3), *range(1, COUNT, 3), *range(2, COUNT, 3)]

    @not_of_decoding
    def test_training_drops_the_last_batch(self, shards):
        assert [len(batch["images"]) for batch in pairs(shards, 8)] == [8] * 6

    @not_of_decoding
    def test_number_of_samples(self, shards, tmp_path):
        stream = SOURCES["tf.data of files"][0](tmp_path, numbered(9))
        unknown = stream.filter(lambda row: True)
        for source, mapping, expected in ((shards, None, COUNT), (stream, COLUMNS, 9), (unknown, COLUMNS, None)):
            dataset = pairs(source, 4, mapping=mapping)
            assert dataset.num_samples == expected
            assert dataset.cardinality() == (-2 if expected is None else expected // 4)
            assert len(list(dataset)) == (9 if expected is None else expected) // 4

    def test_the_readme_line_on_real_photographs(self, shared_data):
        class Model:
            tokenizer = CLIPTokenizer()
            image_preprocessor = ImagePreprocessor(image_size=32)

        dataset = image_text_pairs(shared_data / "grocery" / "val" / "*.tar", Model(), batch_size=74, training=False)
        found = list(dataset)
        assert [batch["images"].shape.as_list() for batch in found] == [[74, 32, 32, 3]] * 4
        assert all(batch["token_ids"].shape[1] in (16, 32, 77) for batch in found)
        assert {int(row.max()) for batch in found for row in batch["token_ids"].numpy()} == {49407}
        assert dataset.skipped.total == 0


@backend_free
class TestRandomness:
    @pytest.mark.parametrize("source, decoder", DECODERS.items(), ids=DECODERS)
    def test_the_seed_and_the_epoch_decide_everything(self, source, decoder, tmp_path, request):
        store, mapping = SOURCES[source]
        stored = store(tmp_path, noisy(40))
        if decoder:
            request.getfixturevalue(decoder)
        first, again, other = (pairs(stored, mapping=mapping, seed=seed) for seed in (0, 0, 1))
        epochs = [contents(first), contents(first)]
        assert epochs == [contents(again), contents(again)]
        assert epochs[0] != epochs[1]
        assert contents(other) not in epochs

    @pytest.mark.parametrize("source, decoder", DECODERS.items(), ids=DECODERS)
    def test_a_global_seed_changes_nothing(self, source, decoder, tmp_path, request):
        store, mapping = SOURCES[source]
        stored = store(tmp_path, noisy(40))
        if decoder:
            request.getfixturevalue(decoder)
        epochs = []
        for seed in (0, 5):
            keras.utils.set_random_seed(seed)
            epochs.append(contents(pairs(stored, mapping=mapping)))
        assert epochs[0] == epochs[1]

    def test_epochs_have_other_orders_and_other_crops(self, tmp_path):
        write_tar(tmp_path / "a.tar", tar_members(noisy(30)))
        dataset = pairs(str(tmp_path / "a.tar"), 30)
        batches = [next(iter(dataset)) for _ in range(2)]
        epochs = [
            dict(zip(batch["token_ids"].numpy()[:, 1].tolist(), batch["images"].numpy(), strict=True))
            for batch in batches
        ]
        assert list(epochs[0]) != list(epochs[1])
        changed = [not np.array_equal(epochs[0][number], epochs[1][number]) for number in range(30)]
        assert np.mean(changed) > 0.9

    def test_samples_of_one_epoch_have_crops_of_their_own(self, tmp_path):
        same = noisy(1)[0][1]
        write_tar(tmp_path / "a.tar", tar_members([(str(k), same, b"1") for k in range(20)]))
        (batch,) = pairs(str(tmp_path / "a.tar"), 20)
        assert len({image.tobytes() for image in batch["images"].numpy()}) > 10

    def test_samples_of_a_stream_have_crops_of_their_own_in_each_epoch(self, crop_seeds, tmp_path):
        store, mapping = SOURCES["tf.data of files"]
        dataset = pairs(store(tmp_path, noisy(20)), mapping=mapping)
        crops = [image.tobytes() for _ in range(2) for batch in dataset for image in batch["images"].numpy()]
        assert len(set(crops)) == len(crops) == 40

    @pytest.mark.parametrize("scale, least, most", [((0.9, 1.0), 0.8, 1.0), ((0.2, 0.2), 0.38, 0.52)], ids=str)
    def test_crop_areas_lie_in_the_given_range(self, scale, least, most, tmp_path):
        ramp = np.broadcast_to(np.arange(256, dtype="uint8")[None, :, None], (256, 256, 3))
        file = io.BytesIO()
        Image.fromarray(ramp).save(file, "PNG")
        write_tar(tmp_path / "a.tar", tar_members([(str(k), file.getvalue(), b"1") for k in range(20)]))
        (batch,) = pairs(str(tmp_path / "a.tar"), 20, image_size=128, crop_scale=scale)
        spans = np.ptp(batch["images"].numpy()[..., 0].astype(int), axis=(1, 2)) / 255
        assert least - 0.01 < spans.min() < spans.max() < most + 0.01

    def test_evaluation_is_deterministic(self, tmp_path):
        write_tar(tmp_path / "a.tar", tar_members(noisy(10)))
        dataset = pairs(str(tmp_path / "a.tar"), training=False)
        assert (
            contents(dataset) == contents(dataset) == contents(pairs(str(tmp_path / "a.tar"), training=False, seed=3))
        )

    @not_of_decoding
    def test_shuffling_goes_across_shards(self, shards):
        found = np.array(numbers(pairs(shards, 50)))
        # The first third of the epoch has about a third of the samples of each of the three shards.
        assert np.bincount(found[:18] % 3, minlength=3).min() >= 2

    @not_of_decoding
    @pytest.mark.parametrize(
        "form", ["json", pytest.param("TFRecord", marks=slow), "function", pytest.param("tf.data", marks=slow)]
    )
    def test_one_of_several_captions_is_drawn(self, form, tmp_path):
        import tensorflow as tf

        captions, mapping, count = [f"7 {k}" for k in range(3)], None, 24
        if form == "json":
            record = json.dumps({"caption": captions}).encode()
            pair = [("a.png", image_file(7)), ("a.json", record)]
            source = write_tar(tmp_path / "a.tar", [(f"{k}{name}", file) for k in range(count) for name, file in pair])
        elif form == "TFRecord":
            row = {"jpg": image_file(7), "caption": [caption.encode() for caption in captions]}
            source = write_records(tmp_path / "a.tfrecord", [row] * count)
        elif form == "function":
            source, mapping = [image_file(7)] * count, lambda image: (image, captions)
        else:
            source = tf.data.Dataset.from_tensor_slices([image_file(7)] * count)
            mapping = lambda image: (image, captions)  # noqa: E731

        def chosen(dataset):
            return [int(row[2]) for batch in dataset for row in batch["token_ids"]]

        dataset, again = (pairs(source, count, mapping=mapping) for _ in range(2))
        epochs = [chosen(dataset), chosen(dataset)]
        assert epochs == [chosen(again), chosen(again)]
        assert epochs[0] != epochs[1]
        assert np.bincount(epochs[0] + epochs[1]).min() > 5
        assert chosen(pairs(source, count, mapping=mapping, training=False)) == [0] * count


@backend_free
@not_of_decoding
class TestParts:
    @pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
    def test_parts_are_disjoint_and_complete(self, shards, training):
        datasets = [pairs(shards, 4, training=training, shard=(index, 3)) for index in range(3)]
        for _ in range(2):
            parts = [numbers(dataset) for dataset in datasets]
            together = sum(parts, [])
            assert len(set(together)) == len(together)
            assert [len(part) for part in parts] == ([16] * 3 if training else [17, 17, 16])

    def test_parts_of_a_stream(self, tmp_path):
        stream = SOURCES["tf.data of files"][0](tmp_path, numbered(9))
        parts = [numbers(pairs(stream, 3, mapping=COLUMNS, shard=(index, 3))) for index in range(3)]
        assert [sorted(part) for part in parts] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]

    @slow
    def test_parts_of_a_stream_take_equally_many_steps(self, tmp_path):
        stream = SOURCES["tf.data of files"][0](tmp_path, numbered(11))
        parts = [pairs(stream, 2, mapping=COLUMNS, shard=(index, 3)) for index in range(3)]
        assert [len(part) for part in parts] == [len(numbers(part)) // 2 for part in parts] == [1, 1, 1]
        parts = [pairs(stream, 2, mapping=COLUMNS, shard=(index, 3), training=False) for index in range(3)]
        assert [len(numbers(part)) for part in parts] == [4, 4, 3]


@backend_free
@not_of_decoding
class TestTexts:
    @pytest.mark.parametrize(
        "words, lengths, expected",
        [
            (3, None, 16),
            (14, None, 16),
            (15, None, 32),
            (31, None, 77),
            (90, None, 77),
            (3, (8, 24), 8),
            (20, (8, 24), 24),
            (90, (8, 24), 24),
            (3, (77,), 77),
        ],
    )
    def test_length(self, words, lengths, expected):
        import tensorflow as tf

        tokenizer = NumberTokenizer()
        to_batch = _tokenize_with(tokenizer, increasing_lengths(lengths, tokenizer))
        place, batch = to_batch("place", tf.zeros((2, 1)), tf.constant([" ".join(["5"] * words), "5"]))
        token_ids = batch["token_ids"].numpy()
        assert place == "place" and batch["images"].shape == (2, 1)
        assert token_ids.dtype == np.int32 and token_ids.shape == (2, expected)
        size = min(words + 2, expected)
        assert token_ids[0].tolist() == [1000] + [5] * (size - 2) + [1001] + [0] * (expected - size)
        assert token_ids[1].tolist() == [1000, 5, 1001] + [0] * (expected - 3)

    @pytest.mark.parametrize("lengths, expected", [(None, [16, 32]), ((24, 40), [24, 24]), ((40,), [40, 40])], ids=str)
    def test_lengths_of_batches(self, lengths, expected, tmp_path):
        """The length of a batch is that of its longest text, rounded up; a single length is static."""
        samples = [(f"{k}", image_file(5), b"5 " * words) for k, words in enumerate((3, 2, 4, 20))]
        source = write_tar(tmp_path / "a.tar", tar_members(samples))
        dataset = pairs(source, 2, training=False, text_lengths=lengths)
        assert [batch["token_ids"].shape[1] for batch in dataset] == expected
        assert dataset.element_spec["token_ids"].shape[1] == (40 if lengths == (40,) else None)

    def test_a_short_context_bounds_the_lengths(self, tmp_path):
        tokenizer = NumberTokenizer()
        tokenizer.context_length = 20
        source = write_tar(tmp_path / "a.tar", tar_members([("a", image_file(5), b"5 " * 30)]))
        (batch,) = pairs(source, 1, tokenizer=tokenizer)
        assert batch["token_ids"].shape == (1, 20)


@backend_free
class TestBrokenSamples:
    @training_then_evaluation
    def test_only_they_are_skipped_counted_and_named(self, training, tmp_path, caplog):
        """Each broken sample is followed by 24 good ones in the same shard."""
        members, good = [], numbered(GOOD_AMONG_BROKEN)
        for place, (name, (image, caption, _)) in enumerate(BROKEN.items()):
            members += [*tar_members([(f"broken {name}", image, caption)]), (f"broken {name}.cls", b"1")]
            members += tar_members(good[24 * place : 24 * (place + 1)])
        source = write_tar(tmp_path / "shard.tar", members)
        dataset = pairs(source, 1, training=training)
        for epoch in range(2):
            with caplog.at_level(logging.WARNING, "keras_clip"):
                found = numbers(dataset)
            assert set(found) == set(range(GOOD_AMONG_BROKEN))
            # In training, other samples replace them.
            assert len(found) == GOOD_AMONG_BROKEN + (len(BROKEN) if training else 0)
            reasons = [reason for *_, reason in BROKEN.values()]
            assert dataset.skipped.counts == {reason: reasons.count(reason) for reason in reasons}
            expected = sorted(f"{source}: broken {name}: {reason}" for name, (*_, reason) in BROKEN.items())
            assert sorted(example.partition(" (")[0] for example in dataset.skipped.examples) == expected
            assert len(caplog.records) == epoch + 1 and "10 of 250 samples: " in caplog.text
            for reason in reasons:
                assert f"{reason} {reasons.count(reason)}" in caplog.records[epoch].getMessage()

    @pytest.mark.parametrize("place", [0, 24, COUNT - 1])
    @not_of_decoding
    def test_at_any_position(self, place, tmp_path):
        samples = numbered(COUNT)
        samples[place] = ("broken", b"?", b"1")
        dataset = pairs(write_tar(tmp_path / "a.tar", tar_members(samples)), 1, training=False)
        assert numbers(dataset) == [k for k in range(COUNT) if k != place]
        assert dataset.skipped.total == 1

    @pytest.mark.parametrize("source", ["TFRecords", "csv", "folder", "list of dicts", "tf.data of files"])
    def test_in_every_source(self, source, tmp_path, request):
        if source != "tf.data of files":
            request.getfixturevalue("one_colour")
        samples = numbered(COUNT)
        samples[12] = (samples[12][0], b"no image at all", b"12")
        samples[15] = (samples[15][0], samples[15][1], b" ")
        store, mapping = SOURCES[source]
        if source == "list of dicts":
            stored = [{"picture": image, "text": caption} for _, image, caption in samples]
        else:
            stored = store(tmp_path, samples)
        dataset = pairs(stored, 1, mapping=mapping, training=False)
        assert sorted(numbers(dataset)) == [k for k in range(COUNT) if k not in (12, 15)]
        assert dataset.skipped.counts == {"undecodable image": 1, "no caption": 1}

    @not_of_decoding
    def test_a_missing_file_of_a_table(self, tmp_path):
        table = write_table(tmp_path / "pairs.csv", numbered(COUNT))
        (tmp_path / "007.png").unlink()
        dataset = pairs(table, 1, training=False)
        assert sorted(numbers(dataset)) == [k for k in range(COUNT) if k != 7]
        assert dataset.skipped.examples == [f"{tmp_path}/007.png: no image"]

    @not_of_decoding
    def test_a_twentieth_may_be_broken_and_no_more(self, tmp_path):
        samples = [(f"{k:03d}", b"?" if k < 5 else image_file(k), str(k).encode()) for k in range(100)]
        dataset = pairs(write_tar(tmp_path / "a.tar", tar_members(samples)), 10)
        found = numbers(dataset)
        assert len(dataset) == 10 and len(found) == 100 and set(found) == set(range(5, 100))
        assert dataset.skipped.counts == {"undecodable image": 5}
        samples[5] = ("005", None, b"5")
        dataset = pairs(write_tar(tmp_path / "b.tar", tar_members(samples)), 1)
        with pytest.raises(Exception, match=r"6 of \d+ samples: undecodable image 5, no image 1"):
            list(dataset)

    @not_of_decoding
    def test_a_readme_beside_ten_pairs(self, tmp_path, caplog):
        write_images(tmp_path, numbered(10))
        for key, _, caption in numbered(10):
            (tmp_path / f"{key}.txt").write_bytes(caption)
        (tmp_path / "README.txt").write_text("7")
        (tmp_path / "LICENSE.txt").write_text("8")
        source = write_tar(
            tmp_path / "a.tar", [*tar_members(numbered(10)), ("README.txt", b"7"), ("LICENSE.txt", b"8")]
        )
        for place in (tmp_path, source):
            for training in (True, False):
                dataset = pairs(place, 5, training=training)
                assert set(numbers(dataset)) == set(range(10))
                assert dataset.skipped.counts["no image"] == 2
                assert any("README" in example for example in dataset.skipped.examples)
        assert "skipped 2 of 12 samples: no image 2" in caplog.text
        # Many are no stray files.
        for k in range(6):
            (tmp_path / f"more{k}.txt").write_text("7")
        with pytest.raises(Exception, match=r"6 of \d+ samples: no image 6.*raise `max_broken`"):
            list(pairs(tmp_path, 1))

    @not_of_decoding
    def test_the_limit_is_an_argument(self, tmp_path):
        samples = [(f"{k:03d}", b"?" if k < 10 else image_file(k), str(k).encode()) for k in range(40)]
        source = write_tar(tmp_path / "a.tar", tar_members(samples))
        dataset = pairs(source, 1, training=False, max_broken=0.25)
        assert numbers(dataset) == list(range(10, 40)) and dataset.skipped.total == 10
        with pytest.raises(Exception, match=r"At most 22.5% of the samples.*10 of \d+ samples"):
            list(pairs(source, 1, max_broken=0.225))
        one = write_tar(tmp_path / "b.tar", tar_members(samples[9:]))
        assert len(numbers(pairs(one, 1, training=False))) == 30
        with pytest.raises(Exception, match=r"At most 0% of the samples.*1 of \d+ samples"):
            list(pairs(one, 1, max_broken=0))
        # Not one good sample is an error whatever the limit.
        none = write_tar(tmp_path / "c.tar", tar_members(samples[:10]))
        with pytest.raises(Exception, match="10 of 10 samples"):
            list(pairs(none, 1, training=False, max_broken=1))

    @not_of_decoding
    def test_files_that_are_passed_over_are_reported_and_do_not_count_as_broken(self, tmp_path, caplog):
        members = [*tar_members(numbered(COUNT))]
        members += [(f"{key}.5mm.{end}", b"?") for key, _, _ in numbered(60) for end in ("jpg", "txt")]
        members += [("x.jpg", b"?"), ("x.txt", b"1")]
        dataset = pairs(write_tar(tmp_path / "a.tar", members), 1, training=False)
        reason = "a second dot in the name, where keys end at the first"
        assert dataset.skipped.counts == {reason: 120} and dataset.num_samples == COUNT + 1
        assert (
            f"passed over 120 files of {tmp_path}/a.tar: {reason} 120. First: {tmp_path}/a.tar: 000.5mm" in caplog.text
        )
        for _ in range(2):
            assert numbers(dataset) == list(range(COUNT))
            assert dataset.skipped.counts == {reason: 120, "undecodable image": 1}
            assert (dataset.skipped.total, dataset.skipped.broken) == (121, 1)
            assert dataset.skipped.examples[0].endswith(f"000.5mm.jpg: {reason}")
            assert dataset.skipped.examples[100].startswith(f"{tmp_path}/a.tar: x: undecodable image")
        assert "skipped 1 of 51 samples: undecodable image 1. First: " in caplog.text

    @not_of_decoding
    def test_errors_are_short_whatever_the_source(self):
        arrays = [{"picture": np.zeros((50, 50, 3), np.float32), "text": "1"}] * 3000
        for batch_size, source in ((5000, arrays), (1, [{"picture": b"?", "text": "1" * 3000}] * 3000)):
            with pytest.raises(Exception) as error:
                list(pairs(source, batch_size, mapping=COLUMNS))
            assert len(str(error.value)) < 5000

    @pytest.mark.parametrize("source", ["tars", "tf.data of files"])
    @not_of_decoding
    def test_all_are_broken(self, source, tmp_path):
        samples = [(f"{k:03d}", b"<html>", b"1") for k in range(20)]
        store, mapping = SOURCES[source]
        with pytest.raises(Exception, match="2 of 2 samples: undecodable image 2.*begin with b'<html>'"):
            list(pairs(store(tmp_path, samples), 1, mapping=mapping))

    @not_of_decoding
    def test_an_epoch_ends_when_its_first_thousand_samples_are_broken(self):
        asked = []

        class Endless:
            def __len__(self):
                return 10**6

            def __getitem__(self, index):
                asked.append(index)
                return b"", "1"

        with pytest.raises(Exception, match="1,000 of 1,000 samples: no image 1,000"):
            next(iter(pairs(Endless(), mapping=lambda pair: pair)))
        assert len(asked) < 3000

    @not_of_decoding
    def test_an_epoch_ends_as_soon_as_too_many_are_broken(self):
        class Source:
            def __len__(self):
                return 4000

            def __getitem__(self, index):
                return (b"" if index % 2 else image_file(1)), "1"

        with pytest.raises(Exception, match="201 of 402 samples"):
            list(pairs(Source(), mapping=lambda pair: pair, training=False))

    @not_of_decoding
    def test_an_error_of_the_source_is_not_a_broken_sample(self, tmp_path):
        def failing(row):
            raise KeyError("no such column")

        with pytest.raises(Exception, match="no such column"):
            list(pairs([1, 2, 3], 1, mapping=failing))

    @not_of_decoding
    def test_a_temporary_read_error_is_not_a_broken_sample(self, tmp_path, monkeypatch):
        dataset = pairs(write_tar(tmp_path / "a.tar", tar_members(numbered(200))), 1, training=False)
        original, calls = os.pread, []

        def failing(*arguments):
            calls.append(arguments)
            if len(calls) == 300:
                raise OSError("disk not mounted")
            return original(*arguments)

        monkeypatch.setattr(os, "pread", failing)
        with pytest.raises(Exception, match="disk not mounted"):
            list(dataset)
        assert dataset.skipped.total == 0
        # When the disk can be read again, the next epoch is complete.
        assert len(numbers(dataset)) == 200

    def test_a_picture_that_cannot_be_loaded(self):
        rows = [{"picture": Image.open(io.BytesIO(image)), "text": caption.decode()} for _, image, caption in noisy(40)]
        rows[7]["picture"] = Image.open(io.BytesIO(noisy(1)[0][1][:500]))
        dataset = pairs(rows, 1, mapping=COLUMNS, training=False)
        assert sum(len(batch["images"]) for batch in dataset) == 39
        assert dataset.skipped.counts == {"undecodable image": 1}
        assert dataset.skipped.examples[0].startswith("element 7: undecodable image")

    @not_of_decoding
    def test_a_damaged_record_upstream_is_not_swallowed(self, tmp_path):
        import tensorflow as tf

        path = tmp_path / "a.tfrecord"
        write_records(path, [{"image": image_file(k), "text": b"%d" % k} for k in range(10)])
        path.write_bytes(path.read_bytes()[:-30])
        features = {"image": tf.io.FixedLenFeature((), tf.string), "text": tf.io.FixedLenFeature((), tf.string)}
        stream = tf.data.TFRecordDataset(str(path)).map(lambda record: tf.io.parse_single_example(record, features))
        with pytest.raises(tf.errors.DataLossError):
            list(pairs(stream, 1, mapping=("image", "text")))

    @not_of_decoding
    def test_a_shard_that_changes_meanwhile(self, tmp_path):
        source = write_tar(tmp_path / "a.tar", tar_members(numbered(200)))
        dataset = pairs(source, 1, training=False)
        with open(source, "r+b") as file:
            file.truncate(100_000)
        with pytest.raises(Exception, match="A shard must stay as it is.*a.tar"):
            list(dataset)

    @not_of_decoding
    def test_an_abandoned_iterator_does_not_count(self, tmp_path):
        samples = numbered(COUNT)
        samples[3] = ("broken", b"?", b"1")
        dataset = pairs(write_tar(tmp_path / "a.tar", tar_members(samples)), 1, training=False)
        next(iter(dataset))
        list(dataset)
        assert dataset.skipped.counts == {"undecodable image": 1}


@backend_free
@not_of_decoding
class TestRefusals:
    @pytest.mark.parametrize(
        "options, error, message",
        [
            ({"batch_size": 51}, ValueError, "batch_size=51.*with 50 samples"),
            ({"batch_size": 0}, ValueError, "batch_size=0"),
            ({"seed": -1}, ValueError, "seed=-1"),
            ({"crop_scale": (0, 1)}, ValueError, r"crop_scale=\(0, 1\)"),
            ({"crop_scale": (0.5, 1.5)}, ValueError, r"crop_scale=\(0.5, 1.5\)"),
            ({"shard": (3, 3)}, ValueError, r"shard=\(3, 3\)"),
            ({"text_lengths": (32, 16)}, ValueError, "increase"),
            ({"text_lengths": (16, 16)}, ValueError, "increase"),
            ({"text_lengths": (16, 78)}, ValueError, "context length 77"),
            ({"text_lengths": ()}, ValueError, "text_lengths"),
            ({"tokenizer": "gpt"}, TypeError, "tokenizer='gpt'"),
            ({"mapping": len}, ValueError, "two names"),
            ({"delimiter": ";"}, ValueError, "Only tables have a delimiter"),
            ({"max_broken": 1.5}, ValueError, "max_broken=1.5"),
        ],
        ids=[
            "batch larger than the data",
            "batch of zero",
            "negative seed",
            "crop scale of zero",
            "crop scale above one",
            "shard index too large",
            "decreasing lengths",
            "equal lengths",
            "length above the context",
            "no lengths",
            "tokenizer that is a text",
            "function for a tar",
            "delimiter of a tar",
            "broken fraction above one",
        ],
    )
    def test_arguments(self, options, error, message, shards):
        with pytest.raises(error, match=message):
            pairs(shards, **options)

    @pytest.mark.parametrize("missing", ["tokenizer", "image_preprocessor"])
    def test_a_model_without(self, missing, shards):
        class Model:
            tokenizer = NumberTokenizer()
            image_preprocessor = ImagePreprocessor(image_size=16)

        setattr(Model, missing, None)
        with pytest.raises(ValueError, match=f"`{missing}` is required"):
            image_text_pairs(shards, Model(), batch_size=2)

    def test_another_way_to_resize(self, shards):
        squashing = ImagePreprocessor(image_size=16, resize_mode="squash")
        with pytest.raises(ValueError, match="(?s)Received: image_preprocessor with 'bicubic', 'squash'"):
            image_text_pairs(shards, batch_size=2, tokenizer=NumberTokenizer(), image_preprocessor=squashing)

    @pytest.mark.parametrize("source", ["list of dicts", "Hugging Face", "tf.data of files"])
    def test_columns_that_are_none(self, source, tmp_path):
        stored = SOURCES[source][0](tmp_path, numbered(9))
        with pytest.raises(ValueError, match=r"(?s)two columns.*Received: mapping=\('image', 'text'\).*picture"):
            pairs(stored, 1, mapping=("image", "text"))

    def test_one_name_for_a_stream(self, tmp_path):
        with pytest.raises(ValueError, match="two columns.*Received"):
            pairs(SOURCES["tf.data of files"][0](tmp_path, numbered(9)), 1, mapping=("picture",))

    def test_tuples_of_a_stream(self):
        import tensorflow as tf

        arrays = np.stack([np.full((20, 24, 3), colour(k), np.uint8) for k in range(6)])
        stream = tf.data.Dataset.from_tensor_slices((arrays, list(map(str, range(6)))))
        for mapping in (lambda e: (e[0], e[1]), lambda image, text: (image, text), (0, 1)):
            assert numbers(pairs(stream, 2, mapping=mapping, training=False)) == list(range(6))

    def test_a_streamed_data_set_of_hugging_face(self, tmp_path):
        stream = SOURCES["Hugging Face"][0](tmp_path, numbered(9)).to_iterable_dataset()
        dataset = pairs(stream, 2, mapping=COLUMNS)
        assert dataset.num_samples is None
        epochs = [numbers(dataset) for _ in range(2)]
        assert [len(set(epoch)) for epoch in epochs] == [8, 8] and epochs[0] != epochs[1]
        parts = [numbers(pairs(stream, 2, mapping=COLUMNS, shard=(k, 2), training=False)) for k in range(2)]
        assert sorted(parts[0] + parts[1]) == list(range(9))

    def test_float_images_of_a_stream(self):
        import tensorflow as tf

        stream = tf.data.Dataset.from_tensors({"image": tf.zeros((4, 4, 3)), "text": "a"})
        with pytest.raises(TypeError, match="image of float32"):
            pairs(stream, mapping=("image", "text"))

    def test_without_tensorflow(self, shards, monkeypatch):
        original = builtins.__import__

        def blocked(name, *rest):
            if name == "tensorflow":
                raise ImportError(name)
            return original(name, *rest)

        monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
        monkeypatch.setattr(builtins, "__import__", blocked)
        with pytest.raises(ImportError, match=r'pip install "keras_clip\[tensorflow\]"'):
            pairs(shards)


class Shrink(keras.Model):
    """A model and a loss that use all inputs: their values do not matter."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, inputs):
        images, token_ids = (keras.ops.cast(inputs[name], "float32") for name in ("images", "token_ids"))
        return self.dense(keras.ops.mean(images, axis=(1, 2)) / 255) * keras.ops.max(token_ids) / 1001

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(keras.ops.square(y_pred))


def test_fit_takes_it_on_every_backend(tmp_path, recwarn):
    samples = numbered(COUNT)
    samples[3] = ("003", b"?", b"3")
    dataset = pairs(write_shards(tmp_path, samples), 8, text_lengths=(8,))
    model = Shrink()
    model.compile(keras.optimizers.SGD(0.1))
    losses = model.fit(dataset, epochs=3, verbose=0, shuffle=False).history["loss"]
    assert losses[2] < losses[0] < 10
    assert int(model.optimizer.iterations) == 3 * 6
    assert not [str(warning.message) for warning in recwarn if "ran out of data" in str(warning.message)]


@not_of_decoding
def test_fit_ends_where_too_many_are_broken(tmp_path):
    samples = [(f"{k:03d}", b"?" if k % 11 == 5 else image_file(k), str(k).encode()) for k in range(100)]
    dataset = pairs(write_tar(tmp_path / "a.tar", tar_members(samples)), 30, text_lengths=(8,))
    model = Shrink()
    model.compile(keras.optimizers.SGD(0.1))
    with pytest.raises(Exception, match=r"At most 5% of the samples may be broken.*6 of \d+ samples"):
        model.fit(dataset, epochs=3, verbose=0, shuffle=False)


def noisy(count):
    rng = np.random.default_rng(0)
    samples = []
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(file, "PNG")
        samples.append((str(number), file.getvalue(), str(number).encode()))
    return samples


def contents(dataset):
    return [(batch["images"].numpy().tobytes(), batch["token_ids"].numpy().tobytes()) for batch in dataset]
