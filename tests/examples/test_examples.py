"""The commands of examples/ from end to end, on tars of drawn scenes: train, classify, evaluate, refuse.

Each script runs once as a process, as users run it; other cases call its `main` in this process.
"""

import dataclasses
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import load_script
from subprocesses import REPOSITORY, run_python

from keras_clip.data import synthetic
from keras_clip.presets.architectures import ARCHITECTURES

pytestmark = pytest.mark.slow
EXAMPLES = REPOSITORY / "examples"


def encode(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, samples):
    with tarfile.open(path, "w") as tar:
        for number, (image, caption) in enumerate(samples):
            for suffix, data in (("png", encode(image)), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with shards, and the files of two epochs of training in its folder `run`."""
    folder = tmp_path_factory.mktemp("trained")
    for shard in range(2):
        write_tar(folder / f"train{shard}.tar", (synthetic.sample(40 * shard + i, 32, seed=0) for i in range(40)))
    sizes = ["--image-size", "32", "--context-length", "16", "--batch-size", "16"]
    options = ["--epochs", "2", "--flip", "--model", "resnet_tiny", *sizes, "--val", str(folder / "train1.tar")]
    output = run_python(EXAMPLES / "train.py", str(folder / "train*.tar"), *options, "--out", str(folder / "run"))
    return folder, output


def test_train(trained):
    folder, output = trained
    assert "10 steps" in output
    rows = (folder / "run" / "history.csv").read_text().splitlines()
    assert len(rows) == 3 and {"loss", "val_loss", "logit_scale"} <= set(rows[0].split(","))
    assert Image.open(folder / "run" / "loss.png").size == (720, 480)
    record = json.loads((folder / "run" / "command.json").read_text())
    assert (record["steps"], record["batch_size"], record["model"]) == (10, 16, "resnet_tiny")
    assert (record["crop"], record["crop_scale"]) == ("paper", None)


def test_classify(trained, capsys):
    folder, _ = trained
    paths = [str(folder / name) for name in ("a.png", "b.png")]
    for path, scene in zip(paths, (0, 1), strict=True):
        Image.fromarray(synthetic.sample(scene, 48, seed=3)[0]).save(path)
    model = ["--model", str(folder / "run" / "clip.keras")]
    lines = run_python(EXAMPLES / "classify_zero_shot.py", *paths, *model, "--classes", "cat", "dog").splitlines()
    assert [line.split("\t")[0] for line in lines[-2:]] == paths
    for line in lines[-2:]:
        _, name, share = line.split("\t")
        assert name in ("cat", "dog") and 50 <= float(share.removesuffix("%")) <= 100
    (folder / "classes.json").write_text('["cat", "dog"]')
    (folder / "templates.txt").write_text("a photo of a {}.\n")
    files = ["--classes-file", str(folder / "classes.json"), "--templates-file", str(folder / "templates.txt")]
    load_script("examples/classify_zero_shot.py").main([*paths, *model, *files])
    assert capsys.readouterr().out.splitlines()[-2:] == lines[-2:]


def test_evaluate(trained):
    folder, _ = trained
    model = ["--model", str(folder / "run" / "clip.keras")]
    sources = [str(folder / "train0.tar"), "--candidates", str(folder / "train1.tar")]
    output = run_python(EXAMPLES / "evaluate_zero_shot.py", *sources, *model).splitlines()[-1]
    captions = {synthetic.sample(index, 32, seed=0)[1] for index in range(80)}
    assert output.startswith("right: ") and output.endswith(f"of 40 images, among {len(captions)} names")


@pytest.mark.backend_free
def test_class_of_a_caption():
    class_of = load_script("examples/evaluate_zero_shot.py").class_of
    classes = {"orange": "Orange", "orange juice": "Orange juice"}
    captions = ("orange", "orange , round", "orange juice", "orange juice in a glass", "orange juices")
    expected = ["Orange", "Orange", "Orange juice", "Orange juice", "Orange"]
    assert [class_of(caption, classes) for caption in captions] == expected
    with pytest.raises(ValueError, match="Received: caption='oranges'"):
        class_of("oranges", classes)


@pytest.mark.backend_free
def test_evaluate_among_classes(trained, capsys):
    folder, _ = trained
    # Reads a folder instead of shards, with a caption longer than the context, and a class name that begins another.
    (folder / "pictures").mkdir()
    captions = {"a": "orange, " + "very " * 20 + "round", "b": "orange juice", "c": "pear."}
    for scene, (name, caption) in enumerate(captions.items()):
        Image.fromarray(synthetic.sample(scene, 48, seed=3)[0]).save(folder / "pictures" / f"{name}.png")
        (folder / "pictures" / f"{name}.txt").write_text(caption)
    (folder / "fruit.json").write_text('["orange", "orange juice", "Pear"]')
    main = load_script("examples/evaluate_zero_shot.py").main
    command = [str(folder / "pictures"), "--model", str(folder / "run/clip.keras")]
    among = ["--classes-file", str(folder / "fruit.json"), "--templates", "a {}.", "{}"]
    main([*command, *among])
    output = capsys.readouterr().out.splitlines()[-1]
    assert "among the first five: 100.0%, of 3 images, among 3 names" in output
    (folder / "fruit.json").write_text('["orange"]')
    with pytest.raises(ValueError, match=r"begin with the name of a class. Received: caption='pear"):
        main([*command, *among])
    (folder / "pictures" / "a.txt").write_text("orange")
    main([*command, "--candidates", str(folder / "train1.tar")])
    output = capsys.readouterr().out.splitlines()[-1]
    drawn = {synthetic.sample(index, 32, seed=0)[1] for index in range(40, 80)}
    assert output.endswith(f"of 3 images, among {3 + len(drawn)} names")


@pytest.mark.backend_free
def test_histogram_probe(tmp_path):
    """The probe distinguishes classes by their colour, and cannot distinguish two classes of the same colour."""
    colors = {"red": (200, 0, 0), "red wine": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}
    for part, count in (("train", 40), ("val", 10)):
        samples = [(np.full((40, 48, 3), colors[name], np.uint8), f"{name}, a colour") for name in colors] * count
        write_tar(tmp_path / f"{part}.tar", samples)
    (tmp_path / "names.json").write_text(json.dumps(list(colors)))
    sources = ["--train", str(tmp_path / "train.tar"), "--val", str(tmp_path / "val.tar")]
    probe = REPOSITORY / "tools" / "histogram_probe.py"
    output = run_python(probe, *sources, "--classes-file", str(tmp_path / "names.json")).splitlines()[-1]
    assert output.startswith("right: 75.0% [59.0%, 87.1%] of 40 images, C=")


def command(folder, out, *changes, shards="train*.tar"):
    """The command of the fixture `trained`."""
    sizes = ["--image-size", "32", "--context-length", "16", "--batch-size", "16", "--epochs", "2"]
    return [str(folder / shards), "--flip", "--model", "resnet_tiny", *sizes, "--out", str(out), *changes]


@pytest.fixture
def ended(trained, tmp_path):
    """A copy of a run that has ended, and what its files hold."""
    out = Path(shutil.copytree(trained[0] / "run", tmp_path / "run"))
    return out, contents(out)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.backend_free
def test_a_run_that_has_ended_says_so(trained, ended, capsys):
    out, before = ended
    load_script("examples/train.py").main(command(trained[0], out))
    assert f"Nothing left to do: {out} has all 10 steps. --restart begins anew." in capsys.readouterr().out
    assert contents(out) == before


@pytest.mark.backend_free
def test_a_run_that_was_killed_before_it_saved_its_model_saves_it(trained, ended, capsys):
    out, _ = ended
    (out / "clip.keras").unlink()
    load_script("examples/train.py").main(command(trained[0], out))
    assert "0 steps of 10 in" in capsys.readouterr().out
    assert (out / "clip.keras").exists() and json.loads((out / "command.json").read_text())["first_step"] == 10


OTHERS = {
    "source": ([], "data's source '.*', and here"),
    "augmentation": (["--color-jitter", "0.4"], r"run's --color-jitter 0.0, and here 0.4"),
    "crops": (["--crop", "random_resized"], r"crop 'paper', and here 'random_resized'.* None, and here \[0.9, 1.0\]"),
    "model": (["--model", "vit_tiny"], "run's --model 'resnet_tiny', and here 'vit_tiny'"),
    "schedule": (["--learning-rate", "1e-4"], "optimizer's learning_rate"),
    "seed": (["--seed", "1"], "data's seed 0, and here 1"),
}


@pytest.mark.backend_free
@pytest.mark.parametrize(("changes", "words"), OTHERS.values(), ids=OTHERS)
def test_another_run_is_refused_and_named(trained, ended, changes, words):
    folder, (out, before) = trained[0], ended
    shards = "train*.tar"
    if not changes:
        shards = "other*.tar"
        for shard in range(2):
            write_tar(folder / f"other{shard}.tar", (synthetic.sample(i, 32, seed=9) for i in range(40)))
    with pytest.raises(SystemExit, match=rf"{words}.* --restart begins anew, and moves the run of before"):
        load_script("examples/train.py").main(command(folder, out, *changes, shards=shards))
    assert contents(out) == before


@pytest.mark.backend_free
def test_restart_moves_the_run_of_before(trained, ended, capsys, monkeypatch):
    out, before = ended
    (out / "notes.txt").write_text("mine")
    script, begun = load_script("examples/train.py"), []
    monkeypatch.setattr(script, "train", lambda *_: begun.append(contents(out)))
    for number in (1, 2):
        script.main(command(trained[0], out, "--restart"))
        assert f"before_{number}" in capsys.readouterr().out or number == 2
        if number == 1:
            (out / "clip.keras").write_bytes(b"second")
    assert begun[0] == {"notes.txt": b"mine", **{f"before_1/{name}": data for name, data in before.items()}}
    assert begun[1] == {**begun[0], "before_2/clip.keras": b"second"}


@pytest.mark.backend_free
def test_a_model_without_checkpoints_is_not_replaced(trained, ended):
    out, _ = ended
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(SystemExit, match="a trained model without checkpoints.*Pass --restart"):
        load_script("examples/train.py").main(command(trained[0], out))


def test_a_missing_argument_is_reported(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="(?s)[Nn]o file.*nowhere.tar"):
        load_script("examples/train.py").main([str(tmp_path / "nowhere.tar"), "--out", str(tmp_path / "other")])
    with pytest.raises(SystemExit):
        load_script("examples/classify_zero_shot.py").main(["x.png", "--model", "m.keras"])
    assert "one of the arguments --classes --classes-file is required" in capsys.readouterr().err


@pytest.fixture
def small_presets(monkeypatch):
    """`vit_l14` and `vit_l14_336` with few weights and small images."""
    for name, image_size in (("vit_l14", 32), ("vit_l14_336", 48)):
        image = {"image_size": image_size, "patch_size": 8, "width": 64, "num_layers": 2, "num_heads": 1}
        text = {"width": 64, "num_layers": 1, "num_heads": 1, "context_length": 77}
        parts = {"image_encoder": image, "text_encoder": text, "embed_dim": 16}
        monkeypatch.setitem(ARCHITECTURES, name, dataclasses.replace(ARCHITECTURES[name], **parts))


def test_the_papers_recipe_and_its_extra_epoch(trained, small_presets):
    folder, _ = trained
    steps, train = {}, load_script("examples/train.py")
    options = {"vit_l14": ["--epochs", "2"], "vit_l14_336": ["--start", str(folder / "vit_l14" / "clip.keras")]}
    for name, more in options.items():
        out = ["--out", str(folder / name)]
        train.main([str(folder / "train0.tar"), "--recipe", name, "--batch-size", "16", *out, *more])
        record = json.loads((folder / name / "command.json").read_text())
        steps[name] = record["steps"], record["learning_rate"], record["image_size"], record["crop"]
    assert steps == {"vit_l14": (4, 4e-4, 32, "paper"), "vit_l14_336": (2, 2e-5, 48, "paper")}


@pytest.mark.backend_free
def test_the_scale_of_a_crop_is_recorded():
    script = load_script("examples/train.py")
    scales = {}
    for name, options in {"default": [], "given": ["--crop-scale", "0.5"]}.items():
        args = script.parse_args(["x.tar", "--recipe", "vit_b32", "--crop", "random_resized", *options])
        script.complete(args)
        scales[name] = args.crop, args.crop_scale
    assert scales == {"default": ("random_resized", 0.9), "given": ("random_resized", 0.5)}


@pytest.mark.backend_free
@pytest.mark.parametrize("script, source", [("train", ["x.tar"]), ("efficiency", [])])
def test_a_scale_needs_the_crop_that_has_one(script, source, capsys):
    with pytest.raises(SystemExit):
        load_script(f"examples/{script}.py").main([*source, "--crop-scale", "0.3"])
    assert "--crop-scale needs --crop random_resized" in capsys.readouterr().err


def test_the_extra_epoch_needs_a_model():
    with pytest.raises(SystemExit, match="continues from a trained vit_l14. Received: no --start"):
        load_script("examples/train.py").main(["x.tar", "--recipe", "vit_l14_336"])
