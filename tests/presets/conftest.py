"""Fixtures that write the checkpoints that several tests read, each once."""

import json
import os

import pytest
from presets import checkpoints


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A function that returns a folder with a tiny model and the peer that wrote it. Tests must not change either.

    Its arguments are the layout ("open_clip" or "hugging_face"), a key of `checkpoints.TINY`, and options of
    `checkpoints.save_open_clip` or `checkpoints.save_hugging_face`.
    """
    made = {}

    def of(layout, name, **options):
        key = json.dumps([layout, name, options], sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp("checkpoint")
            made[key] = folder, getattr(checkpoints, f"save_{layout}")(folder, checkpoints.TINY[name], **options)
        return made[key]

    return of


@pytest.fixture
def copied(written, tmp_path):
    """Like `written`, but returns a copy of the folder, whose configuration may be edited; the tensors are a link."""

    def of(layout, name, **options):
        source, peer = written(layout, name, **options)
        folder = tmp_path / "copied"
        folder.mkdir()
        for path in source.iterdir():
            if path.suffix == ".json":
                (folder / path.name).write_bytes(path.read_bytes())
            else:
                os.link(path, folder / path.name)
        return folder, peer

    return of
