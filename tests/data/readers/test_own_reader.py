"""A user's own reader: a class with three methods is a source for training, and a row of `FORMS` opens its files."""

import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import small_clip
from numbered_pairs import NumberTokenizer, image_file, numbered, numbers, write_images

from keras_clip.data import ImagePreprocessor, Reader, image_text_pairs
from keras_clip.data.readers import Stream, forms, open_reader


class Numbers:
    """A complete reader, without a base class. Its pairs are generated when they are read."""

    def __len__(self):
        return 12

    def read(self, ids):
        return [image_file(k) for k in ids.tolist()], [[str(k).encode()] for k in ids.tolist()]

    def name(self, index):
        return f"number {index}"


class Counting(Stream):
    """A stream of the user's own: its samples can only be generated in order."""

    def __init__(self, first=0, step=1, size=12):
        self.first, self.step, self.size = first, step, size

    def part(self, shard, training):
        index, count = shard
        return Counting(index, count, self.size // count)

    def pairs(self, parallel):
        import tensorflow as tf

        def generate():
            for k in range(self.first, self.first + self.size * self.step, self.step):
                yield image_file(k), [str(k)]

        kinds = tf.TensorSpec((), tf.string), tf.TensorSpec((None,), tf.string)
        return tf.data.Dataset.from_generator(generate, output_signature=kinds)


class Lines(Reader):
    """Reads one file of JSON lines, each with the path of an image, its caption and other values."""

    def __init__(self, paths, mapping=None, captions=True):
        (path,) = map(Path, paths)
        self.folder, self.rows = path.parent, [json.loads(line) for line in path.read_text().splitlines()]

    def __len__(self):
        return len(self.rows)

    def read(self, ids):
        rows = [self.rows[k] for k in ids.tolist()]
        return [(self.folder / row["path"]).read_bytes() for row in rows], [[row["text"].encode()] for row in rows]

    def name(self, index):
        return self.rows[index]["path"]


def test_three_methods_are_enough_to_train():
    clip = small_clip.build(vocabulary_size=49408)
    clip.compile(keras.optimizers.SGD(0.1))
    before = small_clip.state(clip)
    pairs = image_text_pairs(Numbers(), clip, batch_size=12)
    assert pairs.num_samples == 12
    history = clip.fit(pairs, epochs=1, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    changed = [not np.array_equal(before[key], after) for key, after in small_clip.state(clip).items()]
    assert np.mean(changed) > 0.5


@pytest.mark.backend_free
class TestWithoutABase:
    def pairs(self, source, **options):
        preprocessor = ImagePreprocessor(image_size=16)
        return image_text_pairs(
            source,
            batch_size=4,
            tokenizer=NumberTokenizer(),
            image_preprocessor=preprocessor,
            training=False,
            **options,
        )

    def test_pairs_and_names_are_those_of_the_reader(self):
        class Broken(Numbers):
            def __len__(self):
                return 30

            def read(self, ids):
                images, captions = super().read(ids)
                return [b"?" if k == 5 else image for k, image in zip(ids.tolist(), images, strict=True)], captions

        found = self.pairs(Broken())
        assert numbers(found) == [k for k in range(30) if k != 5]
        assert found.skipped.examples[0].startswith("number 5: undecodable image")

    @pytest.mark.parametrize(("shard", "expected"), [((0, 1), range(12)), ((1, 3), range(1, 12, 3))], ids=str)
    def test_a_stream(self, shard, expected):
        found = self.pairs(Counting(), shard=shard)
        assert numbers(found) == list(expected) and found.num_samples == len(expected)

    def test_a_stream_takes_no_mapping(self):
        with pytest.raises(ValueError, match="takes no mapping. Received: .*Counting.*mapping="):
            self.pairs(Counting(), mapping=("image", "text"))

    def test_a_reader_takes_no_mapping(self):
        with pytest.raises(ValueError, match="takes no mapping. Received: .*Numbers.*mapping="):
            self.pairs(Numbers(), mapping=("image", "text"))

    @pytest.mark.parametrize("method", ["__len__", "read", "name"])
    def test_a_method_is_missing(self, method):
        methods = {name: value for name, value in vars(Numbers).items() if name != method}
        with pytest.raises(TypeError, match="or a Reader. Received"):
            open_reader(type("Incomplete", (), methods)())
        with pytest.raises(TypeError, match=rf"abstract.*{method}"):
            type("Incomplete", (Reader,), methods)()

    def test_a_class_is_no_reader(self):
        with pytest.raises(TypeError, match="or a Reader. Received"):
            open_reader(Numbers)

    def test_inherited_methods(self):
        class Inherited(Reader, Numbers):
            __len__, read, name = Numbers.__len__, Numbers.read, Numbers.name

        reader, ids = Inherited(), np.array([3, 1])
        assert reader.keys(ids) == ["number 3", "number 1"]
        assert reader.captions(ids) == [[b"3"], [b"1"]]
        assert reader.metadata(ids) == [{}, {}]

    def test_a_row_makes_it_a_form_of_files(self, tmp_path, monkeypatch):
        lines = tmp_path / "pairs.rows"
        write_images(tmp_path, numbered(5))
        rows = [{"path": f"{key}.png", "text": caption.decode()} for key, _, caption in numbered(5)]
        lines.write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(ValueError, match=re.escape(f"Received: '{lines}', which is none of these")):
            self.pairs(lines)
        row = forms.Form("lines of JSON", forms.named(r"\.rows"), Lines)
        monkeypatch.setattr(forms, "FORMS", (row, *forms.FORMS))
        assert numbers(self.pairs(lines)) == list(range(5))
