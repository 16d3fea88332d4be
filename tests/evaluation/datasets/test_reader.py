"""Evaluation reads every storage form with the reader of training: equal images, captions, keys and refusals."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from numbered_pairs import NumberTokenizer, colour, numbered, numbers, write_records, write_tar
from PIL import Image

from keras_clip.data import ImagePreprocessor, Reader, image_text_pairs
from keras_clip.data.readers import open_reader
from keras_clip.evaluation import captions_of_tars, sources

pytestmark = pytest.mark.backend_free

COUNT = 10
CLASSES = ("even", "odd")


def labelled():
    """Returns (key, image file, caption, class) of each number."""
    return [(key, image, caption, CLASSES[number % 2]) for number, (key, image, caption) in enumerate(numbered(COUNT))]


def tar(folder):
    members = []
    for key, image, caption, name in labelled():
        record = json.dumps({"name": name, "half": key < "005", "caption": "another"}).encode()
        members += [(f"x/{key}.json", record), (f"x/{key}.png", image), (f"x/{key}.txt", caption)]
    return write_tar(folder / "a.tar", members)


def records(folder):
    rows = [
        {"key": key.encode(), "png": image, "txt": caption, "name": name.encode()}
        for key, image, caption, name in labelled()
    ]
    return write_records(folder / "a.tfrecord", rows)


def table(folder):
    lines = ["path,caption,name"]
    for key, image, caption, name in labelled():
        (folder / f"{key}.png").write_bytes(image)
        lines.append(f"{key}.png,{caption.decode()},{name}")
    (folder / "pairs.csv").write_text("\n".join(lines))
    return folder / "pairs.csv"


def lines(folder):
    rows = []
    for key, image, caption, name in labelled():
        (folder / f"{key}.png").write_bytes(image)
        rows.append(json.dumps({"file_name": f"{key}.png", "text": caption.decode(), "name": name}))
    (folder / "pairs.jsonl").write_text("\n".join(rows))
    return folder / "pairs.jsonl"


def parquet(folder):
    import pyarrow
    import pyarrow.parquet

    keys, images, captions, names = zip(*labelled(), strict=True)
    columns = {"key": keys, "jpg": images, "txt": [caption.decode() for caption in captions], "name": names}
    pyarrow.parquet.write_table(pyarrow.Table.from_pydict(columns), str(folder / "a.parquet"))
    return folder / "a.parquet"


def compressed(folder):
    content = Path(tar(folder)).read_bytes()
    (folder / "b.tar.gz").write_bytes(gzip.compress(content))
    return folder / "b.tar.gz"


def linked(folder):
    """Every image is a hard link, and names are those of PAX."""
    with tarfile.open(folder / "a.tar", "w", format=tarfile.PAX_FORMAT) as shard:
        for key, image, caption, name in labelled():
            folder_name = "é" * 120
            record = json.dumps({"name": name}).encode()
            for end, content in (("bin", image), ("json", record), ("txt", caption)):
                member = tarfile.TarInfo(f"{folder_name}/{'.' if end == 'bin' else ''}{key}.{end}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
            member = tarfile.TarInfo(f"{folder_name}/{key}.png")
            member.type, member.linkname = tarfile.LNKTYPE, f"{folder_name}/.{key}.bin"
            shard.addfile(member)
    return folder / "a.tar"


def classes(folder):
    """The class as .cls, keys that restart in each of two shards."""
    for shard in range(2):
        rows = labelled()[5 * shard :][:5]
        ends = [
            (f"{row}.{end}", content)
            for row, (_, image, caption, name) in enumerate(rows)
            for end, content in (("cls", name.encode()), ("jpg", image), ("txt", caption))
        ]
        write_tar(folder / f"{shard}.tar", ends)
    return f"{folder}/*.tar"


def several(folder):
    """Five pairs of a tar, five rows of a data frame."""
    pandas = pytest.importorskip("pandas")
    first, second = labelled()[:5], labelled()[5:]
    members = [
        (f"{key}.{end}", content)
        for key, image, caption, name in first
        for end, content in (("png", image), ("txt", caption), ("json", json.dumps({"name": name}).encode()))
    ]
    keys, images, captions, names = zip(*second, strict=True)
    frame = pandas.DataFrame({"image": images, "caption": [caption.decode() for caption in captions], "name": names})
    return [write_tar(folder / "a.tar", members), frame]


def folders(folder):
    for key, image, caption, name in labelled():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"{key}.png").write_bytes(image)
        (folder / name / f"{key}.txt").write_bytes(caption)
    return folder


def hugging_face(folder):
    import datasets

    kinds = {"image": datasets.Image(), "text": datasets.Value("string"), "name": datasets.ClassLabel(names=CLASSES)}
    keys, images, captions, names = zip(*labelled(), strict=True)
    columns = {
        "image": [{"bytes": image, "path": None} for image in images],
        "text": [caption.decode() for caption in captions],
        "name": [CLASSES.index(name) for name in names],
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def rows(folder):
    return [{"image": image, "text": caption.decode(), "name": name} for _, image, caption, name in labelled()]


class Own(Reader):
    def __len__(self):
        return COUNT

    def read(self, ids):
        found = [labelled()[k] for k in ids.tolist()]
        return [image for _, image, *_ in found], [[caption] for _, _, caption, _ in found]

    def name(self, index):
        return f"sample {index}"

    def metadata(self, ids):
        return [{"name": labelled()[k][3]} for k in ids.tolist()]


# Each form: the function that stores the samples, the mapping, the name of the label, and the key of a sample.
FORMS = {
    "tar": (tar, None, "name", lambda key, name: f"x/{key}"),
    "TFRecord": (records, None, "name", lambda key, name: key),
    "TFRecord, named": (records, ("png", "txt"), "name", lambda key, name: key),
    "lines of JSON": (lines, None, "name", lambda key, name: f"{key}.png"),
    "Parquet": (parquet, None, "name", lambda key, name: key),
    "compressed tar": (compressed, None, "name", lambda key, name: f"x/{key}"),
    "linked members": (linked, None, "name", lambda key, name: f"{'é' * 120}/{key}"),
    "keys that restart": (classes, None, None, lambda key, name: f"{int(key) // 5}/{int(key) % 5}"),
    "several sources": (several, None, None, lambda key, name: key if key < "005" else f"{int(key) - 5:07d}"),
    "table": (table, None, "name", lambda key, name: f"{key}.png"),
    "folder": (folders, None, None, lambda key, name: f"{name}/{key}.png"),
    "Hugging Face": (hugging_face, ("image", "text"), "name", lambda key, name: f"{int(key):07d}"),
    "list of dicts": (rows, ("image", "text"), "name", lambda key, name: f"{int(key):07d}"),
    "own reader": (lambda folder: Own(), None, "name", lambda key, name: f"sample {int(key)}"),
}
forms = pytest.mark.parametrize("store, mapping, label, key", FORMS.values(), ids=FORMS)


def pairs(source, mapping=None):
    return image_text_pairs(
        source,
        batch_size=4,
        tokenizer=NumberTokenizer(),
        image_preprocessor=ImagePreprocessor(image_size=16),
        mapping=mapping,
        training=False,
    )


@forms
def test_training_and_evaluation_read_the_same(store, mapping, label, key, tmp_path):
    source = store(tmp_path)
    images = sources.from_reader(source, label=label, mapping=mapping)
    expected = {key(name, class_name): (image, caption, class_name) for name, image, caption, class_name in labelled()}

    reader = open_reader(source, mapping)
    ids = np.arange(COUNT)
    files, captions = reader.read(ids)
    assert tuple(reader.keys(ids)) == images.ids and set(images.ids) == set(expected)
    assert files == [sample.image for sample in images] == [expected[identity][0] for identity in images.ids]
    assert captions == reader.captions(ids) == [[expected[identity][1]] for identity in images.ids]
    texts = sources.captions_of(source, mapping)
    assert texts == {identity: [caption.decode()] for identity, (caption,) in zip(images.ids, captions, strict=True)}
    assert [images.class_names[number] for number in images.labels] == [expected[i][2] for i in images.ids]
    assert images.class_names == CLASSES
    # Reading can start at any image.
    assert list(images.read(7)) == files[7:] and list(images.read(COUNT)) == []


@pytest.mark.parametrize("store", [tar, lambda folder: Own()], ids=["tar", "own reader"])
def test_the_pipeline_reads_the_images_in_the_same_order(store, tmp_path):
    source = store(tmp_path)
    images = sources.from_reader(source, label="name")
    shown = [Image.open(io.BytesIO(file)).getpixel((0, 0)) for file in images.read(0)]
    assert [colour(number) for number in numbers(pairs(source))] == shown


@pytest.mark.parametrize("store, mapping", [(records, ("png", None)), (rows, ("image", None))], ids=["records", "rows"])
def test_captions_are_not_needed(store, mapping, tmp_path):
    source = store(tmp_path)
    assert len(sources.from_reader(source, label="name", mapping=mapping)) == COUNT
    with pytest.raises(ValueError, match="must name two columns"):
        pairs(source, mapping)


def test_where_there_are_no_captions(tmp_path):
    members = [
        (f"{k}.{end}", content)
        for k in "ab"
        for end, content in (("png", b"?"), ("json", b'{"name": "%s"}' % k.encode()))
    ]
    source = write_tar(tmp_path / "a.tar", [*members, ("lonely.json", b"{}"), ("other.txt", b"x")])
    assert sources.from_reader(source, label="name").ids == ("a", "b")
    assert sources.captions_of(source) == {"other": ["x"]}
    record = write_records(tmp_path / "a.tfrecord", [{"png": b"?", "name": name} for name in (b"a", b"b")])
    assert sources.from_reader(record, label="name").ids == ("0", "1")
    with pytest.raises(ValueError, match="a feature named 'txt'"):
        sources.captions_of(record)


def test_groups_and_options(tmp_path):
    images = sources.from_reader(
        tar(tmp_path),
        ["odd", "even", "none"],
        label="name",
        group="half",
        name="n",
        split="train",
        empty_classes="keep",
    )
    assert images.groups == ("True",) * 5 + ("False",) * 5
    assert (images.name, images.split, images.class_names) == ("n", "train", ("odd", "even", "none"))
    assert images.labels.tolist() == [1, 0] * 5
    several = sources.from_reader(tar(tmp_path), label=lambda metadata: [metadata["name"], "number"])
    assert several.multi_label and several.class_names == ("even", "number", "odd")


class Bare:
    __len__, read, name = Own.__len__, Own.read, Own.name


def stream(folder):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices([b"?"])


ROWS = {"mapping": ("image", "text")}
REFUSED = {
    "no such label": (rows, {"label": "kind", **ROWS}, ValueError, "'kind' in the metadata.*element 0 with .*'even'"),
    "no such group": (rows, {"label": "name", "group": "kind", **ROWS}, ValueError, "'kind' in the metadata"),
    "a function without a value": (rows, {"label": lambda row: None, **ROWS}, ValueError, "a label in"),
    "a reader without keys": (lambda folder: Bare(), {}, TypeError, "keys, metadata.*Derive"),
    "a stream": (stream, {"mapping": len}, TypeError, "list of a stream"),
    "nothing": (lambda folder: folder / "gone.tar", {}, FileNotFoundError, "gone.tar"),
}


@pytest.mark.parametrize("store, options, error, message", REFUSED.values(), ids=REFUSED)
def test_refusals(store, options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        sources.from_reader(store(tmp_path), **options)


@pytest.mark.parametrize("damage", ["cut at a member", "a flipped header byte"])
def test_a_damaged_tar_is_refused_by_all(damage, tmp_path):
    path = tar(tmp_path)
    member = tarfile.open(path).getmembers()[15]
    content = open(path, "rb").read()
    place = member.offset
    damaged = content[:place] if damage == "cut at a member" else content[: place + 3] + b"\xff" + content[place + 4 :]
    open(path, "wb").write(damaged)
    for read in (pairs, sources.tars, sources.from_reader, sources.captions_of, captions_of_tars):
        with pytest.raises(ValueError, match="whole tar"):
            read(path)


def test_a_text_is_one_caption_in_evaluation_as_in_training(tmp_path, caplog):
    members = [("a.png", b"?"), ("a.txt", b"x\n\ny \n"), ("b.json", b'{"caption": ["u", "", "v"]}'), ("c.txt", b" \n")]
    source = write_tar(tmp_path / "a.tar", [*members, ("d.txt", b"caf\xe9"), ("e.jpg", b"?")])
    assert captions_of_tars(source) == {"a": ["x\n\ny"], "b": ["u", "v"]}
    assert "skipped 1 of 5 samples: caption not UTF-8 1. First: " in caplog.text and "a.tar: d" in caplog.text


def test_captions_of_keys_that_restart(tmp_path):
    """In one shard a key occurs twice only if its samples do, which training refuses as well."""
    assert sources.captions_of(classes(tmp_path)) == {f"{k // 5}/{k % 5}": [str(k)] for k in range(COUNT)}
    (tmp_path / "a.csv").write_text("path,caption,label\na.png,x,u\na.png,y,v\n")
    with pytest.raises(ValueError, match="same key.*'a.png'"):
        sources.captions_of(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="same id"):
        sources.from_reader(tmp_path / "a.csv", mapping=("path", None))


class TestNumbersOfClasses:
    """What `.cls` files hold."""

    @staticmethod
    def tar(folder, numbers):
        members = [(f"{k}.{end}", text) for k, n in enumerate(numbers) for end, text in (("jpg", b"?"), ("cls", n))]
        return write_tar(folder / "a.tar", members)

    @pytest.mark.parametrize(
        "numbers, class_names, expected",
        [
            ([b"2", b"0", b"10"], None, ["2", "0", "10"]),
            ([b"2", b"0\n", b"1"], ["cat", "dog", "ant"], ["ant", "cat", "dog"]),
            # Names that are numbers are names: those that the first case found, in its order.
            ([b"2", b"0", b"10"], ["0", "10", "2"], ["2", "0", "10"]),
            ([b"dog", b"cat", b"dog"], ["cat", "dog"], ["dog", "cat", "dog"]),
        ],
        ids=["no names", "places", "names that are numbers", "names"],
    )
    def test_names(self, numbers, class_names, expected, tmp_path):
        source = self.tar(tmp_path, numbers)
        for read in (sources.tars, sources.from_reader):
            images = read(source, class_names)
            assert [images.class_names[label] for label in images.labels] == expected

    def test_a_place_beyond_the_names(self, tmp_path):
        with pytest.raises(ValueError, match="Received: 7 in a .cls, with 2 names"):
            sources.tars(self.tar(tmp_path, [b"0", b"7"]), ["cat", "dog"])

    def test_the_json_comes_first(self, tmp_path):
        members = [(f"{k}.{end}", b"?") for k in "ab" for end in ("jpg", "cls")]
        members += [("a.json", b'{"name": "cat"}'), ("b.json", b'{"name": "dog", "tags": ["x"]}')]
        source = write_tar(tmp_path / "a.tar", members)
        assert sources.tars(source).class_names == ("cat", "dog")
        with pytest.raises(ValueError, match="at least two classes"):
            sources.tars(source, label="cls")
        chosen = sources.tars(source, label=lambda metadata: metadata["name"].upper(), image="jpg")
        assert chosen.class_names == ("CAT", "DOG")


def test_spaces_around_labels(tmp_path):
    (tmp_path / "a.csv").write_text("path; Label ;Group\na.png; cat;x\nb.png;cat ;\n c.png;dog;y\n")
    images = sources.csv(tmp_path / "a.csv")
    assert images.class_names == ("cat", "dog") and images.labels.tolist() == [0, 0, 1]
    assert (images.ids, images.groups) == (("a.png", "b.png", "c.png"), ("x", "", "y"))
    (tmp_path / "a.jsonl").write_text('{"path": "a.png", "tags": ["a ", "b"]}\n{"path": "b.png", "tags": [" b"]}\n')
    images = sources.csv(tmp_path / "a.jsonl", label="tags")
    assert images.class_names == ("a", "b") and images.labels.tolist() == [[1, 1], [0, 1]]
    with pytest.raises(ValueError, match="a label|'tags'"):
        sources.csv(
            write_lines(tmp_path, [{"path": "a.png", "tags": None}, {"path": "b.png", "tags": "x"}]), label="tags"
        )


def write_lines(folder, rows):
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "rows.jsonl"


def test_columns_of_other_names(tmp_path):
    (tmp_path / "a.csv").write_text("photo:kind:part\na.png:cat, big:x\nb.png:dog:y\n")
    images = sources.csv(tmp_path / "a.csv", image="photo", label="KIND", group="part", delimiter=":")
    assert images.class_names == ("cat, big", "dog") and images.groups == ("x", "y")
    with pytest.raises(ValueError, match=r"'kind'\] twice"):
        (tmp_path / "b.csv").write_text("path,kind,kind\na.png,cat,dog\n")
        sources.csv(tmp_path / "b.csv", label="kind")


def test_a_label_that_is_no_number(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"image": [b"A", b"B"], "label": ["cat", None]})
    with pytest.raises(ValueError, match="'label' in the metadata.*element 1"):
        sources.from_reader(frame)


def test_what_is_passed_over_is_reported(tmp_path, caplog):
    """By training and evaluation alike, in one class."""
    for name in ("cat/a.png", "cat/b.heic", "dog/c.jfif", "dog/notes.md", "e.png", ".git/f.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"?")
    (tmp_path / "cat" / "a.txt").write_text("x")
    images = sources.folder_per_class(tmp_path)
    assert images.ids == ("cat/a.png", "dog/c.jfif")
    counts = {"image format not read": 1, "not an image": 1, "hidden folder": 1}
    assert images.skipped.counts == {**counts, "in no folder of a class": 1}
    assert f"{tmp_path}/e.png: in no folder of a class" in images.skipped.examples
    assert f"passed over 4 files of {tmp_path}: " in caplog.text
    dataset = pairs(tmp_path)
    assert dataset.skipped.counts == counts and type(dataset.skipped) is type(images.skipped)
    source = write_tar(
        tmp_path / "a.tar", [(f"{k}.5.jpg", b"?") for k in range(3)] + [("a.jpg", b"?"), ("a.cls", b"x")]
    )
    with pytest.raises(ValueError, match="at least two classes"):
        sources.tars(source)
    source = write_tar(tmp_path / "b.tar", [("a.1.jpg", b"?"), ("a.1.cls", b"x"), ("b.heic", b"?")])
    with pytest.raises(ValueError, match="with 0 ids.*Passed over.*second dot.*'image format not read': 1"):
        sources.tars(source)


@pytest.mark.parametrize("store", [tar, records, table, lines, parquet, folders], ids=lambda store: store.__name__)
def test_a_file_is_whole_or_refused_for_both(store, tmp_path):
    """Every place of a cut: evaluation and training read the same of it, or refuse it with one message."""
    path = Path(store(tmp_path))
    if path.is_dir():
        path = path / "even" / "000.txt"
    content = path.read_bytes()
    source = tmp_path if path.suffix == ".txt" else path
    for kept in np.linspace(0, len(content) - 1, 12).astype(int).tolist():
        path.write_bytes(content[:kept])
        outcomes = [outcome(sources.from_reader, source), outcome(open_reader, source)]
        if isinstance(outcomes[0], str):
            # Evaluation needs the label of each image and two classes as well.
            is_label = outcomes[0].startswith(("There must be 'name' in", "There must be at least two classes"))
            assert is_label or outcomes[1] == outcomes[0] or isinstance(outcomes[1], str)
        else:
            images, reader = outcomes
            ids = np.arange(len(reader))
            assert images.ids == tuple(reader.keys(ids)) and list(images.read(0)) == reader.read(ids)[0]


def outcome(read, source):
    try:
        return read(source)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
