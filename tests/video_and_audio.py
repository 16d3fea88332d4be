"""A model of video and audio that trains with the step of the global batch, for tests and their processes."""

import keras
import numpy as np
from keras import layers, ops

from keras_clip import distribution
from keras_clip.layers import ContrastiveLoss
from keras_clip.step import Branch, GlobalBatchTrainer

VIDEO, AUDIO = (2, 4, 4, 3), (5,)


def embedder(shape, name):
    return keras.Sequential(
        [keras.Input(shape), layers.Flatten(), layers.Dense(4), layers.UnitNormalization()], name=name
    )


class VideoAndAudio(GlobalBatchTrainer):
    """Embeds video clips (B, T, H, W, 3) and audio features (B, F) in one space."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.video_embedder, self.audio_embedder = embedder(VIDEO, "video"), embedder(AUDIO, "audio")
        self.contrast = ContrastiveLoss(name="contrast")
        self.contrast.build((None, 4), (None, 4))
        self.add_step_metrics()
        self.built = True

    @property
    def branches(self):
        return (
            Branch("video", self.video_embedder, "video_embeddings"),
            Branch("audio", self.audio_embedder, "audio_embeddings"),
        )

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        pairs = self.contrast.loss_and_matches(y_pred["video_embeddings"], y_pred["audio_embeddings"])
        return ops.sum(pairs.loss) / distribution.total(ops.cast(ops.shape(pairs.loss)[0], "float32"))


def build(kind=VideoAndAudio):
    keras.utils.set_random_seed(1)
    return kind()


def pairs(rows=12):
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=(rows, *shape)).astype("float32") for name, shape in (("video", VIDEO), ("audio", AUDIO))
    }


def train(model, data, **options):
    """Trains for two epochs with SGD, and returns the trained weights."""
    model.compile(keras.optimizers.SGD(0.1), **options)
    model.fit(data, batch_size=12, epochs=2, shuffle=False, verbose=0)
    return [np.array(ops.convert_to_numpy(ops.convert_to_tensor(v))) for v in model.trainable_variables]
