"""Compiles the training step of a recipe with the TPU compiler, on a machine without a TPU.

    python -m tpu.preflight --recipe=supcon_imagenet_resnet50 --topology=v5e:8x16

Run it in the checkout. TensorFlow traces the whole pretraining step of one core (full-size encoder,
the recipe's local batch, the exchange with the other cores, optimizer) and lowers it to HLO, which
libtpu compiles for the slice. All flags of the command are accepted, such as --batch_size=4096.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys

from absl import app, flags

from supcon_tf.cli import command_line
from tpu import slices
from tpu.compiler_environment import CompilerEnvironment
from tpu.problems import UnfitStep

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # Before TensorFlow is imported, below.
GIB = 2**30
# Number of attempts with smaller batches if the extrapolated batch does not fit.
ATTEMPTS = 4


def define_flags():
    flags.DEFINE_string(
        "topology",
        None,
        "Slice such as v5e:4x4, or a generation such as v5e together with --num_cores.",
    )
    flags.DEFINE_integer(
        "num_cores", None, "Number of cores of the slice. Defaults to that of --topology."
    )
    flags.DEFINE_string(
        "env_dir",
        "~/.cache/supcon_tf/preflight",
        "Directory of the compiler's Python environment, which is created if it is missing.",
    )
    flags.DEFINE_bool(
        "find_largest", True, "Also find the largest batch that fits (2 to 4 more compiles)."
    )
    flags.DEFINE_string("json", None, "Append the results to this file as one line of JSON.")
    flags.DEFINE_integer(
        "num_examples", None, "Number of training examples, for a dataset that is not known here."
    )
    flags.DEFINE_integer(
        "num_classes", None, "Number of classes, for a dataset that is not known here."
    )
    flags.mark_flag_as_required("topology")


@dataclasses.dataclass
class Compiled:
    """The result of compiling a step."""

    batch_per_core: int
    microbatch: int | None
    result: dict

    @property
    def fits(self) -> bool:
        return "error" not in self.result


class Preflight:
    """Lowers and compiles the recipe's step at any batch size for one slice."""

    def __init__(self, flag_values, topology: str, num_cores: int):
        self.flags, self.topology, self.num_cores = flag_values, topology, num_cores
        self.environment = CompilerEnvironment(flag_values.env_dir)
        self.workload = None
        size = flag_values.num_examples, flag_values.num_classes
        self.dataset_size = size if None not in size else None

    def compile(self, batch_per_core: int, microbatch: int | None = None) -> Compiled:
        """Lowers and compiles the step.

        Raises:
            UnfitStep: The step has ops that a TPU does not run.
            ValueError: The compiler failed for another reason than memory.
        """
        from tpu import lowering

        pieces = f" in pieces of {microbatch}" if microbatch else ""
        say(f"Compiling {batch_per_core} examples per core{pieces} for {self.topology} ...")
        lowering.with_batch(self.flags, batch_per_core * self.num_cores, microbatch)
        hlo, workload = lowering.lower(
            self.flags, num_cores=self.num_cores, dataset_size=self.dataset_size
        )
        self.workload = self.workload or workload
        result = self.environment.compile(self.topology, self.num_cores, hlo)
        if result.get("error") not in (None, "memory"):
            raise ValueError(describe_failure(result))
        limit = result.get("hbm_limit", slices.hbm_bytes(self.topology))
        if result["hbm_bytes"] > limit:
            result["error"] = "memory"
        say(
            f"  {'fits' if 'error' not in result else 'does not fit'}: "
            f"{result['hbm_bytes'] / GIB:.2f} GiB ({result['compile_seconds']:.0f} s)"
        )
        return Compiled(batch_per_core, microbatch, result)

    def largest(self, known: list[Compiled], compile_size, limit: int, divides: int | None = None):
        """Finds the largest size that fits, by extrapolation from two sizes that fit.

        Args:
            known: Earlier results of the same kind.
            compile_size: Maps a size to its `Compiled`.
            limit: The largest size to consider.
            divides: Consider only divisors of this number.

        Returns:
            (size, Compiled), or None if not even one example fits.
        """
        fitting = {sizes(c): c for c in known if c.fits}
        at = min([sizes(c) for c in known] or [limit]) // 2
        while len(fitting) < 2 and at >= 1:
            at = floor_size(at, divides)
            compiled = compile_size(at)
            if compiled.fits:
                fitting[at] = compiled
            at //= 2
        if len(fitting) < 2:
            return max(fitting.items(), default=None)
        (low, a), (high, b) = sorted(fitting.items())[-2:]
        slope = (b.result["hbm_bytes"] - a.result["hbm_bytes"]) / (high - low)
        room = max(slices.hbm_bytes(self.topology) - b.result["hbm_bytes"], 1)
        size = min(high + int(room / max(slope, 1.0)), limit)
        for _ in range(ATTEMPTS):
            size = floor_size(size, divides)
            if size <= high:
                break
            compiled = compile_size(size)
            if compiled.fits:
                return size, compiled
            # Interpolate with the memory that the compiler reported for the failed size.
            excess = (compiled.result["hbm_bytes"] - b.result["hbm_bytes"]) / room
            size = min(size - 1, int(size * 0.95), high + int((size - high) / excess))
        return high, b


