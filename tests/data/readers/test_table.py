"""Tables of image files and captions: odd rows, columns, quotes."""

import numpy as np
import pytest
from numbered_pairs import numbered, read_all, write_table

from keras_clip.data.readers import open_reader

pytestmark = pytest.mark.backend_free


class TestTables:
    def test_odd_rows(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"A")
        lines = [b"id,Image_Path,TEXT", b'1,a.png,"x, ""y"""', b"2,a.png", b"3,,z", b"4,gone.png,z", b"5,a.png,caf\xe9"]
        (tmp_path / "pairs.csv").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
        found = read_all(open_reader(tmp_path / "pairs.csv"))
        expected = [(b"A", b'x, "y"'), (b"A", b""), (b"", b"z"), (b"", b"z"), (b"A", b"caf\xe9")]
        assert found == [(image, [caption]) for image, caption in expected]

    def test_absolute_paths_and_several_tables(self, tmp_path):
        (tmp_path / "below").mkdir()
        for folder in (tmp_path, tmp_path / "below"):
            (folder / "a.png").write_bytes(bytes(folder))
            (folder / "pairs.csv").write_text("path,caption\na.png,x\n")
        (tmp_path / "third.csv").write_text(f"path,caption\n{tmp_path / 'below' / 'a.png'},x\n")
        reader = open_reader([tmp_path / "pairs.csv", tmp_path / "below" / "pairs.csv", tmp_path / "third.csv"])
        below = bytes(tmp_path / "below")
        assert [image for image, _ in read_all(reader)] == [bytes(tmp_path), below, below]

    @pytest.mark.parametrize(
        "name, text, line",
        [
            ("a.tsv", 'path\tcaption\na.png\t"hello there\nb.png\ta "dog"\nc.png\tx\n', 3),
            ("a.csv", "path,caption\na.png,x\nb.png,a dog, running\n", 3),
        ],
        ids=["an unmatched quote", "a comma outside of quotes"],
    )
    def test_quotes_that_would_change_the_data(self, name, text, line, tmp_path):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"must stand in quotes.*Received: .*{name}, line {line}"):
            open_reader(tmp_path / name)

    @pytest.mark.parametrize("header", [("url", "caption"), ("path", "label")])
    def test_missing_columns(self, header, tmp_path):
        table = write_table(tmp_path / "pairs.csv", numbered(2), header)
        with pytest.raises(ValueError, match=rf"{table} with the columns \['{header[0]}', '{header[1]}'\]"):
            open_reader(table)
        with pytest.raises(ValueError, match="'photo'"):
            open_reader(table, ("photo", "caption"))

    def test_keys_and_metadata(self, tmp_path):
        (tmp_path / "a.csv").write_text('Path,caption,label\nx/0.png,"a\n\nb",cat\n\n,c\n\n')
        (tmp_path / "b.tsv").write_text("label\ttext\tpath\ndog, big\td\t1.png")
        reader = open_reader([tmp_path / "a.csv", tmp_path / "b.tsv"])
        assert reader.keys(np.array([2, 0, 1])) == ["1.png", "x/0.png", ""]
        assert [reader.name(k) for k in range(3)] == [
            f"{tmp_path}/x/0.png",
            f"{tmp_path}/a.csv: 1",
            f"{tmp_path}/1.png",
        ]
        assert reader.captions(np.arange(3)) == [[b"a\n\nb"], [b"c"], [b"d"]]
        assert reader.metadata(np.array([1, 2, 0])) == [
            {"Path": "", "caption": "c", "label": ""},
            {"label": "dog, big", "text": "d", "path": "1.png"},
            {"Path": "x/0.png", "caption": "a\n\nb", "label": "cat"},
        ]

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "mac"])
    def test_ends_of_lines(self, end, tmp_path):
        rows = ["path,caption", 'a.png,"x' + end + 'y"', "b.png,é", "", "c.png,z"]
        (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + end.join(rows).encode())
        reader = open_reader(tmp_path / "a.csv")
        assert reader.keys(np.arange(len(reader))) == ["a.png", "b.png", "c.png"]
        assert reader.captions(np.arange(3)) == [[f"x{end}y".encode()], ["é".encode()], [b"z"]]

    def test_images_alone(self, tmp_path):
        (tmp_path / "a.csv").write_text("path,label\n0.png,cat\n")
        assert read_all(open_reader(tmp_path / "a.csv", captions=False)) == [(b"", [])]
        assert read_all(open_reader(tmp_path / "a.csv", ("PATH", None), captions=False)) == [(b"", [])]
        with pytest.raises(ValueError, match="a column of captions"):
            open_reader(tmp_path / "a.csv")

    def test_metadata_must_be_text(self, tmp_path):
        (tmp_path / "a.csv").write_bytes(b"path,caption\na.png,caf\xe9\n")
        with pytest.raises(ValueError, match="must be UTF-8. Received: .*a.png"):
            open_reader(tmp_path / "a.csv").metadata(np.array([0]))

    @pytest.mark.parametrize("text", ["path,caption\n", 'path,caption\n"a.png,x\n', "path,caption\nx\ny\nz,1\n"])
    def test_a_table_that_changes(self, text, tmp_path):
        (tmp_path / "a.csv").write_text("path,caption\na.png,x\n")
        reader = open_reader(tmp_path / "a.csv")
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(OSError, match="must stay as it is.*a.csv, sample 0"):
            reader.read(np.array([0]))
