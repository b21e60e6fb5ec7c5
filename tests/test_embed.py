import io

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from helpers.command import run_inside
from helpers.trained_folder import SIDE, write_trained
from PIL import Image

from supcon_tf.data import pipeline, sources, streams
from supcon_tf.stages import embed
from supcon_tf.storage import files, npz


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_trained(tmp_path_factory.mktemp("trained"))


def prepared(source):
    """The images of a source as an evaluation prepares them, float32 [M, S, S, 3]."""
    batches = pipeline.create_eval_batches(source, batch_size=source.num_examples, image_size=SIDE)
    return next(iter(batches))["image"].numpy().astype(np.float32)


@pytest.mark.parametrize("split,arguments", [("test", []), ("train", ["--embed_split=train"])])
def test_a_split_is_embedded_in_its_order(trained, split, arguments, capsys):
    run_inside("--mode=embed", f"--model_dir={trained.model_dir}", *arguments)
    source = sources.load_source("digits", split)
    images = prepared(source)
    with np.load(trained.model_dir / "embed/embeddings.npz") as arrays:
        expected = trained.encoder.predict(images, verbose=0)
        np.testing.assert_allclose(arrays["embeddings"], expected, rtol=1e-3, atol=1e-4)
        assert arrays["embeddings"].dtype == np.float32
        np.testing.assert_array_equal(arrays["labels"], source.labels)
        logits = trained.classifier.predict(images, verbose=0)
        assert np.mean(arrays["predictions"] == np.argmax(logits, axis=1)) > 0.99  # Near ties.
        assert len(set(arrays["predictions"])) > 1
        assert arrays["names"].tolist() == [str(index) for index in range(len(images))]
        assert arrays["label_names"].tolist() == list(source.class_names)
        assert arrays["prediction_names"].tolist() == list(source.class_names)
    assert f"{len(images):,} images of digits, {split}" in capsys.readouterr().out


def write_images(folder):
    """Five images, two of them deeper, and a hidden file."""
    rng = np.random.default_rng(0)
    (folder / "more").mkdir(parents=True)
    for name in ("b.png", "a.jpg", "c.png", "more/a.png", "more/d.png"):
        pixels = rng.integers(0, 256, [SIDE, SIDE, 3]).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / ".DS_Store").write_bytes(b"\0")
    return folder


def test_a_folder_without_labels_is_embedded_by_path(trained, tmp_path):
    folder = write_images(tmp_path / "images")
    run_inside(
        "--mode=embed", f"--model_dir={trained.model_dir}", f"--embed_dir={folder}",
        "--eval_batch_size=2",
    )  # fmt: skip
    with np.load(trained.model_dir / "embed/embeddings.npz") as arrays:
        assert set(arrays) == {"embeddings", "predictions", "names", "prediction_names"}
        names = [f"{folder}/{name}" for name in ("a.jpg", "b.png", "c.png", "more/a.png")]
        assert arrays["names"].tolist() == [*names, f"{folder}/more/d.png"]
        for index in (1, 2, 3):  # PNG: Pillow reads the same pixels.
            image = np.array(Image.open(arrays["names"][index]), np.float32)[None]
            expected = trained.encoder.predict(image, verbose=0)[0]
            np.testing.assert_allclose(arrays["embeddings"][index], expected, rtol=1e-3, atol=1e-4)


def test_an_encoder_without_classifier_embeds_without_predictions(tmp_path):
    write_trained(tmp_path, with_classifier=False)
    run_inside("--mode=embed", f"--model_dir={tmp_path}")
    with np.load(tmp_path / "embed/embeddings.npz") as arrays:
        assert set(arrays) == {"embeddings", "labels", "names", "label_names"}