def sizes(compiled: Compiled) -> int:
    """The size that the search varies: the microbatch if there is one, otherwise the batch."""
    return compiled.microbatch or compiled.batch_per_core


def floor_size(size: int, divides: int | None) -> int:
    """The largest divisor of `divides` up to size, or the largest multiple of 8 (of 1 below 8)."""
    if divides is None:
        return size if size < 8 else size // 8 * 8
    return max(d for d in range(1, max(size, 1) + 1) if divides % d == 0)


def describe_failure(result: dict) -> str:
    """Describes a failed compile in one sentence."""
    if result["error"] == "dynamic":
        places = "\n  ".join(result["ops"])
        return f"does not compile: these ops make a size depend on values:\n  {places}"
    if result["error"] == "topology":
        return f"the compiler does not support this slice: {result['message']}"
    return f"does not compile: {result['message']}"


def run(flag_values) -> dict:
    """Compiles the step, prints the report and returns the results.

    Raises:
        UnfitStep: If the step contains ops that a TPU does not run.
        ValueError: If the flags are invalid or the step does not compile.
    """
    topology, num_cores = slices.parse(flag_values.topology, flag_values.num_cores)
    if flag_values.batch_size % num_cores:
        raise ValueError(
            f"batch_size={flag_values.batch_size} cannot be shared evenly by {num_cores} cores."
        )
    import keras

    keras.config.set_dtype_policy(flag_values.precision)
    preflight = Preflight(flag_values, topology, num_cores)
    preflight.environment.ensure()
    known = preflight.environment.compile(topology, num_cores)
    if "error" in known:
        raise ValueError(describe_failure(known))
    batch = flag_values.batch_size // num_cores
    microbatch = flag_values.microbatch_size
    asked = preflight.compile(batch, microbatch)
    figures = summarize(preflight, asked, known["device_kind"])
    print_report(flag_values, figures)
    if flag_values.find_largest:
        figures |= find_largest(preflight, asked)
    if flag_values.json:
        with open(flag_values.json, "a") as file:
            file.write(json.dumps(figures) + "\n")
    return figures


def find_largest(preflight: Preflight, asked: Compiled) -> dict:
    """Finds the largest batch, and a microbatch if the recipe's batch does not fit."""
    found = {}
    if asked.microbatch is None:
        result = preflight.largest([asked], preflight.compile, limit=2**14)
        found["largest_batch_per_core"] = result[0] if result else 0
        batch = found["largest_batch_per_core"]
        say(
            f"  largest batch  {batch} examples per core, global batch "
            f"{batch * preflight.num_cores:,} (confirmed by compiling it)"
        )
    if not asked.fits:
        batch = asked.batch_per_core
        result = preflight.largest(
            [asked] if asked.microbatch else [],
            lambda size: preflight.compile(batch, size),
            limit=batch,
            divides=batch,
        )
        found["largest_microbatch"] = result[0] if result else 0
        if result:
            say(
                f"  microbatch     the recipe's {batch} per core fits with --microbatch_size="
                f"{result[0]} --nouse_global_batch_norm (confirmed by compiling it)"
            )
        else:
            say("  microbatch     the recipe's batch does not fit on this slice at any size")
    return found


