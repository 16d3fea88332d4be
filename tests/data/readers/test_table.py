"""Tables of image files and captions: odd rows, columns, quotes."""

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
        ids=["a lonely quote", "a comma outside of quotes"],
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
