"""The files that globs, brace patterns and lists expand to."""

from pathlib import Path

import pytest

from keras_clip.data.readers import find_files

pytestmark = pytest.mark.backend_free


class TestPaths:
    PATTERNS = {
        "glob": ("s/*.tar", ["s/00.tar", "s/01.tar", "s/02.tar"]),
        "one": ("s/01.tar", ["s/01.tar"]),
        "range": ("s/{00..02}.tar", ["s/00.tar", "s/01.tar", "s/02.tar"]),
        "backwards": ("s/{02..01}.tar", ["s/02.tar", "s/01.tar"]),
        "choice": ("s/0{2,0}.tar", ["s/02.tar", "s/00.tar"]),
        "two braces": ("{s,t}/0{0..1}.tar", ["s/00.tar", "s/01.tar", "t/00.tar", "t/01.tar"]),
        "no padding": ("s/0{0..2}.tar", ["s/00.tar", "s/01.tar", "s/02.tar"]),
        "list": (["t/*.tar", "s/01.tar"], ["t/00.tar", "t/01.tar", "s/01.tar"]),
        "each once": (["s/*.tar", "s/01.tar"], ["s/00.tar", "s/01.tar", "s/02.tar"]),
        "braces in a name": ("u{1,2}.tar", ["u1.tar", "u2.tar"]),
        "brackets in a name": ("u[1].tar", ["u[1].tar"]),
    }

    @pytest.mark.parametrize("pattern, expected", PATTERNS.values(), ids=PATTERNS)
    def test_patterns(self, pattern, expected, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ("s/00.tar", "s/01.tar", "s/02.tar", "t/00.tar", "t/01.tar", "u1.tar", "u2.tar", "u[1].tar"):
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).touch()
        assert find_files(pattern) == expected

    def test_a_gap_in_a_range_is_named(self, tmp_path):
        for number in (0, 2):
            (tmp_path / f"{number:05d}.tar").touch()
        with pytest.raises(FileNotFoundError, match="00001.tar"):
            find_files(str(tmp_path / "{00000..00002}.tar"))
