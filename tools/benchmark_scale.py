"""Tasks of `tools/benchmark.py` at scale: the loss, micro-batches, rematerialisation, full steps on accelerators.

The memory of a step excludes weights and batch: on JAX it is the size of the temporaries that XLA plans, on torch the
growth of the process's resident memory from the end of one step to the peak of the next. On TensorFlow the growth is
measured from before the first step, so it includes compilation.
"""

import ctypes
import functools
import gc
from pathlib import Path

import numpy as np
from benchmark_tasks import Entry, Task, import_open_clip

TASKS = {
    "loss": Task("pairs/s", 5),
    "microbatches": Task("pairs/s", 3),
    "remat": Task("pairs/s", 3),
    **{
        f"bf16_{name}": Task("pairs/s", 5, 1.0, True)
        for name in ("vit_b32", "vit_b16", "vit_l14", "vit_l14_336", "rn50")
    },
    "bf16_vit_b32_32768_pairs": Task("pairs/s", 2, None, True),
}
MIB = 2**20
# Targets: the time of the loss divided by that of open_clip's.
LOSS_TIME = {"torch": 0.8, "jax": 0.65, "tensorflow": 0.65}
EMBED_DIM = 512
# Batch sizes that fit 80 GB without rematerialisation, with a margin.
BATCHES = {"vit_b32": 1024, "vit_b16": 384, "vit_l14": 96, "vit_l14_336": 48, "rn50": 384}
OPEN_CLIP_NAMES = {
    "vit_b32": "ViT-B-32-quickgelu",
    "vit_b16": "ViT-B-16-quickgelu",
    "vit_l14": "ViT-L-14-quickgelu",
    "vit_l14_336": "ViT-L-14-336-quickgelu",
    "rn50": "RN50-quickgelu",
}
TEXT_LENGTH = 32


# Memory.


