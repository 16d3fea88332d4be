"""Feeds mutated files to every reader of untrusted input, and looks for crashes, hangs and lost samples.

    python tools/fuzz.py                     # 100,000 mutations, about 20 minutes on 2 cores
    python tools/fuzz.py --count 5000 --kinds images tars

Kinds: images, tars, tfrecords, csvs, jsonl, parquet, compressed (tars, tables and TFRecords packed by gzip, bzip2 and
xz), checkpoints (safetensors and torch files), keras (`.keras` files) and stores. Each mutation cuts, changes, removes,
inserts, repeats or joins bytes of a whole file. A reader may return what the file holds, or raise an error of Python
that says what is wrong. Counted as faults are: any other exception, the end of the process by a signal, more than
`--seconds` for one file, more than `--megabytes` of resident memory above the start, and a container that yields fewer
samples than its own length says ("silent shrink"). Prints a row for each kind; the
status is 1 if there is a fault, and each one is written to `--out` with its seed, so that it can be repeated.
"""

import argparse
import bz2
import contextlib
import csv
import faulthandler
import gzip
import io
import json
import lzma
import os
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

# The scripts of both folders use `terminal`, which is in examples/.
sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import numpy as np
import terminal

# What a reader may raise of a file that is not as it should be: an error that says what is wrong.
REFUSALS = (ValueError, FileNotFoundError)
SHARES = {
    "images": 38,
    "tars": 16,
    "tfrecords": 10,
    "csvs": 7,
    "jsonl": 7,
    "parquet": 6,
    "compressed": 6,
    "checkpoints": 5,
    "keras": 1,
    "stores": 4,
}


