"""Parquet files: those of img2dataset and of Hugging Face, their columns, and damage."""

import numpy as np
import pytest
from numbered_pairs import image_file, numbered, read_all

from keras_clip.data.readers import open_reader

pytestmark = pytest.mark.backend_free

pa = pytest.importorskip("pyarrow")


def write(path, columns, **options):
    import pyarrow.parquet

    table = pa.Table.from_pydict(columns) if isinstance(columns, dict) else columns
    pyarrow.parquet.write_table(table, str(path), **options)
    return str(path)


def test_one_that_expands_without_measure(tmp_path, monkeypatch, user_cache):
    monkeypatch.setattr("keras_clip.data.readers.storage.copies._FREE_BYTES", 1 << 20)
    rows = 1000
    path = write(tmp_path / "a.parquet", {"image": [bytes(1 << 16)] * rows, "caption": ["x"] * rows})
    with pytest.raises(ValueError, match="must not expand to more than 1,048,576 bytes. Received: .*a.parquet"):
        open_reader(path)
    assert not any(path.is_file() for path in user_cache.rglob("*"))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_embedded_images_come_before_paths(tmp_path, kind):
    """As pandas writes strings, these are of another type than Arrow's."""
    images = [image_file(number) for number in range(3)]
    columns = {
        "path": pa.array(["gone/0.png", "gone/1.png", "gone/2.png"], kind),
        "image": pa.array(images, pa.binary()),
        "caption": pa.array(["a", "b", "c"], kind),
    }
    assert open_reader(write(tmp_path / "a.parquet", columns)).read(np.arange(3))[0] == images


