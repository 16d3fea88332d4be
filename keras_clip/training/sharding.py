"""Tensor parallelism: the layout of weights over devices, for models that do not fit on one."""

import keras


def layout_map(device_mesh: keras.distribution.DeviceMesh, axis: str = "model") -> keras.distribution.LayoutMap:
    """The layout of the weights of a CLIP, sharded over one axis of a device mesh, on the JAX backend.

    Attention is sharded by heads and MLPs by hidden units, so that a block has two all-reduces (Shoeybi et al., 2019);
    token embeddings and convolutions are sharded by channels. All other weights are replicated. The number of devices
    on the axis must divide widths and heads.

        mesh = keras.distribution.DeviceMesh((4, 2), ("batch", "model"), keras.distribution.list_devices())
        layout = keras_clip.training.layout_map(mesh)
        keras.distribution.set_distribution(
            keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
        )

    Call it before the model is built.

    Args:
        device_mesh: `keras.distribution.DeviceMesh`.
        axis: name of the axis of the mesh to shard over.

    Returns:
        `keras.distribution.LayoutMap`.

    Raises:
        ValueError: the mesh has no such axis.
    """
    if axis not in device_mesh.axis_names:
        raise ValueError(
            f"`axis` must be one of the mesh's axes. Received: axis={axis!r}, axes {tuple(device_mesh.axis_names)}. "
            'Build the mesh with `axis_names=("batch", "model")`.'
        )
    layout = keras.distribution.LayoutMap(device_mesh)
    layout[".*/(query|key|value|expand)/kernel"] = (None, axis)
    layout[".*/(query|key|value|expand)/bias"] = (axis,)
    layout[".*/(output|contract)/kernel"] = (axis, None)
    layout[".*token_embedding/tokens/embeddings"] = (None, axis)
    layout[".*patch_embedding/projection/kernel"] = (None, None, None, axis)
    layout[".*/(stem_)?(convolution_[123]|shortcut)/kernel"] = (None, None, None, axis)
    return layout
