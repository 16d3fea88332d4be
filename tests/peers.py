"""Copies the weights of an open_clip model into ours, so that both can be asked the same question."""

from keras_clip.presets.layouts import open_clip_slots


def copy_open_clip(peer, clip):
    """Gives `clip` (a `CLIPModel` of the same architecture) the weights of `peer` (an `open_clip.CLIP`)."""
    # A copy: JAX may take over the memory of an array, and the peer is trained in place.
    state = {key: value.detach().numpy().copy() for key, value in peer.state_dict().items()}
    for slot in open_clip_slots(clip):
        slot.variable.assign(slot.from_stored(state[slot.key]))
