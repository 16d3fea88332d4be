"""Copies the weights of an open_clip model into ours, so that the outputs of both can be compared."""

from keras_clip.presets.layouts import open_clip_slots


def copy_open_clip(peer, clip):
    """Assigns the weights of `peer` (an `open_clip.CLIP`) to `clip` (a `CLIPModel` of the same architecture)."""
    # The arrays are copied, because JAX may use their memory, and the peer is trained in place.
    state = {key: value.detach().numpy().copy() for key, value in peer.state_dict().items()}
    for slot in open_clip_slots(clip):
        slot.variable.assign(slot.from_stored(state[slot.key]))
