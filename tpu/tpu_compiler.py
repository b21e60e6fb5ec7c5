"""Compiles HLO for a TPU slice without a TPU; runs in the environment of the preflight.

    python -m tpu.tpu_compiler --hlo=step.hlo --topology=v5e:4x4 --num_cores=16

libtpu contains the compiler that TPU hosts use, and JAX can request a compile-only topology from
it. The last line of the output is a JSON object. Requires jax and libtpu, but not supcon_tf.
"""

from __future__ import annotations

import argparse
import json
import os
import time

# Set before libtpu is loaded: no TPU host can be queried, and several processes may compile.
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
from jax._src.interpreters import mlir
from jax._src.lib import _jax, xla_client
from jax._src.lib.mlir import ir
from jax.experimental import topologies

from tpu.compiler_text import COLLECTIVES, read_failure, read_program

# A v4 chip presents its two cores as one device with the memory of both, as TensorFlow uses it.
CHIP_OPTIONS = {"v4": {"chip_config_name": "megacore"}}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hlo", help="serialized HLO; without it only the topology is looked up")
    parser.add_argument("--topology", required=True)
    parser.add_argument("--num_cores", type=int, default=0)
    args = parser.parse_args()
    try:
        devices = create_devices(args.topology)
    except Exception as error:
        print(json.dumps({"error": "topology", "message": str(error)}))
        return
    result = {"num_devices": len(devices), "device_kind": devices[0].device_kind}
    if args.hlo:
        with open(args.hlo, "rb") as file:
            result |= compile_hlo(file.read(), devices[: args.num_cores or len(devices)])
    print(json.dumps(result))


def create_devices(topology: str) -> list:
    """The compile-only devices of a slice such as "v5e:4x4"."""
    options = CHIP_OPTIONS.get(topology.split(":")[0], {})
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices


def compile_hlo(hlo: bytes, devices: list) -> dict:
    """Compiles one program with a replica per device; returns figures, or what is wrong."""
    started = time.monotonic()
    with mlir.make_ir_context() as context:
        context.allow_unregistered_dialects = True
        module = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(hlo))
        operations = list(_walk(module.operation))
        dynamic = _dynamic_ops(operations)
        if dynamic:
            return {"error": "dynamic", "ops": dynamic}
        _remove_copies(operations)
        number = ir.IntegerType.get_signless(32)
        attributes = module.operation.attributes
        attributes["mhlo.num_replicas"] = ir.IntegerAttr.get(number, len(devices))
        attributes["mhlo.num_partitions"] = ir.IntegerAttr.get(number, 1)
        try:
            executable = devices[0].client.compile(
                module, _jax.DeviceList(tuple(devices)), _options(devices)
            )
        except Exception as error:
            return read_failure(str(error)) | {"compile_seconds": time.monotonic() - started}
    return _figures(executable) | {"compile_seconds": time.monotonic() - started}


def _options(devices):
    options = xla_client.CompileOptions()
    build = options.executable_build_options
    options.num_replicas = build.num_replicas = len(devices)
    options.num_partitions = build.num_partitions = 1
    ids = np.array([[device.id] for device in devices])
    options.device_assignment = xla_client.DeviceAssignment.create(ids)
    build.device_assignment = options.device_assignment
    return options


def _walk(operation):
    for region in operation.regions:
        for block in region:
            for inner in block:
                yield inner.operation
                yield from _walk(inner.operation)


def _dynamic_ops(operations):
    """Locations of the ops that make a size depend on values."""
    return sorted(
        str(op.location)
        for op in operations
        if op.name == "stablehlo.set_dimension_size" and "?" in str(op.results[0].type)
    )


def _remove_copies(operations):
    """Removes copies of a dialect that the compiler does not know; they have no effect."""
    for op in operations:
        if op.name == "mhlo.copy":
            op.results[0].replace_all_uses_with(op.operands[0])
            op.erase()


def _figures(executable):
    memory = executable.get_compiled_memory_stats()
    costs = executable.cost_analysis()
    program = "\n".join(module.to_string() for module in executable.hlo_modules())
    opcodes, exchanged_bytes = read_program(program)
    return {
        "hbm_bytes": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes  # Variables are updated in place.
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "flops": costs["flops"],
        "bytes_accessed": costs["bytes accessed"],
        "optimal_seconds": costs["optimal_seconds"],
        "num_collectives": sum(opcode.removesuffix("-start") in COLLECTIVES for opcode in opcodes),
        "exchanged_bytes": exchanged_bytes,
    }


if __name__ == "__main__":
    main()