def parse_args(argv=None) -> argparse.Namespace:
    parser = terminal.Parser(__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="mutations of all kinds together")
    parser.add_argument("--kinds", nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0, help="for one file")
    parser.add_argument("--megabytes", type=int, default=1024, help="resident memory above that of the start")
    parser.add_argument("--out", type=Path, help="folder for the files that are faults")
    return parser.parse_args(argv)


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three changes of the bytes of a file."""
    for _ in range(rng.integers(1, 4)):
        size = max(1, len(data))
        # Half of them near the start, where headers are.
        place = int(rng.integers(size)) if rng.random() < 0.5 else int(rng.integers(min(size, 512)))
        length = int(rng.integers(1, 2 ** rng.integers(1, 8)))
        kind = rng.integers(8)
        if kind == 0:
            data = data[:place]
        elif kind == 1:
            data = data[:place] + bytes([rng.integers(256)]) + data[place + 1 :]
        elif kind == 2:
            data = data[:place] + data[place + length :]
        elif kind == 3:
            data = data[:place] + rng.bytes(length) + data[place:]
        elif kind == 4:
            data = data[:place] + data[place : place + length] * int(rng.integers(2, 9)) + data[place + length :]
        elif kind == 5:
            # Numbers at the edges, as lengths and offsets are written.
            number = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF][rng.integers(8)]
            form = ["<I", ">I", "<Q", ">Q"][rng.integers(4)]
            packed = struct.pack(form, number)
            data = data[:place] + packed + data[place + len(packed) :]
        elif kind == 6:
            data = data[:place] + bytes([data[place] ^ (1 << rng.integers(8))]) + data[place + 1 :] if data else data
        else:
            other = int(rng.integers(size))
            data = data[:place] + data[other:]
    return data


class Images:
    """Every format of the allowlist, through `ImagePreprocessor` and, for some, the graph of the pipeline."""

    def __init__(self, folder: Path):
        import keras_clip
        from keras_clip.data import graph_images

        self._preprocessor = keras_clip.data.ImagePreprocessor(16, max_pixels=2**22)
        self.files = image_files()
        self._graph = None
        self._graph_images, self._turn = graph_images, 0

    def read(self, data: bytes) -> str | None:
        self._turn += 1
        try:
            own = self._preprocessor.to_uint8(data)[0]
        except ValueError:
            own = None
        if self._turn % 4 == 0:
            in_graph = self._in_graph(data)
            if (own is None) != (in_graph is None):
                # Decoders may disagree about the last bytes of a damaged JPEG, seldom: 7 in 150,000.
                return None if data[:2] == b"\xff\xd8" else "one path refuses what the other reads"
        if own is None:
            raise ValueError("refused")
        return None if own.shape == (16, 16, 3) else "another shape"

    def _in_graph(self, data: bytes):
        import tensorflow as tf

        if self._graph is None:
            view_of = self._graph_images.centered_view_in_graph

            @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
            def decode(data):
                return self._graph_images.decode_view(data, tf.zeros(2, tf.int64), 16, view_of, max_pixels=2**22)

            self._graph = decode
        try:
            return self._graph(tf.constant(data)).numpy()
        except tf.errors.OpError:
            return None


def image_files() -> list[bytes]:
    """A small file of each format, some with metadata."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 4), "uint8")
    image, files = Image.fromarray(pixels), []
    exif = Image.Exif()
    exif[0x0112] = 6
    for form, mode, options in (
        ("JPEG", "RGB", {"exif": exif}),
        ("JPEG", "L", {"progressive": True}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGBA", {"exif": exif}),
        ("PNG", "P", {}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "RGB", {"exif": exif}),
        ("GIF", "P", {}),
        ("GIF", "P", {"save_all": True, "append_images": [image.convert("P").rotate(90)]}),
        ("BMP", "RGB", {}),
        ("BMP", "P", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw", "exif": exif}),
        ("TIFF", "RGB", {"compression": "jpeg"}),
        ("TIFF", "L", {}),
        ("AVIF", "RGB", {}),
        ("PPM", "RGB", {}),
        ("PPM", "1", {}),
    ):
        file = io.BytesIO()
        image.convert(mode).save(file, form, **options)
        files.append(file.getvalue())
    return files


def _copies() -> list[Path]:
    """The copies that readers made in the cache: decompressed, or in another format."""
    return [path for path in Path(os.environ["XDG_CACHE_HOME"]).rglob("*") if path.is_file()]


class Container:
    """A file of samples, which its reader indexes and then reads by number."""

    suffix = ""
    # Whether the format lets a reader see that samples are gone.
    is_checked = True

    def __init__(self, folder: Path):
        self._folder, self._number, self._count = folder, 0, 0
        self.files = [self.whole()]

    def whole(self) -> bytes:
        raise NotImplementedError

    def read(self, data: bytes) -> str | None:
        from keras_clip.data.readers import open_reader

        self._number += 1
        path = self._folder / f"{self._number}{self.suffix}"
        path.write_bytes(data)
        try:
            reader = open_reader(str(path), None)
            ids = np.arange(len(reader))
            images, captions = reader.read(ids)
            names = [reader.name(index) for index in ids.tolist()]
        finally:
            # The file with its index, and copies of it.
            for left in (*self._folder.glob(f"{path.name}*"), *_copies()):
                left.unlink()
        # The first call is with the whole file. A file cut between two records of a format without an end is whole.
        self._count = self._count or len(ids)
        told = len(ids) + (reader.skipped.total if reader.skipped else 0)
        is_shorter = self.is_checked and told < self._count and not self.files[0].startswith(data)
        if is_shorter or not len(images) == len(captions) == len(names) == len(ids):
            return f"silent shrink: {len(ids)} of {self._count} samples"
        return None if all(isinstance(image, bytes) for image in images) else "an image that is no bytes"


def pairs(count: int = 6) -> list[tuple[str, bytes, bytes]]:
    images = image_files()
    return [(f"{i:04d}", images[i], f"a caption of {i}".encode()) for i in range(count)]


class Tars(Container):
    suffix = ".tar"

    def whole(self) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for key, image, caption in pairs():
                for name, body in ((f"{key}.png", image), (f"{key}.txt", caption), (f"é{key}.json", b"{}")):
                    member = tarfile.TarInfo(name)
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))
        return file.getvalue()


class TFRecords(Container):
    suffix = ".tfrecord"

    def whole(self) -> bytes:
        import tensorflow as tf

        path = self._folder / "whole.tfrecord"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for _, image, caption in pairs():
                features = {"jpg": image, "txt": caption}
                features = {
                    name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[body]))
                    for name, body in features.items()
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
        return path.read_bytes()


class Csvs(Container):
    suffix = ".csv"
    is_checked = False

    def whole(self) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["path", "caption"])
        for key, image, caption in pairs():
            (self._folder / f"{key}.img").write_bytes(image)
            writer.writerow([f"{key}.img", f'{caption.decode()}, "quoted"\nin lines, é'])
        return text.getvalue().encode()


