"""Tasks of `tools/benchmark.py` that prepare data: the passes of `keras_clip.curation`.

Each factory sets up an implementation, and returns a function that does the work once and returns the number of items.
"""

import shutil
import tempfile
from pathlib import Path

from benchmark_tasks import Entry, Task, pipeline_shards

TASKS = {"profile": Task("samples/s", 5, 0.9)}


def our_profile(arguments):
    from keras_clip import curation

    folder = Path(tempfile.mkdtemp())
    pool = curation.Pool.open(pipeline_shards(arguments), folder)

    def run():
        shutil.rmtree(folder / "profile", ignore_errors=True)
        return curation.profile(pool, "serial", progress=False)["samples"]

    return run


def plain_decoding(arguments):
    import numpy as np

    from keras_clip.data.image_files import MAX_PIXELS, open_image
    from keras_clip.data.readers import open_reader

    reader = open_reader(pipeline_shards(arguments))

    def run():
        for start in range(0, len(reader), 64):
            images, _ = reader.read(np.arange(start, min(start + 64, len(reader))))
            for image in images:
                open_image(image, "image", MAX_PIXELS)
        return len(reader)

    return run


def contenders(task, arguments):
    """Returns our entries, then that of the peer."""
    peer = "plain decoding (PIL, RGB)"
    ours = [Entry("curation.profile", "tensorflow", our_profile, reference=peer)]
    return ours + ([Entry(peer, "tensorflow", plain_decoding)] if arguments.peers else [])