class TestForms:
    def test_img2dataset(self, tmp_path):
        keys, images, captions = zip(*numbered(600), strict=True)
        columns = {"key": keys, "jpg": images, "txt": [text.decode() for text in captions], "width": [20] * 600}
        path = write(tmp_path / "00000.parquet", columns, row_group_size=100)
        reader = open_reader(path)
        assert read_all(reader) == [(image, [caption]) for image, caption in zip(images, captions, strict=True)]
        ids = np.array([599, 0, 257])
        assert reader.keys(ids) == ["599", "000", "257"] and reader.name(5) == f"{path}: 005"
        assert reader.captions(ids) == [[b"599"], [b"0"], [b"257"]]
        assert reader.metadata(ids)[0] == {"key": "599", "txt": "599", "width": 20}
        assert reader.skipped.total == 0

    def test_hugging_face(self, tmp_path):
        import datasets

        kinds = datasets.Features(
            {
                "image": datasets.Image(),
                "label": datasets.ClassLabel(names=["cat", "dog"]),
                "path": datasets.Value("string"),
            }
        )
        rows = {"image": [{"bytes": image_file(3), "path": "a.png"}] * 2, "label": [1, None], "path": ["x", "y"]}
        datasets.Dataset.from_dict(rows, features=kinds).to_parquet(str(tmp_path / "a.parquet"))
        reader = open_reader(tmp_path / "a.parquet", captions=False)
        assert read_all(reader) == [(image_file(3), [])] * 2
        assert reader.metadata(np.arange(2)) == [{"label": "dog", "path": "x"}, {"label": None, "path": "y"}]

    def test_paths_are_relative_to_the_file(self, tmp_path, monkeypatch):
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "a.png").write_bytes(b"A")
        write(
            tmp_path / "x" / "a.pq", {"image_path": ["a.png", "gone.png", None], "caption": [["u", "v"], ["w"], None]}
        )
        monkeypatch.chdir(tmp_path / "x")
        for source in (tmp_path / "x" / "a.pq", "a.pq"):
            assert read_all(open_reader(source)) == [(b"A", [b"u", b"v"]), (b"", [b"w"]), (b"", [])]

    def test_columns_of_categories(self, tmp_path):
        columns = pa.Table.from_pydict(
            {"image": [b"A", b"B"] * 300, "text": pa.array(["x", "y"] * 300).dictionary_encode()}
        )
        reader = open_reader(write(tmp_path / "a.parquet", columns, row_group_size=50))
        assert read_all(reader) == [(b"A", [b"x"]), (b"B", [b"y"])] * 300

    def test_rows_restart_in_each_file(self, tmp_path):
        for k in range(2):
            write(tmp_path / f"{k}.parquet", {"image": [b"A", b"B"], "text": ["x", f"{k}"]})
        reader = open_reader(f"{tmp_path}/*.parquet")
        assert reader.keys(np.arange(4)) == ["0/0", "0/1", "1/0", "1/1"]
        assert reader.captions(np.array([3, 1])) == [[b"1"], [b"0"]]

    def test_by_content(self, tmp_path):
        write(tmp_path / "part-0000", {"image": [b"A"], "text": ["x"]})
        assert read_all(open_reader(tmp_path / "part-0000")) == [(b"A", [b"x"])]

    def test_a_file_without_rows(self, tmp_path):
        write(tmp_path / "a.parquet", {"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())})
        write(tmp_path / "b.parquet", {"image": [b"A"], "text": ["x"]})
        assert read_all(open_reader(f"{tmp_path}/*.parquet")) == [(b"A", [b"x"])]
        with pytest.raises(ValueError, match="must hold samples"):
            open_reader(tmp_path / "a.parquet")

    def test_a_file_that_changes_is_copied_again(self, tmp_path, user_cache):
        for text in ("x", "longer"):
            path = write(tmp_path / "a.parquet", {"image": [b"A"], "text": [text]})
            assert read_all(open_reader(path)) == [(b"A", [text.encode()])]
            assert len(list(user_cache.rglob("*.arrow"))) == 1


class TestRefusals:
    def test_columns(self, tmp_path):
        path = write(tmp_path / "a.parquet", {"url": ["u"], "caption": ["x"], "key": ["k"]})
        with pytest.raises(ValueError, match=r"columns \['url', 'caption', 'key'\].*img2dataset"):
            open_reader(path)
        path = write(tmp_path / "b.parquet", {"jpg": [b"A"], "alt": ["x"]})
        with pytest.raises(ValueError, match="a column of captions"):
            open_reader(path)
        assert read_all(open_reader(path, ("jpg", "alt"))) == [(b"A", [b"x"])]
        with pytest.raises(ValueError, match="named 'photo'"):
            open_reader(path, ("photo", "alt"))

    def test_columns_of_one_name(self, tmp_path):
        table = pa.Table.from_arrays([pa.array([b"A"]), pa.array(["x"]), pa.array(["y"])], ["jpg", "txt", "txt"])
        with pytest.raises(ValueError, match="must differ"):
            open_reader(write(tmp_path / "a.parquet", table))

    @pytest.mark.parametrize("kept", [0, 3, 100, -1, -9])
    def test_a_file_cut_short(self, kept, tmp_path, user_cache):
        path = tmp_path / "a.parquet"
        write(path, {"image": [b"A" * 5000], "text": ["x"]}, compression="none")
        path.write_bytes(path.read_bytes()[:kept])
        for captions in (True, False):
            with pytest.raises(ValueError, match="must be whole. Received: .*a.parquet"):
                open_reader(path, captions=captions)
        assert not list(user_cache.rglob("*.arrow"))

    def test_without_pyarrow(self, tmp_path, monkeypatch):
        import builtins

        original = builtins.__import__

        def blocked(name, *rest):
            if name.startswith("pyarrow"):
                raise ImportError(name)
            return original(name, *rest)

        (tmp_path / "a.parquet").write_bytes(b"PAR1")
        monkeypatch.setattr(builtins, "__import__", blocked)
        with pytest.raises(ImportError, match=r'pip install "keras_clip\[parquet\]"'):
            open_reader(tmp_path / "a.parquet")
