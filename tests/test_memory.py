"""A run that cannot fit in memory is stopped before its first step; one that fits never is."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import command
from PIL import Image

from supcon_tf.losses import supcon
from supcon_tf.models import contrastive
from supcon_tf.training import memory, optimizers, steps


def step_of(encoder, batch_size=8):
    return steps.ContrastiveStep(
        model=contrastive.ContrastiveModel(encoder),
        loss=supcon.SupConLoss(reduction=None),
        optimizer=optimizers.create_optimizer("momentum", 0.1),
        global_batch_size=batch_size,
    )


def test_output_bytes_count_every_layer_once_in_its_precision():
    images = keras.Input([4, 4, 3])
    x = keras.layers.Conv2D(2, 1)(images)  # 4 * 4 * 2 floats of four bytes: 128.
    x = keras.layers.ReLU(dtype="mixed_bfloat16")(x)  # Of two bytes: 64.
    inner = keras.Model(images, keras.layers.GlobalAveragePooling2D(dtype="float32")(x))  # 8.
    assert memory.output_bytes(inner) == (200, 128)
    again = keras.Input([4, 4, 3])
    assert memory.output_bytes(keras.Model(again, inner(again))) == (200, 128)


def test_attention_counts_its_scores_which_grow_with_the_square_of_the_tokens():
    def inside(tokens):
        images = keras.Input([tokens, 6])
        attention = keras.layers.MultiHeadAttention(2, 4)(images, images)
        total, _ = memory.output_bytes(keras.Model(images, attention))
        return total - 4 * tokens * 6  # Its output.

    # Two heads of four bytes: queries, keys and values of 4 per token, and T x T scores twice.
    for tokens in (3, 30):
        assert inside(tokens) == 2 * 4 * (3 * 4 * tokens + 2 * tokens**2)


def test_the_estimate_grows_with_images_and_replicas():
    step = step_of(contrastive.create_encoder("tiny", image_size=8))
    options = {"images_per_replica": 16, "eval_images_per_replica": 4}
    one = memory.estimate(step, **options)
    two = memory.estimate(step, **options, num_replicas=2)
    assert two.activations == pytest.approx(2 * one.activations, abs=1)
    assert two.gradients == 2 * one.gradients == 2 * 4 * (77_680 + 64 * 128)
    more = memory.estimate(step, images_per_replica=32, eval_images_per_replica=4)
    assert more.activations == pytest.approx(2 * one.activations, abs=1)
    assert one.state > one.gradients  # Weights, momentum and moving averages.


def test_photographs_with_the_stem_of_cifar_exceed_what_was_measured_and_the_default_does_not():
    """ResNet-50 at 224 px with 8 examples of two views grew past 22 GB with the CIFAR stem."""
    cifar = {"first_conv_kernel_size": 3, "first_conv_stride": 1, "use_initial_max_pool": False}
    with keras.StatelessScope(initialize_variables=False):
        sizes = [
            16 * memory.ACTIVATION_FACTOR * memory.output_bytes(encoder)[0]
            for encoder in (
                contrastive.create_encoder("resnet_v1", image_size=224, **cifar),
                contrastive.create_encoder("resnet_v1", image_size=224),
            )
        ]
    assert sizes[0] > 22e9 and sizes[1] < 3e9


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_available_memory_is_the_least_of_system_and_control_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    assert memory.available_bytes(str(tmp_path)) is None
    write(tmp_path, "proc/meminfo", "MemTotal: 900 kB\nMemAvailable: 700 kB\nSwapFree: 100 kB\n")
    assert memory.available_bytes(str(tmp_path)) == 800 * 1024
    write(tmp_path, "proc/self/cgroup", "0::/job/step\n")
    write(tmp_path, "sys/fs/cgroup/job/step/memory.max", "max\n")
    write(tmp_path, "sys/fs/cgroup/job/step/memory.current", "300000\n")
    assert memory.available_bytes(str(tmp_path)) == 800 * 1024
    write(tmp_path, "sys/fs/cgroup/job/memory.max", "500000\n")
    write(tmp_path, "sys/fs/cgroup/job/memory.current", "400000\n")
    write(tmp_path, "sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 50000\n")
    assert memory.available_bytes(str(tmp_path)) == 150_000
    write(tmp_path, "proc/self/cgroup", "5:cpu:/other\n4:memory:/docker\n")
    write(tmp_path, "sys/fs/cgroup/memory/docker/memory.limit_in_bytes", "90000\n")
    write(tmp_path, "sys/fs/cgroup/memory/docker/memory.usage_in_bytes", "60000\n")
    write(tmp_path, "sys/fs/cgroup/memory/docker/memory.stat", "total_inactive_file 10000\n")
    assert memory.available_bytes(str(tmp_path)) == 40_000


def pretrain(model_dir, *arguments):
    command.run_inside(
        "--mode=pretrain", "--pretrain_epochs=0", "--pretrain_warmup_epochs=0",
        "--knn_interval_epochs=0", f"--model_dir={model_dir}", *arguments,
    )  # fmt: skip


def test_a_run_that_does_not_fit_is_stopped_and_its_remedies_work(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 30_000_000)
    arguments = ("--eval_batch_size=32", "--batch_size=64")
    with pytest.raises(ValueError, match="needs about .* GB .* 0.0 GB are available") as caught:
        pretrain(tmp_path, *arguments)
    assert not (tmp_path / "pretrain/stage.flags").exists()
    text = str(caught.value)
    assert "tiny at 20 px, 64 examples x 2 views" in text
    assert re.search(r"--image_size=10\n", text) and "--encoder=" in text
    pieces = re.search(r"--microbatch_size=\d+ --nouse_global_batch_norm", text)[0].split()
    pretrain(tmp_path / "pieces", *arguments, *pieces)
    batch = re.search(r"--batch_size=\d+", text)[0]
    pretrain(tmp_path / "batch", *arguments, batch)
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    pretrain(tmp_path / "unknown", *arguments)


def test_an_evaluation_that_does_not_fit_names_its_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 30_000_000)
    arguments = ("--eval_batch_size=4096", "--batch_size=8")
    with pytest.raises(ValueError, match="  --eval_batch_size=") as caught:
        pretrain(tmp_path, *arguments)
    assert "microbatch" not in str(caught.value)
    pretrain(tmp_path, *arguments, re.search(r"--eval_batch_size=\d+", str(caught.value))[0])


def write_photographs(root, side):
    for split in ("train", "test"):
        for name in ("one", "other"):
            (root / split / name).mkdir(parents=True)
            for index in range(4):
                picture = np.full([side, side + 9, 3], 40 * index, np.uint8)
                Image.fromarray(picture).save(root / split / name / f"{index}.png")
    return root


def test_large_images_keep_their_size_and_get_a_larger_network(tmp_path, capsys):
    data = f"--data_dir={write_photographs(tmp_path / 'data', 100)}"
    pretrain(tmp_path / "run", "--dataset=folder", data, "--batch_size=4")
    out = capsys.readouterr().out
    assert "--encoder=resnet_v1 --resnet_depth=18" in out and "--image_size=100" in out


@pytest.mark.parametrize(
    "arguments,kernel,stride,has_pool",
    [
        ([], 3, 1, False),
        (["--image_size=63"], 3, 1, False),
        (["--image_size=64"], 7, 2, True),
        (["--image_size=64", "--first_conv_stride=1", "--nouse_initial_max_pool"], 7, 1, False),
    ],
)
def test_the_stem_follows_the_image_size_unless_given(
    arguments, kernel, stride, has_pool, tmp_path
):
    pretrain(tmp_path, *arguments)
    encoder = keras.models.load_model(tmp_path / "pretrain/encoder.keras")
    stem = encoder.get_layer("stem_conv")
    assert stem.kernel_size == (kernel, kernel) and stem.strides == (stride, stride)
    pools = [layer for layer in encoder.layers if isinstance(layer, keras.layers.MaxPooling2D)]
    assert bool(pools) == has_pool


def test_memory_is_not_estimated_where_it_is_not_known(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1)
    pretrain(tmp_path, "--jit_compile")
    assert tf.io.gfile.exists(str(tmp_path / "pretrain/encoder.keras"))