def resident(field):
    """Returns MiB from this process's status: "VmRSS" is the current resident memory, "VmHWM" its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def weighed(step, since_start=False):
    """Compiles a step, and returns a function that runs it and measures the largest growth of resident memory, in MiB.

    With `since_start`, the growth is from before the compilation. TensorFlow keeps the memory of a step, so that later
    steps would show no growth.
    """
    before = resident("VmRSS")
    step()

    def run():
        if run.facts:
            return step()
        gc.collect()
        # Returns the free memory of the allocator to the system.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        start = before if since_start else resident("VmRSS")
        # Resets the peak.
        Path("/proc/self/clear_refs").write_text("5")
        amount = step()
        run.facts["memory_mib"] = resident("VmHWM") - start
        return amount

    run.facts = {}
    return run


def planned(function, *arguments):
    """Returns the MiB of temporaries that XLA plans for a jitted function."""
    return function.lower(*arguments).compile().memory_analysis().temp_size_in_bytes / MIB


def planned_step(clip, batch):
    import jax

    clip.make_train_function()
    parts = ("trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables")
    state = clip._get_jax_state(**dict.fromkeys(parts, True))
    return planned(jax.jit(clip.train_step, donate_argnums=0), state, (batch,))


# The loss, forward and backward.


def embeddings(count):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2, count, EMBED_DIM)).astype("float32")
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


LOG_SCALE = np.float32(np.log(1 / 0.07))


def torch_loss(loss, count):
    """Returns a step of `loss(images, texts, log_scale)` on torch."""
    import torch

    images, texts = (torch.tensor(x, requires_grad=True) for x in embeddings(count))
    log_scale = torch.tensor(LOG_SCALE, requires_grad=True)

    def step():
        images.grad = texts.grad = log_scale.grad = None
        loss(images, texts, log_scale).backward()
        return count

    return step


def their_loss(count):
    import_open_clip()
    from open_clip.loss import ClipLoss

    loss = ClipLoss()
    return torch_loss(lambda images, texts, log_scale: loss(images, texts, log_scale.exp()), count)


def our_torch_loss(count):
    from keras_clip import losses

    return torch_loss(lambda *x: losses.contrastive_loss(*x).mean(), count)


def our_tensorflow_loss(count):
    import tensorflow as tf

    from keras_clip import losses

    images, texts = map(tf.constant, embeddings(count))
    log_scale = tf.constant(LOG_SCALE)

    @tf.function(jit_compile=True)
    def gradient(*x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_mean(losses.contrastive_loss(*x))
        return loss, tape.gradient(loss, x)

    def step():
        gradient(images, texts, log_scale)[0].numpy()
        return count

    return step


def jax_gradient(loss):
    import jax

    return jax.jit(jax.value_and_grad(lambda *x: loss(*x).mean(), argnums=(0, 1, 2)))


def dense_jax_loss(images, texts, log_scale):
    """Computes the loss as in figure 3 of the paper."""
    from jax import numpy as jnp
    from jax.nn import log_softmax

    logits = jnp.exp(log_scale) * images @ texts.T
    return -(jnp.diag(log_softmax(logits, axis=0)) + jnp.diag(log_softmax(logits, axis=1))) / 2


def our_jax_loss(count):
    import jax

    from keras_clip import losses

    gradient = jax_gradient(losses.contrastive_loss)
    arguments = (*map(jax.numpy.asarray, embeddings(count)), LOG_SCALE)

    def step():
        jax.block_until_ready(gradient(*arguments))
        return count

    return step


def loss_contender(kind, arguments):
    """Returns a step over the measured pairs; on JAX also the planned memory for half and twice as many pairs."""
    factory = {"jax": our_jax_loss, "tensorflow": our_tensorflow_loss, "torch": our_torch_loss, "peer": their_loss}[
        kind
    ]
    count = 512 if arguments.tiny else 8192
    if kind != "jax":
        return weighed(factory(count), kind == "tensorflow")
    from keras_clip import losses

    memory = {
        n: planned(jax_gradient(losses.contrastive_loss), *embeddings(n), LOG_SCALE)
        for n in (count // 2, count, 2 * count)
    }
    memory["dense"] = planned(jax_gradient(dense_jax_loss), *embeddings(count), LOG_SCALE)
    step = factory(count)
    step.facts = {"memory_mib": memory[count], "memory_by_pairs": memory}
    return step


# Whole steps of a small model.


def small_step(backend, count, arguments, microbatch_size=None, remat=False, layers=4):
    """Returns a step of a small ViT with enough patches that activations dominate the memory."""
    import keras

    import keras_clip

    width = 32 if arguments.tiny else 128
    sizes = {"width": width, "num_layers": layers, "num_heads": 2, "remat": remat}
    clip = keras_clip.CLIPModel(
        keras_clip.encoders.VisionTransformer(image_size=32, patch_size=4, **sizes),
        keras_clip.encoders.TextTransformer(context_length=16, **sizes),
        embed_dim=width,
    )
    clip.compile(keras.optimizers.SGD(0.01), microbatch_size=microbatch_size)
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.integers(0, 256, size=(count, 32, 32, 3)).astype("uint8"),
        "token_ids": np.full((count, 16), 49407, "int32"),
    }

    def step():
        clip.train_on_batch(batch)
        return count

    if backend != "jax":
        return weighed(step, backend == "tensorflow")
    step.facts = {"memory_mib": planned_step(clip, batch)}
    return step


def microbatch_entries(arguments):
    # Parts are large enough that the gradient of the token embeddings, 25 MiB per part, does not dominate.
    part = 4 if arguments.tiny else 64
    entries = []
    for backend in arguments.backends:
        name = f"keras_clip, {backend}"
        direct, few = f"{name}: {4 * part} pairs, no micro-batches", f"{name}: 4 micro-batches of {part} pairs"
        many = f"{name}: 32 micro-batches of {part} pairs"
        step = functools.partial(small_step, backend)
        cut = functools.partial(small_step, backend, microbatch_size=part)
        entries += [
            Entry(direct, backend, functools.partial(step, 4 * part)),
            Entry(few, backend, functools.partial(cut, 4 * part), direct, 0.7),
            Entry(many, backend, functools.partial(cut, 32 * part), None, None, few, 1.15),
        ]
    return entries


def remat_entries(arguments):
    entries = []
    for backend in arguments.backends:
        kept, again = f"keras_clip, {backend}: 32 pairs", f"keras_clip, {backend}: 32 pairs, remat=True"
        step = functools.partial(small_step, backend, 32, layers=12)
        entries += [
            Entry(kept, backend, step),
            Entry(again, backend, functools.partial(step, remat=True), kept, None, kept),
        ]
    return entries


# An accelerator at full size.


def has_accelerator():
    import torch

    return torch.cuda.is_available()


def device_name():
    """Returns the name of the accelerator and a comma, or an empty text."""
    import torch

    return f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""


def peak_device_gib(backend):
    if backend == "torch":
        import torch

        return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    import jax

    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics["peak_bytes_in_use"] / 2**30 if "peak_bytes_in_use" in statistics else None


def architecture(name, arguments):
    from keras_clip.presets.architectures import ARCHITECTURES

    found = ARCHITECTURES[name]
    if not arguments.tiny:
        return found
    image = {"image_size": 32, "blocks": (1, 1, 1, 1), "width": 8}
    if name != "rn50":
        image = {**found.image_encoder, "width": 64, "num_layers": 2, "num_heads": 1}
    text = {**found.text_encoder, "width": 64, "num_layers": 2, "num_heads": 1}
    return type(found)(image, text, 32)


def our_full_step(name, backend, arguments, count=None, microbatch_size=None):
    """Runs `fit` repeatedly over one batch, in bfloat16."""
    import keras

    import keras_clip

    keras.config.set_dtype_policy("mixed_bfloat16")
    sizes = architecture(name, arguments)
    clip = sizes.build()
    clip.compile(
        keras_clip.training.adamw(clip, 5e-4, warmup_steps=10, total_steps=1000), microbatch_size=microbatch_size
    )
    count = count or (4 if arguments.tiny else BATCHES[name])
    side = sizes.image_size
    batch = {
        "images": np.random.default_rng(0).integers(0, 256, size=(count, side, side, 3)).astype("uint8"),
        "token_ids": np.full((count, TEXT_LENGTH), 49407, "int32"),
    }
    steps = 2 if arguments.tiny or microbatch_size else 20

    def run():
        clip.fit(((batch,) for _ in range(steps)), steps_per_epoch=steps, verbose=0)
        run.facts["device_gib"] = peak_device_gib(backend)
        return steps * count

    run.facts = {"flops": keras_clip.flops.train_step(clip, count, TEXT_LENGTH) / count}
    return run


def their_full_step(name, arguments):
    """Runs open_clip in bfloat16, compiled, as its training script does; it does not shorten texts."""
    import torch

    open_clip = import_open_clip()
    from open_clip.loss import ClipLoss

    from keras_clip import flops
    from keras_clip.presets.architectures import ARCHITECTURES

    name = "vit_b32" if arguments.tiny else name
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = open_clip.create_model(OPEN_CLIP_NAMES[name], device=device).train()
    compiled = torch.compile(model)
    gains = [p for p in model.parameters() if p.ndim < 2]
    others = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": gains, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.2}]
    optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), fused=device == "cuda")
    count = 4 if arguments.tiny else BATCHES[name]
    sides = model.visual.image_size
    images = torch.rand(count, 3, *np.broadcast_to(sides, 2), device=device)
    tokens = torch.full((count, 77), 49407, device=device)
    loss, steps = ClipLoss(), 2 if arguments.tiny else 20

    def run():
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16):
                features = compiled(images, tokens)
            loss(*features).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
            run.facts["device_gib"] = peak_device_gib("torch")
        return steps * count

    sizes = ARCHITECTURES[name]
    forward = flops.image_encoder(sizes.image_encoder, whole=True) + flops.text_encoder(sizes.text_encoder, whole=True)
    run.facts = {"flops": 3 * forward}
    return run


def accelerator_entries(task, arguments):
    backends = [backend for backend in ("jax", "torch") if backend in arguments.backends]
    if task == "bf16_vit_b32_32768_pairs":
        count, part = (16, 4) if arguments.tiny else (32_768, 1024)
        return [
            Entry(
                f"keras_clip, {backend}",
                backend,
                functools.partial(our_full_step, "vit_b32", backend, count=count, microbatch_size=part),
            )
            for backend in backends
        ]
    name = task.removeprefix("bf16_")
    ours = [
        Entry(f"keras_clip, {backend}", backend, functools.partial(our_full_step, name, backend), "open_clip", 1.0)
        for backend in backends
    ]
    return ours + [Entry("open_clip", "torch", functools.partial(their_full_step, name))] * arguments.peers


def contenders(task, arguments):
    """Returns the entries of one of these tasks."""
    if task == "loss":
        entries = [
            Entry(f"keras_clip, {b}", b, functools.partial(loss_contender, b), "open_clip", 1 / LOSS_TIME[b])
            for b in arguments.backends
        ]
        return entries + [Entry("open_clip", "torch", functools.partial(loss_contender, "peer"))] * arguments.peers
    if task == "microbatches":
        return microbatch_entries(arguments)
    return remat_entries(arguments) if task == "remat" else accelerator_entries(task, arguments)
