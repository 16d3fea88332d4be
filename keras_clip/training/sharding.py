"""Which axis of which weight goes over which devices, for models that do not fit on one."""

import keras


def layout_map(device_mesh: keras.distribution.DeviceMesh, axis: str = "model") -> keras.distribution.LayoutMap:
    """How to cut the weights of a CLIP over one axis of a device mesh, on the JAX backend.

    Attention is cut by heads and MLPs by hidden units, so that a block needs two sums over the devices (Shoeybi et al.,
    2019); the token table and convolutions are cut by channels. What it does not name is on every device. The number of
    devices on the axis must divide widths and heads.

        mesh = keras.distribution.DeviceMesh((4, 2), ("batch", "model"), keras.distribution.list_devices())
        layout = keras_clip.training.layout_map(mesh)
        keras.distribution.set_distribution(
            keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
        )

    Call it before the model is built.

    Args:
        device_mesh: `keras.distribution.DeviceMesh`.
        axis: the name of the mesh's axis to cut over.

    Returns:
        `keras.distribution.LayoutMap`.

    Raises:
        ValueError: the mesh has no such axis.
    """
    if axis not in device_mesh.axis_names:
        raise ValueError(
            f"`axis` must be one of the mesh's axes. Received: axis={axis!r}, axes {tuple(device_mesh.axis_names)}. "
            'Make the mesh with `axis_names=("batch", "model")`.'
        )
    layout = keras.distribution.LayoutMap(device_mesh)
    layout[".*/(query|key|value|expand)/kernel"] = (None, axis)
    layout[".*/(query|key|value|expand)/bias"] = (axis,)
    layout[".*/(output|contract)/kernel"] = (axis, None)
    layout[".*token_embedding/tokens/embeddings"] = (None, axis)
    layout[".*patch_embedding/projection/kernel"] = (None, None, None, axis)
    layout[".*/(stem_)?(convolution_[123]|shortcut)/kernel"] = (None, None, None, axis)
    return layout
