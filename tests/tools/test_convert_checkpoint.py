"""The conversion tool converts between all layouts."""

import pytest
from presets import checkpoints
from subprocesses import REPOSITORY, run_python

pytestmark = [pytest.mark.backend_free, pytest.mark.slow]


def convert(*arguments):
    return run_python(REPOSITORY / "tools" / "convert_checkpoint.py", *map(str, arguments))


def test_round_the_layouts(tmp_path):
    from safetensors.numpy import load_file

    checkpoints.save_hugging_face(tmp_path / "0", checkpoints.TINY["vit_b32"])
    route = ["open_clip", "keras", "hugging_face"]
    for i, layout in enumerate(route):
        done = convert(tmp_path / str(i), tmp_path / str(i + 1), "--layout", layout)
        assert f"in the layout {layout}; loaded again, embeddings differ by 0.0e+00" in done
    first, last = (load_file(tmp_path / str(i) / "model.safetensors") for i in (0, 3))
    assert first.keys() == last.keys()
    assert all((first[key] == last[key]).all() for key in first)


def test_other_sizes(tmp_path):
    checkpoints.save_open_clip(tmp_path / "a", checkpoints.TINY["rn50"])
    sizes = "--image-size", 96, "--context-length", 20
    convert(tmp_path / "a", tmp_path / "b", "--layout", "open_clip", *sizes)
    config = (tmp_path / "b" / "open_clip_config.json").read_text()
    assert '"image_size": 96' in config and '"context_length": 20' in config
