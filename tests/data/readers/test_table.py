"""Tables of image files and captions: odd rows, columns, quotes."""

import gzip
import os

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

    @pytest.mark.parametrize(
        "row", ["3.png," + "word " * 30_000, '3.png,"a quote' + "\n4.png,word" * 20_000], ids=["long", "open quote"]
    )
    def test_a_value_beyond_the_limit_of_csv(self, row, tmp_path):
        (tmp_path / "a.csv").write_text(f"path,caption\n0.png,x\n{row}\n")
        with pytest.raises(ValueError, match=r"may have 131,072 characters. Received: .*a.csv, .*line \d+. Close the"):
            open_reader(tmp_path / "a.csv")

    @pytest.mark.parametrize("header", [("url", "caption"), ("path", "label")])
    def test_missing_columns(self, header, tmp_path):
        table = write_table(tmp_path / "pairs.csv", numbered(2), header)
        with pytest.raises(ValueError, match=rf"{table} with the columns \['{header[0]}', '{header[1]}'\]"):
            open_reader(table)
        with pytest.raises(ValueError, match="'photo'"):
            open_reader(table, ("photo", "caption"))

    DELIMITERS = {
        "semicolons": ("a.csv", "path;caption\na.png;x, y\n"),
        "tabs in a .csv": ("a.csv", "path\tcaption\na.png\tx, y\n"),
        "bars": ("a.csv", "path|caption\na.png|x, y\n"),
        "commas in a .tsv": ("a.tsv", 'path,caption\na.png,"x, y"\n'),
        "spaces after commas in the header": ("a.csv", 'path, caption\na.png,"x, y"\n'),
    }

    @pytest.mark.parametrize("name, text", DELIMITERS.values(), ids=DELIMITERS)
    def test_the_header_says_the_delimiter(self, name, text, tmp_path):
        (tmp_path / name).write_text(text)
        reader = open_reader(tmp_path / name)
        assert reader.keys(np.array([0])) == ["a.png"] and reader.captions(np.array([0])) == [[b"x, y"]]

    def test_a_delimiter_of_ones_own(self, tmp_path):
        (tmp_path / "a.csv").write_text("path:caption,y\na.png:x\n")
        reader = open_reader(tmp_path / "a.csv", ("path", "caption,y"), delimiter=":")
        assert reader.captions(np.array([0])) == [[b"x"]]
        with pytest.raises(ValueError, match="If other characters separate the columns, pass `delimiter`"):
            open_reader(tmp_path / "a.csv")
        for delimiter in ("::", '"', "\n"):
            with pytest.raises(ValueError, match="delimiter must be one character"):
                open_reader(tmp_path / "a.csv", delimiter=delimiter)

    DUPLICATES = {
        "the caption twice": ("path,caption,caption\n", None, r"\['caption'\] twice"),
        "another column twice": ("path,caption,id,id\n", None, r"\['id'\] twice"),
        "with a space": ("path,caption, path\n", None, r"\['path'\] twice"),
        "two spellings": ("Path,PATH,caption\n", None, r"\['Path', 'PATH'\] for the image paths"),
        "two spellings of a name given": ("path,Alt,ALT\n", ("path", "alt"), r"\['Alt', 'ALT'\] for the captions"),
    }

    @pytest.mark.parametrize("header, mapping, message", DUPLICATES.values(), ids=DUPLICATES)
    def test_columns_of_one_name(self, header, mapping, message, tmp_path):
        (tmp_path / "a.csv").write_text(header + "a,b,c,d\n"[: header.count(",") * 2 + 1] + "\n")
        with pytest.raises(ValueError, match=f"must differ. Received: .*a.csv with {message}"):
            open_reader(tmp_path / "a.csv", mapping)

    def test_what_is_no_duplicate(self, tmp_path):
        (tmp_path / "a.csv").write_text(",,path,caption,Label,label\n0,1,a.png,x,u,v\n")
        reader = open_reader(tmp_path / "a.csv")
        assert reader.metadata(np.array([0]))[0]["label"] == "v" and reader.column("label") == "label"

    def test_utf_16(self, tmp_path):
        (tmp_path / "a.csv").write_text("path,caption\na.png,x\n", encoding="utf-16")
        with pytest.raises(ValueError, match="a.csv in UTF-16. Save it as UTF-8"):
            open_reader(tmp_path / "a.csv")

    def test_compressed(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"A")
        (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"path\tcaption\na.png\tx\n"))
        assert read_all(open_reader(tmp_path / "a.tsv.gz")) == [(b"A", [b"x"])]

    def test_keys_that_restart_in_each_table(self, tmp_path):
        for folder in "xy":
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "t.csv").write_text("path,caption\na.png,x\n")
        reader = open_reader(f"{tmp_path}/*/t.csv")
        assert reader.keys(np.arange(2)) == ["x/t/a.png", "y/t/a.png"]

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
        """A caption that is none concerns one sample, as in training; a label concerns the classes."""
        (tmp_path / "a.csv").write_bytes(b"path,caption,label\na.png,caf\xe9,cat\nb.png,x,\xe9\n")
        reader = open_reader(tmp_path / "a.csv")
        assert reader.metadata(np.array([0])) == [{"path": "a.png", "caption": "caf\ufffd", "label": "cat"}]
        assert reader.captions(np.array([0])) == [[b"caf\xe9"]]
        with pytest.raises(ValueError, match="must be UTF-8. Received: .*b.png"):
            reader.metadata(np.array([1]))

    def test_paths_that_are_no_files(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.png")
        (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
        (tmp_path / "folder.png").mkdir()
        paths = ["/dev/zero", "pipe.png", "loop.png", "folder.png", "gone.png", "a" * 300, "nul\0.png", "a.csv/b.png"]
        (tmp_path / "a.csv").write_text("path,caption\n" + "".join(f"{path},x\n" for path in paths))
        assert read_all(open_reader(tmp_path / "a.csv")) == [(b"", [b"x"])] * len(paths)

    @pytest.mark.parametrize(
        "text",
        ["path,caption\n", 'path,caption\n"a.png,x\n', "path,caption\nx\ny\nz,1\n"],
        ids=["no rows", "an open quote", "other rows"],
    )
    def test_a_table_that_changes(self, text, tmp_path):
        (tmp_path / "a.csv").write_text("path,caption\na.png,x\n")
        reader = open_reader(tmp_path / "a.csv")
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(OSError, match="must stay as it is.*a.csv, sample 0"):
            reader.read(np.array([0]))


class TestLinesOfJson:
    ROWS = (
        '\ufeff{"file_name": "a.png", "text": "é", "label": "cat"}\n'
        "\n"
        '{"file_name": "gone.png", "text": ["x", "", "y"], "size": 3}\r\n'
        '{"text": "no path"}\n'
        '{"file_name": " a.png", "text": null}'
    )

    def test_rows(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"A")
        (tmp_path / "metadata.jsonl").write_text(self.ROWS, encoding="utf-8", newline="")
        reader = open_reader(tmp_path / "metadata.jsonl")
        assert read_all(reader) == [(b"A", ["é".encode()]), (b"", [b"x", b"y"]), (b"", [b"no path"]), (b"A", [])]
        assert reader.keys(np.arange(4)) == ["a.png", "gone.png", "", "a.png"]
        assert reader.metadata(np.array([1, 0])) == [
            {"file_name": "gone.png", "text": ["x", "", "y"], "size": 3},
            {"file_name": "a.png", "text": "é", "label": "cat"},
        ]
        assert reader.name(2) == f"{tmp_path}/metadata.jsonl: 2"

    def test_one_row(self, tmp_path):
        """It lies at the first byte of the file, and is there all the same."""
        (tmp_path / "a.ndjson").write_text('{"path": "a.png", "caption": "x"}')
        assert read_all(open_reader(tmp_path / "a.ndjson")) == [(b"", [b"x"])]

    @pytest.mark.parametrize(
        "line, message",
        [
            ("[1]", "line 2: a list"),
            ('{"path": 1', "line 2: "),
            ("path,caption", "line 2: "),
            ('{"path": "a", "path": "b"}', "line 2: a name twice"),
            ("[" * 100_000, "line 2: "),
        ],
        ids=["a list", "cut short", "a table", "a name twice", "nested without end"],
    )
    def test_damaged(self, line, message, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"path": "a.png", "caption": "x"}\n' + line)
        for captions in (True, False):
            with pytest.raises(ValueError, match=f"must be a JSON object. Received: .*a.jsonl, {message}"):
                open_reader(tmp_path / "a.jsonl", captions=captions)

    def test_columns(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"img": "a.png", "Alt": "x"}\n{"img": "b.png"}\n')
        with pytest.raises(ValueError, match=r"columns \['img', 'Alt'\]"):
            open_reader(tmp_path / "a.jsonl")
        assert open_reader(tmp_path / "a.jsonl", ("IMG", "alt")).captions(np.arange(2)) == [[b"x"], []]