def summarize(preflight: Preflight, compiled: Compiled, device_kind: str) -> dict:
    """Collects the results of one compile."""
    work, result = preflight.workload, compiled.result
    figures = {
        "recipe": preflight.flags.recipe,
        "topology": preflight.topology,
        "device_kind": device_kind,
        "precision": preflight.flags.precision,
        **dataclasses.asdict(work),
        "microbatch": compiled.microbatch,
        "fits": compiled.fits,
        "hbm_limit": slices.hbm_bytes(preflight.topology),
        **result,
    }
    seconds = slices.step_seconds(preflight.topology, result) if compiled.fits else None
    figures["step_seconds"] = seconds
    if seconds:
        figures["examples_per_second"] = preflight.flags.batch_size / seconds
        figures["stage_hours"] = work.total_steps * seconds / 3600
    return figures


def print_report(flag_values, f: dict) -> None:
    """Prints one line per result."""
    pieces = f" in pieces of {f['microbatch']}" if f["microbatch"] else ""
    exchanged = ["global batch norm"] if flag_values.use_global_batch_norm else []
    exchanged += ["gathered embeddings"] if flag_values.loss != "cross_entropy" else []
    say(
        f"\n{f['recipe'] or flag_values.dataset} on {f['topology']}: {f['num_cores']} cores of "
        f"{f['device_kind']}, {f['precision']}, {f['num_parameters'] / 1e6:.1f} M parameters"
    )
    say(
        f"  per core       {f['batch_per_core']} examples x {f['num_views']} views of "
        f"{f['image_size']} px{pieces}; global batch {f['batch_per_core'] * f['num_cores']:,}"
    )
    say(
        f"  exchanged      {', '.join([*exchanged, 'gradients'])}: real all-reduces over "
        f"{f['num_cores']} cores, lowered as TPUStrategy lowers them"
    )
    needed = f"{f['hbm_bytes'] / GIB:.2f} of {f['hbm_limit'] / GIB:.0f} GiB"
    if not f["fits"]:
        say(f"  compiles       yes, but does not fit: HBM per core {needed}")
        return
    say(f"  compiles       yes, in {f['compile_seconds']:.0f} s")
    say(
        f"  HBM per core   {needed}: batch and variables {f['argument_bytes'] / GIB:.2f}, "
        f"activations {f['temp_bytes'] / GIB:.2f}, program {f['code_bytes'] / GIB:.2f}"
    )
    say(
        f"  per step       {f['flops'] / 1e12:.2f} TFLOP, {f['bytes_accessed'] / 1e9:.1f} GB of "
        f"memory traffic, {f['exchanged_bytes'] / 1e6:.0f} MB all-reduced in "
        f"{f['num_collectives']} exchanges"
    )
    if f["step_seconds"] is None:
        say("  step time      no estimate from the compiler")
        return
    say(
        f"  step time      at least {f['step_seconds']:.3f} s: the compiler's own estimate at the "
        "peak rates of the chip, without exchanges between cores and input"
    )
    say(
        f"  so at most     {f['examples_per_second']:,.0f} examples/s, at least "
        f"{f['stage_hours']:.1f} hours for the {f['total_steps']:,} steps of pretraining"
    )


def say(text: str) -> None:
    print(text, flush=True)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument {argv[1]!r}: every flag starts with --.")
    try:
        run(flags.FLAGS)
    except UnfitStep as error:
        say(f"does not compile for a TPU:\n{error}")
        sys.exit(1)
    except (ValueError, RuntimeError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        sys.exit(1)


def parse(argv):
    # The default of run.sh. A recipe or the command line can override it.
    argv = [argv[0], "--precision=mixed_bfloat16", *command_line.expand_recipe(argv)[1:]]
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        print(f"ERROR: {error}\n(See --helpfull for all flags.)", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    command_line.define_flags()
    define_flags()
    app.run(main, flags_parser=parse)
