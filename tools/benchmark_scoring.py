"""The task of `tools/benchmark.py` that scores pairs: `curation.score` against its encoders alone.

Each factory sets up an implementation, and returns a function that does the work once and returns the number of items.
"""

import io
import shutil
import tarfile
import tempfile
from pathlib import Path

from benchmark_tasks import Entry, Task, captions

TASKS = {"score": Task("pairs/s", 5)}
PAIRS, BATCH = 256, 32


def small_model():
    import keras_clip
    from keras_clip import encoders

    image = encoders.VisionTransformer(224, 32, 384, 8, 6)
    return keras_clip.CLIPModel(image, encoders.TextTransformer(256, 6, 4), 256)


def photographs(arguments):
    """Returns the bytes of photographs of 256 pixels and more, or of scenes of 320 pixels, as JPEG."""
    import numpy as np

    from keras_clip.data.readers import open_reader

    if arguments.data and (shards := sorted(Path(arguments.data).rglob("grocery/train/*.tar"))):
        return open_reader(str(shards[0])).read(np.arange(PAIRS))[0]
    from PIL import Image

    from keras_clip.data import synthetic

    files = [io.BytesIO() for _ in range(PAIRS)]
    for i, file in enumerate(files):
        Image.fromarray(synthetic.sample(i, image_size=320, seed=0)[0]).save(file, "JPEG", quality=92)
    return [file.getvalue() for file in files]


def our_score(arguments):
    from keras_clip import curation

    folder = Path(tempfile.mkdtemp())
    with tarfile.open(folder / "00000.tar", "w") as tar:
        pairs = zip(photographs(arguments), captions(arguments, PAIRS), strict=True)
        for i, (image, caption) in enumerate(pairs):
            for name, data in ((f"{i:05d}.jpg", image), (f"{i:05d}.txt", caption.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    pool = curation.Pool.open(str(folder / "00000.tar"), folder / "work")
    curation.profile(pool, "serial", progress=False)
    clip = small_model()

    def run():
        shutil.rmtree(folder / "work" / "score", ignore_errors=True)
        return curation.score(pool, clip, batch_size=BATCH, progress=False)["scored"]

    return run


def encoders_alone(arguments):
    """The same batches, decoded and tokenised in advance; the texts padded to the same widths."""
    import numpy as np

    clip = small_model()
    pixels = clip.image_embedder.image_preprocessor.to_uint8(list(photographs(arguments)))
    token_ids = np.unique(clip.tokenizer(captions(arguments, PAIRS), truncate=True), axis=0)
    lengths = (token_ids == clip.tokenizer.end_token_id).argmax(axis=1) + 1
    groups = [token_ids[lengths <= 16, :16], token_ids[(lengths > 16) & (lengths <= 32), :32], token_ids[lengths > 32]]

    def run():
        for start in range(0, PAIRS, BATCH):
            clip.image_embedder.predict_on_batch(pixels[start : start + BATCH])
        for group in groups:
            for start in range(0, len(group), BATCH):
                rows = group[start : start + BATCH]
                clip.text_embedder.predict_on_batch(rows[np.resize(np.arange(len(rows)), BATCH)])
        return PAIRS

    return run


def contenders(task, arguments):
    """Returns, for each backend, our entry and that of the encoders alone."""
    entries = []
    for backend in arguments.backends:
        alone = f"the encoders alone, {backend}"
        entries += [Entry(f"curation.score, {backend}", backend, our_score, reference=alone, rate=0.9)]
        entries += [Entry(alone, backend, encoders_alone)]
    return entries
