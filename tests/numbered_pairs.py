"""Pairs whose image and caption encode the same number, written in every form that a source may have."""

import csv
import io
import tarfile

import numpy as np
from PIL import Image


def colour(number):
    return (5 * number % 256, 255 - number, 77)


def image_file(number, size=(20, 24), form="PNG"):
    """Returns an image of one colour, which resizing and cropping do not change."""
    file = io.BytesIO()
    Image.new("RGB", size, colour(number)).save(file, form)
    return file.getvalue()


def numbered(count):
    """Returns (key, image file, caption) of each number."""
    return [(f"{number:03d}", image_file(number), str(number).encode()) for number in range(count)]


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


def tar_members(samples):
    for key, image, caption in samples:
        yield from [(f"{key}.png", image)] * (image is not None) + [(f"{key}.txt", caption)] * (caption is not None)


def write_shards(folder, samples, count=3):
    """Writes the samples into `count` tars and returns their glob."""
    for shard in range(count):
        write_tar(folder / f"{shard:05d}.tar", tar_members(samples[shard::count]))
    return str(folder / "*.tar")


def write_records(path, rows):
    """Writes TFRecords of features; each row maps names to bytes or a list of bytes."""
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in rows:
            feature = {
                name: tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=value if isinstance(value, list) else [value])
                )
                for name, value in row.items()
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    return str(path)


def write_images(folder, samples):
    for key, image, _ in samples:
        (folder / f"{key}.png").write_bytes(image)


def write_table(path, samples, header=("path", "caption"), delimiter=","):
    write_images(path.parent, samples)
    with open(path, "w", newline="") as file:
        table = csv.writer(file, delimiter=delimiter)
        table.writerow(header)
        table.writerows([f"{key}.png", caption.decode()] for key, _, caption in samples)
    return str(path)


def write_folder(folder, samples):
    (folder / "below").mkdir()
    write_images(folder / "below", samples)
    for key, _, caption in samples:
        (folder / "below" / f"{key}.txt").write_bytes(caption + b"\n")
    return str(folder)


def _records(folder, samples):
    rows = [{"key": key.encode(), "jpg": image, "txt": caption} for key, image, caption in samples]
    for shard in range(3):
        write_records(folder / f"{shard:05d}.tfrecord", rows[shard::3])
    return str(folder / "*.tfrecord")


def _hugging_face(folder, samples):
    import datasets

    features = datasets.Features({"picture": datasets.Image(), "text": datasets.Value("string")})
    rows = {
        "picture": [{"bytes": image, "path": None} for _, image, _ in samples],
        "text": [caption.decode() for *_, caption in samples],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def _list(folder, samples):
    forms = [
        lambda file: file,
        lambda file: Image.open(io.BytesIO(file)),
        lambda file: np.asarray(Image.open(io.BytesIO(file))),
    ]
    return [{"picture": forms[k % 3](image), "text": caption.decode()} for k, (_, image, caption) in enumerate(samples)]


def _stream(folder, samples):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(
        {"picture": [image for _, image, _ in samples], "text": [caption for *_, caption in samples]}
    )


def _array_stream(folder, samples):
    import tensorflow as tf

    return _stream(folder, samples).map(
        lambda row: {"picture": tf.io.decode_png(row["picture"], 3), "text": row["text"]}
    )


COLUMNS = ("picture", "text")

# For each form, the function that stores pairs, and the mapping that reading them needs.
SOURCES = {
    "tars": (write_shards, None),
    "one tar": (lambda folder, samples: write_tar(folder / "all.tar", tar_members(samples)), None),
    "TFRecords": (_records, None),
    "csv": (lambda folder, samples: write_table(folder / "pairs.csv", samples), None),
    "tsv": (lambda folder, samples: write_table(folder / "pairs.tsv", samples, ("Filename", "title"), "\t"), None),
    "csv, columns named": (lambda folder, samples: write_table(folder / "pairs.csv", samples, COLUMNS), COLUMNS),
    "folder": (write_folder, None),
    "Hugging Face": (_hugging_face, COLUMNS),
    "Hugging Face, function": (_hugging_face, lambda row: (row["picture"], [row["text"]])),
    "list of dicts": (_list, COLUMNS),
    "tf.data of files": (_stream, COLUMNS),
    "tf.data of arrays": (_array_stream, COLUMNS),
    "tf.data, function": (_stream, lambda row: (row["picture"], row["text"])),
}


class NumberTokenizer:
    """Encodes texts of numbers as these numbers between a start and an end token; replaces CLIPTokenizer in tests."""

    context_length = 77

    def __call__(self, texts, truncate=False, length=None):
        rows = [[1000, *map(int, text.split()), 1001] for text in texts]
        width = max(map(len, rows)) if length == "longest" else length or self.context_length
        width = min(width, self.context_length) if truncate else width
        rows = [row if len(row) <= width else row[: width - 1] + [1001] for row in rows]
        return np.array([row + [0] * (width - len(row)) for row in rows], np.int32)


def numbers(batches):
    """Returns the number of each sample in order, read from its text and checked against its image."""
    found = []
    for batch in batches:
        images, token_ids = np.asarray(batch["images"]), np.asarray(batch["token_ids"])
        assert images.dtype == np.uint8 and token_ids.dtype == np.int32
        for image, tokens in zip(images, token_ids, strict=True):
            assert np.unique(image.reshape(-1, 3), axis=0).tolist() == [list(colour(int(tokens[1])))]
            found.append(int(tokens[1]))
    return found


def decode_one_colour(monkeypatch):
    """Makes the pipeline decode images of one colour only, for tests that do not depend on decoding.

    The graph of the real decoder, for all formats, takes a second to build in each pipeline.
    """
    from keras_clip.data import pairs

    def pixels(decoder, image, seed):
        import tensorflow as tf

        image = tf.io.decode_image(image, 3, expand_animations=False) if image.dtype == tf.string else image
        return tf.broadcast_to(image[:1, :1], decoder.nothing.shape)

    monkeypatch.setattr(pairs._Decoder, "_pixels", pixels)


def draw_from_the_crop_seed(monkeypatch):
    """Makes the pipeline return noise drawn from the seed of the crop instead of an image: see `decode_one_colour`."""
    from keras_clip.data import pairs

    def pixels(decoder, image, seed):
        import tensorflow as tf

        noise = tf.random.stateless_uniform(decoder.nothing.shape, seed, 0, 256, tf.int32)
        return tf.cast(noise, tf.uint8)

    monkeypatch.setattr(pairs._Decoder, "_pixels", pixels)


def read_all(reader):
    """Returns (image file, captions) of each sample of a reader."""
    images, captions = reader.read(np.arange(len(reader)))
    return list(zip(images, captions, strict=True))
