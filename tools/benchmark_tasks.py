"""Tasks of `tools/benchmark.py` for any machine: tokenizer, input pipeline, training steps, class embeddings.

Each factory sets up an implementation, and returns a function that does the work once and returns the number of items.
"""

import functools
import os
import sys
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
BATCH = 16


class Task(NamedTuple):
    """Unit of the throughput, repeats, target ratio to the peer, and whether the task needs an accelerator."""

    unit: str
    repeats: int
    target: float | None = None
    accelerator: bool = False


class Entry(NamedTuple):
    """A contender: its label, backend and factory, and its targets.

    The throughput is divided by that of the entry `reference`; `rate` is the smallest acceptable ratio. `memory` is the
    largest acceptable ratio of its memory to that of the entry `memory_reference`.
    """

    label: str
    backend: str
    factory: callable
    reference: str | None = None
    rate: float | None = None
    memory_reference: str | None = None
    memory: float | None = None


TASKS = {
    "tokenizer": Task("captions/s", 7, 5.0),
    "pipeline": Task("samples/s", 5, 1.5),
    "step_vit_b32": Task("pairs/s", 5, 2.0),
    "step_rn50": Task("pairs/s", 5, 2.0),
    "class_embeddings": Task("prompts/s", 3, 6.0),
}


def captions(arguments, count):
    """Returns real captions if there are some, otherwise synthetic ones; all contenders get the same."""
    import tarfile

    texts = []
    for shard in sorted(Path(arguments.data).rglob("*.tar")) if arguments.data else ():
        with tarfile.open(shard) as tar:
            texts += [tar.extractfile(m).read().decode() for m in tar if m.name.endswith(".txt")]
    if not texts:
        from keras_clip.data import synthetic

        texts = list(synthetic.captions(2000, seed=0))
    return [texts[i % len(texts)] for i in range(count)]


def our_tokenizer(arguments):
    from keras_clip.data import CLIPTokenizer

    tokenizer, texts = CLIPTokenizer(), captions(arguments, 20_000)
    return lambda: len(tokenizer(texts, truncate=True))


def their_tokenizer(arguments):
    open_clip = import_open_clip()
    tokenizer, texts = open_clip.tokenizer.SimpleTokenizer(), captions(arguments, 20_000)
    return lambda: len(tokenizer(texts))


def import_open_clip():
    sys.path.insert(0, str(REPOSITORY / "tests"))
    import torchvision_shim  # noqa: F401  # isort: skip
    import open_clip  # isort: skip

    return open_clip