@pytest.mark.slow  # test_evaluate.py shows the same of what computes the outputs.
def test_four_replicas_embed_what_one_embeds(tmp_path, mirrored):
    """23 images in batches of 8: neither the replicas nor the batches divide them."""
    write_trained(tmp_path / "run")
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(23):
        pixels = rng.integers(0, 256, [SIDE, SIDE, 3]).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{index:02d}.png")
    arguments = [f"--model_dir={tmp_path / 'run'}", f"--embed_dir={tmp_path / 'images'}"]
    run_inside("--mode=embed", *arguments)
    one = dict(np.load(tmp_path / "run/embed/embeddings.npz"))
    with flagsaver.flagsaver():
        flags.FLAGS(["supcon_tf", *arguments, "--eval_batch_size=8"])
        embed.run(flags.FLAGS, mirrored)
    four = dict(np.load(tmp_path / "run/embed/embeddings.npz"))
    assert set(four) == set(one) and four["embeddings"].shape == (23, 64)
    np.testing.assert_allclose(four["embeddings"], one["embeddings"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(four["names"], one["names"])


@pytest.mark.parametrize(
    "kind,message",
    [
        ("nothing trained", "no trained encoder in .* run --mode=pretrain,linear"),
        ("no folder", "is not a folder"),
        ("empty folder", "holds no images"),
        ("text file", "notes.txt: starts with b'not an i'"),
        ("uneven batch", "eval_batch_size=10 cannot be shared evenly by 4"),
    ],
)
def test_what_cannot_be_embedded_is_refused(trained, tmp_path, kind, message, mirrored):
    arguments = [f"--model_dir={trained.model_dir}", f"--embed_dir={tmp_path}"]
    strategy = tf.distribute.get_strategy()
    if kind == "nothing trained":
        arguments = [f"--model_dir={tmp_path}"]
    if kind == "no folder":
        arguments[1] += "/none"
    if kind == "text file":
        (write_images(tmp_path / "images") / "notes.txt").write_text("not an image")
    if kind == "uneven batch":
        arguments += ["--eval_batch_size=10"]
        strategy = mirrored
    with flagsaver.flagsaver(), pytest.raises(ValueError, match=message):
        flags.FLAGS(["supcon_tf", *arguments])
        embed.run(flags.FLAGS, strategy)


def test_broken_files_of_a_folder_can_be_left_out(trained, tmp_path, capsys):
    folder = write_images(tmp_path / "images")
    (folder / "notes.txt").write_text("not an image")
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:60])
    run_inside(
        "--mode=embed", f"--model_dir={trained.model_dir}", f"--embed_dir={folder}",
        "--skip_broken_images",
    )  # fmt: skip
    with np.load(trained.model_dir / "embed/embeddings.npz") as arrays:
        assert [name.removeprefix(f"{folder}/") for name in arrays["names"]] == [
            "a.jpg", "c.png", "more/a.png", "more/d.png",
        ]  # fmt: skip
    assert "Skipped 2 files that cannot be read as images" in capsys.readouterr().out


def test_tfds_examples_are_named(tmp_path):
    """Of a stream the names come in the order of its images."""

    class Stream(streams.StreamSource):
        def named_examples(self, **_):
            names = tf.constant(["x-0", "x-1"])
            return tf.data.Dataset.from_tensor_slices((names, tf.range(2), names))

    assert sources.example_names(Stream(None, "test", 2, ("a", "b"))) == ["x-0", "x-1"]


@pytest.mark.parametrize("folder", ["local", "ram://embed"])
def test_an_archive_is_written_in_pieces_and_read_by_numpy(folder, tmp_path):
    """TensorFlow's in-memory file system takes the place of gs://."""
    folder = str(tmp_path) if folder == "local" else folder
    tf.io.gfile.makedirs(folder)
    path, rows = f"{folder}/embeddings.npz", np.arange(6, dtype=np.float32).reshape(2, 3)
    with files.writing(path) as temporary, npz.NpzWriter(temporary) as archive:
        with archive.rows("embeddings", [2, 3], np.float32) as write_rows:
            write_rows(rows[:1])
            write_rows(rows[1:])
        with archive.rows("names", [2], np.dtype("<U2")) as write_rows:
            write_rows(np.array(["a", "bc"]))
    with tf.io.gfile.GFile(path, "rb") as file:
        loaded = np.load(io.BytesIO(file.read()))
    np.testing.assert_array_equal(loaded["embeddings"], rows)
    assert loaded["names"].tolist() == ["a", "bc"]
    assert tf.io.gfile.listdir(folder) == ["embeddings.npz"]