class Jsonl(Container):
    """Lines of JSON; a line that is gone leaves no trace, as in a table."""

    suffix = ".jsonl"
    is_checked = False

    def whole(self) -> bytes:
        lines = []
        for key, image, caption in pairs():
            (self._folder / f"{key}.img").write_bytes(image)
            captions = [caption.decode(), 'é "quoted"'] if key == "0001" else caption.decode()
            lines.append(json.dumps({"path": f"{key}.img", "caption": captions, "number": 1.5, "more": {"a": [None]}}))
        return "\n".join(lines).encode()


class Parquet(Container):
    """Files of img2dataset, compressed as it does; pyarrow reads them, in native code."""

    suffix = ".parquet"

    def whole(self) -> bytes:
        import pyarrow
        import pyarrow.parquet

        keys, images, captions = zip(*pairs(), strict=True)
        table = pyarrow.table({"key": keys, "jpg": images, "txt": [caption.decode() for caption in captions]})
        file = io.BytesIO()
        pyarrow.parquet.write_table(table, file, row_group_size=2)
        return file.getvalue()


class Compressed:
    """Compressed files of samples, which are decompressed to the cache and then read as the others."""

    def __init__(self, folder: Path):
        self._kinds = []
        for number, (suffix, pack, container) in enumerate(
            (("gz", gzip.compress, Tars), ("xz", lzma.compress, Tars), ("bz2", bz2.compress, Csvs))
            + (("gz", gzip.compress, Jsonl), ("gz", gzip.compress, TFRecords))
        ):
            (folder / str(number)).mkdir()
            target = container(folder / str(number))
            target.suffix += f".{suffix}"
            target.files = [pack(target.files[0])]
            self._kinds.append(target)
        # The first byte says which reader it is for.
        self.files = [bytes([number]) + target.files[0] for number, target in enumerate(self._kinds)]

    def read(self, data: bytes) -> str | None:
        if not data or data[0] >= len(self._kinds):
            raise ValueError("refused")
        return self._kinds[data[0]].read(data[1:])


def small_clip():
    import keras_clip

    encoders = keras_clip.encoders
    return keras_clip.CLIPModel(
        encoders.VisionTransformer(image_size=8, patch_size=4, width=8, num_layers=1, num_heads=1),
        encoders.TextTransformer(width=8, num_layers=1, num_heads=1, context_length=8),
        embed_dim=4,
    )


class Checkpoints:
    """Tensors of safetensors and torch files, which must not run what a pickle says."""

    def __init__(self, folder: Path):
        from safetensors.numpy import save

        tensors = {f"layer.{i}.weight": np.arange(12, dtype=np.float32).reshape(3, 4) for i in range(3)}
        self._folder, self._number = folder, 0
        self.files = [b"S" + save(tensors)]
        try:
            import torch
        except ImportError:
            return
        file = io.BytesIO()
        torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, file)
        self.files.append(b"T" + file.getvalue())

    def read(self, data: bytes) -> str | None:
        from keras_clip.presets.tensor_files import TensorFiles

        self._number += 1
        path = self._folder / f"{self._number}.{'safetensors' if data[:1] == b'S' else 'pt'}"
        path.write_bytes(data[1:])
        try:
            return self._tensors(TensorFiles, path)
        finally:
            path.unlink()

    @staticmethod
    def _tensors(opener, path):
        tensors = opener([path])
        for key, shape in tensors.shapes.items():
            if tensors.read(key).shape != tuple(shape):
                return f"another shape of {key}"
        return None


class Keras:
    """Whole models as `.keras` files. Keras reads them, and raises what it likes."""

    refusals = (Exception,)

    def __init__(self, folder: Path):
        path = folder / "clip.keras"
        small_clip().save(path)
        self._path, self.files = folder / "mutated.keras", [path.read_bytes()]

    def read(self, data: bytes) -> str | None:
        import keras

        self._path.write_bytes(data)
        keras.saving.load_model(self._path, compile=False)
        return None