def pipeline_shards(arguments):
    """Returns JPEG images of 256 to 512 pixels: photographs, or synthetic scenes that are written once."""
    if arguments.data:
        grocery = sorted(Path(arguments.data).rglob("grocery/train/*.tar"))
        if grocery:
            return [str(path) for path in grocery]
    import io
    import tarfile

    from PIL import Image

    from keras_clip.data import synthetic

    folder = REPOSITORY / "runs" / "benchmark" / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "00000.tar"
    if not path.exists():
        with tarfile.open(path, "w") as tar:
            for i in range(1000):
                image, caption = synthetic.sample(i, image_size=320, seed=0)
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, "JPEG", quality=92)
                for name, data in ((f"{i:05d}.jpg", buffer.getvalue()), (f"{i:05d}.txt", caption.encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return [str(path)]


def our_pipeline(arguments):
    from keras_clip.data import CLIPTokenizer, ImagePreprocessor, image_text_pairs

    dataset = image_text_pairs(
        pipeline_shards(arguments), batch_size=64, tokenizer=CLIPTokenizer(), image_preprocessor=ImagePreprocessor(224)
    )
    return lambda: sum(len(batch["images"]) for batch in dataset)


def our_pipeline_without_onednn(arguments):
    # With training on an accelerator, TensorFlow runs only the pipeline. The variable is read when it is imported.
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    return our_pipeline(arguments)


def their_pipeline(arguments):
    import io
    import tarfile

    import torch

    open_clip = import_open_clip()
    from PIL import Image

    shards = pipeline_shards(arguments)
    transform = open_clip.image_transform(224, is_train=True)
    tokenizer = open_clip.tokenizer.SimpleTokenizer()

    class Samples(torch.utils.data.IterableDataset):
        """Reads tars in sequence, with a part of the samples for each worker, as webdataset does."""

        def __iter__(self):
            worker = torch.utils.data.get_worker_info()
            index = 0
            for shard in shards:
                parts = {}
                with tarfile.open(shard, "r|") as tar:
                    for member in tar:
                        key, _, extension = member.name.partition(".")
                        sample = parts.setdefault(key, {})
                        sample[extension] = tar.extractfile(member).read()
                        image = sample.get("jpg") or sample.get("png")
                        if image and "txt" in sample and "done" not in sample:
                            sample["done"] = True
                            index += 1
                            if index % worker.num_workers == worker.id:
                                pixels = transform(Image.open(io.BytesIO(image)).convert("RGB"))
                                yield pixels, tokenizer([sample["txt"].decode()])[0]

    loader = torch.utils.data.DataLoader(Samples(), batch_size=64, num_workers=os.cpu_count(), persistent_workers=True)
    return lambda: sum(len(images) for images, _ in loader)


def our_model(name):
    import keras_clip
    from keras_clip import encoders

    if name == "rn50":
        image, embed_dim = encoders.ModifiedResNet(224, (3, 4, 6, 3), 64), 1024
    else:
        image, embed_dim = encoders.VisionTransformer(224, 32, 768, 12, 12), 512
    return keras_clip.CLIPModel(image, encoders.TextTransformer(512, 12, 8), embed_dim)


def our_step(name, arguments):
    import numpy as np

    import keras_clip

    clip = our_model(name)
    clip.compile(keras_clip.training.adamw(clip, 5e-4, warmup_steps=10, total_steps=1000))
    images = np.random.default_rng(0).integers(0, 256, size=(BATCH, 224, 224, 3)).astype("uint8")
    longest = clip.tokenizer(captions(arguments, BATCH), truncate=True, length="longest")
    # The pipeline pads texts to the longest of a batch, rounded up to one of three lengths.
    length = next(length for length in (16, 32, 77) if length >= longest.shape[1])
    batch = {"images": images, "token_ids": clip.tokenizer(captions(arguments, BATCH), truncate=True, length=length)}

    def run():
        clip.train_on_batch(batch)
        return BATCH

    return run


def their_step(name, arguments):
    import torch

    open_clip = import_open_clip()
    from open_clip.loss import ClipLoss

    model = open_clip.create_model({"rn50": "RN50-quickgelu", "vit_b32": "ViT-B-32-quickgelu"}[name]).train()
    gains = [p for p in model.parameters() if p.ndim < 2]
    others = [p for p in model.parameters() if p.ndim >= 2]
    optimizer = torch.optim.AdamW(
        [{"params": gains, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.2}], lr=5e-4, betas=(0.9, 0.98)
    )
    images = torch.rand(BATCH, 3, 224, 224)
    tokens = open_clip.tokenizer.SimpleTokenizer()(captions(arguments, BATCH))
    loss_function = ClipLoss()

    def run():
        optimizer.zero_grad()
        loss_function(*model(images, tokens)).backward()
        optimizer.step()
        return BATCH

    return run


CLASS_NAMES = [f"{colour} {thing}" for colour in "red green blue grey pink".split() for thing in (
    "cat dog bird fish horse car bus train boat plane tree flower house chair table lamp cup fork clock door".split()
)]  # fmt: skip


def eighty_templates():
    from keras_clip import prompts

    return [*prompts.templates(), *prompts.templates("a kind of thing")][:80]


def our_class_embeddings(arguments):
    from keras_clip import ZeroShotClassifier

    clip, templates = our_model("vit_b32"), eighty_templates()

    def run():
        ZeroShotClassifier(clip, CLASS_NAMES, templates)
        return len(CLASS_NAMES) * len(templates)

    return run


def their_class_embeddings(arguments):
    open_clip = import_open_clip()
    model = open_clip.create_model("ViT-B-32-quickgelu").eval()
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    templates = [template.format for template in eighty_templates()]

    def run():
        # A tenth of the classes is one batch in open_clip, which has the same throughput as all classes.
        open_clip.build_zero_shot_classifier(model, tokenizer, CLASS_NAMES[::10], templates, num_classes_per_batch=10)
        return len(CLASS_NAMES[::10]) * len(templates)

    return run


def contenders(task, arguments):
    """Returns our entries on every backend on which the task depends, then that of the peer."""
    if task == "tokenizer":
        ours, theirs = [Entry("keras_clip", "tensorflow", our_tokenizer)], their_tokenizer
    elif task == "pipeline":
        ours = [Entry("keras_clip", "tensorflow", our_pipeline)]
        ours += [Entry("keras_clip, TF_ENABLE_ONEDNN_OPTS=0", "tensorflow", our_pipeline_without_onednn)]
        theirs = their_pipeline
    elif task == "class_embeddings":
        ours = [Entry(f"keras_clip, {backend}", backend, our_class_embeddings) for backend in arguments.backends]
        theirs = their_class_embeddings
    else:
        name = task.removeprefix("step_")
        ours = [Entry(f"keras_clip, {b}", b, functools.partial(our_step, name)) for b in arguments.backends]
        theirs = functools.partial(their_step, name)
    peer = "torch DataLoader, PIL, torchvision" if task == "pipeline" else "open_clip"
    entries = [entry._replace(reference=peer) for entry in ours]
    return entries + ([Entry(peer, "torch", theirs)] if arguments.peers else [])
