"""The preflight: its slices, its search, its report, and (slow) the TPU compiler itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tpu import compiler_environment, compiler_text, lowering, preflight, slices

ROOT = Path(__file__).parent.parent


GIB = 2**30
# Where the tests with the real compiler find its environment, or make it.
ENVIRONMENT = os.environ.get("PREFLIGHT_ENV", "")
needs_compiler = pytest.mark.skipif(
    not ENVIRONMENT,
    reason="the TPU's compiler is 400 MB and takes minutes: name a folder for it by PREFLIGHT_ENV",
)
TINY = (
    "--dataset=cifar10", "--image_size=32", "--encoder=tiny", "--topology=v5e:2x2",
    f"--env_dir={ENVIRONMENT}",
)  # fmt: skip


@pytest.mark.parametrize(
    "topology, num_cores, expected",
    [
        ("v5e:4x4", None, ("v5e:4x4", 16)),
        ("v5e:4x4", 16, ("v5e:4x4", 16)),
        ("v5e", 128, ("v5e:8x16", 128)),
        ("v6e", 256, ("v6e:16x16", 256)),
        ("v5p", 128, ("v5p:4x4x8", 128)),
        ("v4", 4, ("v4:1x2x2", 4)),
        ("v3", 128, ("v3:8x8", 128)),  # Two cores per chip.
        ("v2:4x4", None, ("v2:4x4", 32)),
    ],
)
def test_slices_have_their_cores(topology, num_cores, expected):
    assert slices.parse(topology, num_cores) == expected


@pytest.mark.parametrize(
    "topology, num_cores, message",
    [
        ("v9:4x4", None, "must be one of v2, v3, v4"),
        ("v5e", None, "use v5e:4x4 or set --num_cores"),
        ("v5e:4x4x4", None, "expected a shape such as v5e:4x4"),
        ("v5p:4x4", None, "expected a shape such as v5p:2x2x4"),
        ("v5e:4xx", None, "expected a shape"),
        ("v5e:4x4", 128, "v5e:4x4 has 16 cores, not 128.*--topology=v5e --num_cores=128"),
        ("v5e", 100, "num_cores=100.*power of two.*--topology"),
    ],
)
def test_slices_that_do_not_exist_are_refused(topology, num_cores, message):
    with pytest.raises(ValueError, match=message):
        slices.parse(topology, num_cores)


class LinearCompiler:
    """Stands for the compiler: memory a + b x size, of 16 GiB, and what was compiled."""

    def __init__(self, fixed, per_example, bend=1.0):
        self.fixed, self.per_example, self.bend, self.asked = fixed, per_example, bend, []

    def __call__(self, size):
        self.asked.append(size)
        needed = self.fixed + self.per_example * size**self.bend
        result = {"hbm_bytes": needed * GIB}
        return preflight.Compiled(size, None, result | ({"error": "memory"} if needed > 16 else {}))


def search(compiler, start, **options):
    job = preflight.Preflight(SimpleNamespace(env_dir="x", num_examples=None, num_classes=None),
                              "v5e:4x4", 16)  # fmt: skip
    return job.largest([compiler(start)], compiler, **{"limit": 10_000, **options})


def test_the_largest_batch_is_found_by_a_line_and_confirmed():
    compiler = LinearCompiler(1.0, 0.05)  # 300 examples fit.
    size, compiled = search(compiler, 48)
    assert size == 296 and compiled.fits  # A multiple of 8.
    assert compiler.asked == [48, 24, 296]


def test_a_batch_that_does_not_fit_leads_to_one_that_does():
    compiler = LinearCompiler(1.0, 0.05)
    size, compiled = search(compiler, 384)
    assert size == 296 and compiled.fits
    assert compiler.asked == [384, 192, 96, 296]


def test_a_line_that_promised_too_much_is_corrected():
    compiler = LinearCompiler(1.0, 0.01, bend=1.3)
    size, compiled = search(compiler, 48)
    assert compiled.fits and 48 < size < 300
    assert not compiler(int(size * 1.2)).fits


def test_divisors_only_and_nothing_that_fits():
    assert search(LinearCompiler(1.0, 0.05), 384, limit=384, divides=384)[0] == 192
    assert search(LinearCompiler(17.0, 1.0), 64) is None


def figures(**changes):
    return {
        "recipe": "r", "topology": "v5e:8x16", "device_kind": "TPU v5 lite",
        "precision": "mixed_bfloat16", "num_cores": 128, "batch_per_core": 48, "num_views": 2,
        "image_size": 224, "total_steps": 1000, "num_parameters": 23_000_000, "microbatch": None,
        "fits": True, "hbm_limit": 16 * GIB, "hbm_bytes": 4.5 * GIB, "argument_bytes": GIB,
        "temp_bytes": 3 * GIB, "code_bytes": GIB // 2, "flops": 2.5e12, "bytes_accessed": 4e10,
        "exchanged_bytes": 1.2e8, "num_collectives": 90, "step_seconds": 0.5,
        "examples_per_second": 12_288.0, "stage_hours": 2.0, "compile_seconds": 300.0, **changes,
    }  # fmt: skip


def test_the_report_tells_what_the_compiler_said(capsys):
    options = SimpleNamespace(use_global_batch_norm=True, dataset="d", loss="supcon")
    preflight.print_report(options, figures())
    text = capsys.readouterr().out
    for part in (
        "r on v5e:8x16: 128 cores of TPU v5 lite, mixed_bfloat16, 23.0 M parameters",
        "48 examples x 2 views of 224 px; global batch 6,144",
        "global batch norm, gathered embeddings, gradients: real all-reduces over 128 cores",
        "4.50 of 16 GiB",
        "2.50 TFLOP, 40.0 GB of memory traffic, 120 MB all-reduced in 90 exchanges",
        "at least 0.500 s",
        "12,288 examples/s, at least 2.0 hours for the 1,000 steps",
    ):
        assert part in text
    preflight.print_report(options, figures(fits=False, hbm_bytes=20 * GIB, microbatch=8))
    text = capsys.readouterr().out
    assert "does not fit: HBM per core 20.00 of 16 GiB" in text and "in pieces of 8" in text
    options = SimpleNamespace(use_global_batch_norm=False, dataset="d", loss="cross_entropy")
    preflight.print_report(options, figures())
    assert "exchanged      gradients: real" in capsys.readouterr().out


@pytest.mark.parametrize(
    "optimal, expected",
    [(0.0593, 0.0593), (-93.9407, 0.0593), (-2.94, 0.06), (0.5, None), (-93.5, None)],
)
def test_the_estimate_is_told_apart_from_the_booked_whole_seconds(optimal, expected):
    """2.3 TFLOP and 43 GB take 0.012 and 0.053 s at the rates of v5e."""
    result = {"optimal_seconds": optimal, "flops": 2.3e12, "bytes_accessed": 4.3e10}
    found = slices.step_seconds("v5e:8x16", result)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-6))


def test_the_estimate_of_a_long_step_keeps_its_seconds():
    result = {"optimal_seconds": -96.9, "flops": 1e15, "bytes_accessed": 2e11}  # 5.08, 0.24 s
    assert slices.step_seconds("v5e:8x16", result) == pytest.approx(5.1)


def test_hours_and_examples_follow_from_the_step():
    work = preflight_workload()
    job = SimpleNamespace(
        workload=work, topology="v5e:4x4",
        flags=SimpleNamespace(recipe="r", precision="p", batch_size=100),
    )  # fmt: skip
    result = {"optimal_seconds": -5.75, "flops": 1e12, "bytes_accessed": 2e11, "hbm_bytes": 1}
    found = preflight.summarize(job, preflight.Compiled(1, None, result), "kind")
    assert found["step_seconds"] == 0.25
    assert found["examples_per_second"] == 400 and found["stage_hours"] == 0.5


def preflight_workload():
    return lowering.Workload(16, 1, 2, 224, total_steps=7200, num_parameters=1)


PROGRAM = """
%fused_computation.1 (p: f32[8]) -> f32[8] {
  %all-reduce.9 = f32[1024]{0} all-reduce(%p), to_apply=%add
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %all-reduce.1 = (bf16[4,2]{1,0:T(8,128)S(1)}, f32[3]{0}) all-reduce(%a, %b), to_apply=%add
  %custom-call.2 = u32[]{:T(128)} custom-call(%x), custom_call_target="X64SplitLow"
  ROOT %all-gather-start.3 = s32[] all-gather-start(%c), dimensions={0}
}
"""


def test_a_compiled_program_is_read():
    opcodes, exchanged = compiler_text.read_program(PROGRAM)
    assert opcodes == ["all-reduce", "custom-call", "all-gather-start"]
    assert exchanged == 4 * 2 * 2 + 3 * 4 + 4


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory. Used 23.50G of 15.75G hbm. Exceeded by 7.75G",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (23.50G) exceeds available HBM (15.75G).",
    ],
)
def test_a_compilers_complaint_of_memory_is_read(message):
    assert compiler_text.read_failure(message) == {
        "error": "memory",
        "hbm_bytes": 23.5 * GIB,
        "hbm_limit": 15.75 * GIB,
    }


def test_another_complaint_is_passed_on():
    found = compiler_text.read_failure("INTERNAL: no")
    assert found == {"error": "compiler", "message": "INTERNAL: no"}


@pytest.fixture
def pip(monkeypatch):
    """Counts what would make an environment."""
    calls = []

    def create(folder, **_):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pyvenv.cfg").touch()
        calls.append("venv")

    def run(command, **_):
        calls.append("pip" if "pip" in command else "compile")
        return SimpleNamespace(returncode=0, stdout='noise\n{"ok": 1}\n', stderr="")

    monkeypatch.setattr(compiler_environment.venv, "create", create)
    monkeypatch.setattr(compiler_environment.subprocess, "run", run)
    return calls


def test_the_environment_is_made_once_and_again_for_other_pins(pip, tmp_path, capsys):
    environment = compiler_environment.CompilerEnvironment(tmp_path / "env")
    environment.ensure()
    environment.ensure()
    assert pip == ["venv", "pip"]
    assert str(tmp_path / "env") in capsys.readouterr().out
    (tmp_path / "env" / "requirements.txt").write_text("jax==0.0.1\n")
    environment.ensure()
    assert pip == ["venv", "pip"] * 2
    assert environment.compile("v5e:4x4", 16, b"hlo") == {"ok": 1}


def test_a_folder_of_somebody_else_is_left_alone(pip, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RuntimeError, match="choose another folder with --env_dir"):
        compiler_environment.CompilerEnvironment(tmp_path).ensure()
    assert not pip and (tmp_path / "thesis.tex").exists()


def run_preflight(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "tpu.preflight", *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology=v5e:4x4", "--num_cores=7"], "has 16 cores, not 7"),
        (["--topology=v5e:4x4", "--batch_size=24"], "cannot be shared evenly by 16 cores"),
        (["--topology=v5e:4x4", "--recipe=no_such"], "There is no recipe 'no_such'"),
        ([], "--topology must have a value"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_made(arguments, message):
    code, text = run_preflight("--dataset=digits", "--env_dir=/nowhere/at/all", *arguments)
    assert code and message in text


@pytest.mark.slow
@needs_compiler
def test_the_compiler_fits_a_step_or_says_how_much_would(tmp_path):
    path = tmp_path / "figures.jsonl"
    code, text = run_preflight(*TINY, "--batch_size=32", "--nofind_largest", f"--json={path}")
    assert code == 0 and "compiles       yes, in" in text
    (found,) = map(json.loads, path.read_text().splitlines())
    assert found["batch_per_core"] == 8 and found["num_cores"] == 4
    assert 0 < found["hbm_bytes"] < GIB and 0 < found["step_seconds"] < 0.1
    assert found["num_collectives"] > 3 and found["exchanged_bytes"] > 3e5  # The gradients.


@pytest.mark.slow
@needs_compiler
def test_a_batch_that_does_not_fit_is_reported_with_the_size_that_does():
    code, text = run_preflight(*TINY, "--batch_size=65536", "--image_size=64")
    assert code == 0 and "but does not fit: HBM per core" in text
    assert "largest batch" in text and "the recipe's 16384 per core fits with --microbatch" in text


@pytest.mark.slow
@needs_compiler
def test_the_compiler_names_a_size_that_depends_on_values(tmp_path):
    """What the check of the graph would have caught before."""
    import tensorflow as tf

    @tf.function(jit_compile=True, input_signature=[tf.TensorSpec([8])])
    def step(x):
        return tf.reduce_sum(tf.boolean_mask(x, x > 0.0) ** 2)

    compiler_ir = step.experimental_get_compiler_ir(tf.TensorSpec([8]))
    hlo = compiler_ir(stage="hlo_serialized", platform_name="CPU")
    environment = compiler_environment.CompilerEnvironment(ENVIRONMENT)
    environment.ensure()
    result = environment.compile("v5e:2x2", 4, hlo)
    assert result["error"] == "dynamic" and "boolean_mask/Where" in result["ops"][0]
    assert "these ops make a size depend on values" in preflight.describe_failure(result)
    assert environment.compile("v5e:3x5", 15)["error"] == "topology"
