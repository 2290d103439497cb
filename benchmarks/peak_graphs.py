"""Write the graphs with which `tlc.runtime.peak` measures matrix products.

    python benchmarks/peak_graphs.py

Each is one product of x (M, K) and w (K, N). The weights are an initialiser whose data lies outside of the file, in a
file that does not exist: whoever opens the graph hands them over (SessionOptions.add_external_initializers).
"""

from pathlib import Path

from onnx import TensorProto, helper

from tlc.runtime.peak import WEIGHT_SHAPE

RUNTIME = Path(__file__).resolve().parent.parent / "runtime"


def peak_graph(name: str) -> bytes:
    """Return the graph "fp32" or "int8" as the bytes of a file; opset 13, which ONNX Runtime 1.19 reads."""
    if name == "fp32":
        op_type, left, right, out, width = "MatMul", TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT, 4
    else:
        # uint8 by int8 is what every x86 CPU has its fastest integer kernel for.
        op_type, left, right, out, width = "MatMulInteger", TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, 1
    length, columns = WEIGHT_SHAPE
    weight = TensorProto(name="w", data_type=right, dims=WEIGHT_SHAPE, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "given_at_run_time"), ("offset", "0"), ("length", str(length * columns * width))):
        weight.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", "w"], ["y"])],
        f"peak_{name}",
        [helper.make_tensor_value_info("x", left, ["M", length])],
        [helper.make_tensor_value_info("y", out, ["M", columns])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7, producer_name="tlc")
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def main() -> None:
    """Write both files."""
    for name in ("fp32", "int8"):
        (RUNTIME / f"peak_{name}.onnx").write_bytes(peak_graph(name))


if __name__ == "__main__":
    main()