class Stores:
    """Feature stores: one file of a store is mutated, and the store opened and read."""

    def __init__(self, folder: Path):
        from keras_clip.evaluation import FeatureStore, sources

        rng, pictures = np.random.default_rng(0), folder / "pictures"
        from PIL import Image

        for name in ("cat", "dog"):
            (pictures / name).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), "uint8")).save(pictures / name / f"{i}.png")
        self._folder = folder / "store"
        FeatureStore.build(small_clip(), sources.folder_per_class(pictures), self._folder, batch_size=2)
        self._whole = {path.name: path.read_bytes() for path in sorted(self._folder.iterdir())}
        self.files = [name.encode().ljust(64) + body for name, body in self._whole.items()]

    def read(self, data: bytes) -> str | None:
        from keras_clip.evaluation import FeatureStore

        name = data[:64].decode("latin-1").strip()
        if name not in self._whole:
            raise ValueError("refused")
        path = self._folder / name
        path.write_bytes(data[64:])
        try:
            store = FeatureStore.open(self._folder)
            rows = {len(np.asarray(column)) for column in (store.features, store.embeddings, store.labels, store.ids)}
            del store
        finally:
            path.unlink()
            path.write_bytes(self._whole[name])
        return None if rows == {6} else "silent shrink"


KINDS = {
    "images": Images,
    "tars": Tars,
    "tfrecords": TFRecords,
    "csvs": Csvs,
    "jsonl": Jsonl,
    "parquet": Parquet,
    "compressed": Compressed,
    "checkpoints": Checkpoints,
    "keras": Keras,
    "stores": Stores,
}


class Hang(BaseException):
    """Not an `Exception`, so that no reader takes it for a broken file."""


def resident() -> float:
    """Resident memory in megabytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


@contextlib.contextmanager
def in_cache(folder: Path):
    """Lets readers make their copies in this folder."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    try:
        yield
    finally:
        del os.environ["XDG_CACHE_HOME"]
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before


def run_kind(name: str, count: int, args: argparse.Namespace) -> tuple[Counter, list[str]]:
    """Counts of outcomes and descriptions of faults of `count` mutations of one kind."""
    warnings.simplefilter("ignore")
    outcomes, faults = Counter(), []

    def alarm(*_):
        raise Hang

    signal.signal(signal.SIGALRM, alarm)
    with tempfile.TemporaryDirectory() as folder, in_cache(Path(folder) / "cache"):
        target = KINDS[name](Path(folder))
        # Four times, so that what is imported and compiled is no growth.
        for data in target.files * 4:
            target.read(data)
        start = resident()
        for number in range(count):
            seed = (args.seed, list(SHARES).index(name), number)
            rng = np.random.default_rng(seed)
            data = mutate(target.files[rng.integers(len(target.files))], rng)
            signal.setitimer(signal.ITIMER_REAL, args.seconds)
            try:
                fault = target.read(data)
                outcomes["read" if fault is None else "fault"] += 1
            except getattr(target, "refusals", REFUSALS):
                outcomes["refused"] += 1
                fault = None
            except Hang:
                fault = f"more than {args.seconds:g} s"
                outcomes["fault"] += 1
            except MemoryError:
                fault = "MemoryError"
                outcomes["fault"] += 1
            except Exception as error:
                fault = f"{type(error).__name__}: {str(error)[:200]}"
                outcomes["fault"] += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            if fault is None and number % 50 == 0 and resident() - start > args.megabytes:
                fault, start = f"{resident() - start:.0f} MB more than at the start", resident()
                outcomes["fault"] += 1
            if fault is not None:
                faults.append(f"{name} {seed}: {fault}")
                if args.out is not None:
                    args.out.mkdir(parents=True, exist_ok=True)
                    (args.out / f"{name}-{number}").write_bytes(data)
    return outcomes, faults


def main(argv=None) -> int:
    args = parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    faulthandler.enable()
    total, begun = sum(SHARES[kind] for kind in args.kinds), time.monotonic()
    print(
        f"{'kind':12} {'files':>8} {'read':>8} {'refused':>8} {'faults':>7} {'seconds':>8} {'MB more':>8}", flush=True
    )
    everything, faults = Counter(), []
    for kind in args.kinds:
        count, start, before = max(1, args.count * SHARES[kind] // total), time.monotonic(), resident()
        outcomes, found = run_kind(kind, count, args)
        faults += found
        everything.update(outcomes)
        print(
            f"{kind:12} {sum(outcomes.values()):8} {outcomes['read']:8} {outcomes['refused']:8} {outcomes['fault']:7} "
            f"{time.monotonic() - start:8.0f} {resident() - before:8.0f}",
            flush=True,
        )
    for fault in faults[:20]:
        print(fault)
    print(json.dumps({**everything, "minutes": round((time.monotonic() - begun) / 60, 1)}))
    return int(bool(faults))


if __name__ == "__main__":
    terminal.start(parse_args)
    terminal.run(lambda: sys.exit(main()))
