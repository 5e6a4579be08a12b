"""The formats: how a part is written in each, and how the file is run."""

import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from ..checkpoints import quiet
from ..errors import LearngeneError, first_line, require
from .parts import PICTURES, TEXTS, TOKENS, Part

Run = Callable[[dict[str, Tensor]], dict[str, Tensor]]
_MOST = {PICTURES: 64, TEXTS: 64, TOKENS: 512}  # where a runtime plans its memory for the greatest input
_PROTOBUF_LIMIT = 2**31 - 2**20  # bytes: an ONNX file holds no more
_NOISY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torchao", "root", "openvino")


@dataclass(frozen=True)
class Format:
    """A format of `transformers.exporters`.

    Args:
        suffix: of the file.
        module, exporter, config: transformers' module and its two classes.
        packages: what it needs beside torch and transformers; pip calls them so too.
        extra: whether this package's extra brings them.
        library: what the Hub calls it.
    """

    suffix: str
    module: str
    exporter: str
    config: str
    packages: tuple[str, ...]
    extra: bool
    library: str


FORMATS = {
    "onnx": Format(
        ".onnx", "exporter_onnx", "OnnxExporter", "OnnxConfig", ("onnx", "onnxscript", "onnxruntime"), True, "onnx"
    ),
    "torch": Format(".pt2", "exporter_dynamo", "DynamoExporter", "DynamoConfig", (), True, "pytorch"),
    "executorch": Format(
        ".pte", "exporter_executorch", "ExecutorchExporter", "ExecutorchConfig", ("executorch",), False, "executorch"
    ),
    "openvino": Format(
        ".xml", "exporter_openvino", "OpenVINOExporter", "OpenVINOConfig", ("openvino",), False, "openvino"
    ),
}


def check_format(name: str) -> Format:
    """Return a format, after seeing that its packages are there.

    Raises:
        LearngeneError: there is no such format, or a package is missing, with the command that installs it.
    """
    if name not in FORMATS:
        raise LearngeneError(f"there is no format {name!r}: choose from {', '.join(FORMATS)}")
    chosen = FORMATS[name]
    for package in chosen.packages:
        if chosen.extra:
            require(package, "export")
            continue
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != package:
                raise
            raise LearngeneError(
                f"The format {name} needs {package}, which is not installed: pip install {package} brings it"
            ) from None
    try:
        import_module("transformers.exporters")
    except ImportError:
        raise LearngeneError(
            f"exporting needs transformers 5.24 or later, and {version('transformers')} is installed"
        ) from None
    return chosen


def write_part(name: str, part: Part, sample: dict[str, Tensor], folder: Path, longest: int | None) -> list[Path]:
    """Write a part to a folder in one format; return the file, and what has to lie beside it.

    Args:
        sample: inputs to trace with, two or more along each axis that may be of any length.
        longest: most tokens of a text; None where nothing sets a limit.
    """
    _, program = _export(name, part, sample, longest)
    return _save(name, program, folder / f"{part.stem}{FORMATS[name].suffix}")


def write_quantised(
    part: Part, sample: dict[str, Tensor], float_file: Path, calibration: Iterable[dict[str, Tensor]] | None = None
) -> list[Path]:
    """Write an ONNX file's int8 version beside it: matrices in int8, and what they are multiplied with.

    Args:
        calibration: inputs to find the ranges of activations with, once for all; None quantises them as they come.
    """
    import onnx_ir
    from onnxruntime.quantization import QuantType

    exporters: Any = import_module("transformers.exporters")
    settings: dict[str, Any] = {
        "op_types_to_quantize": ["MatMul", "Gemm"],
        "weight_type": QuantType.QInt8,
        "per_channel": True,
    }
    if calibration is None:
        config = exporters.OnnxRuntimeDynamicConfig(**settings)
    else:
        config = exporters.OnnxRuntimeStaticConfig(activation_type=QuantType.QUInt8, **settings)
    with silence():
        quantizer = exporters.OnnxRuntimeQuantizer(config, calibration_dataset=calibration)
        quantised = quantizer.quantize(onnx_ir.load(str(float_file)), sample, exporters.ExportFormat.ONNX)
    return _save("onnx", quantised, float_file.with_name(f"{part.stem}_int8.onnx"))


def open_file(name: str, path: Path, part: Part) -> Run:
    """Open a written file in its own runtime, on the CPU with torch's number of threads."""
    return _OPEN[name](path, part)


def _export(name: str, part: Part, sample: dict[str, Tensor], longest: int | None) -> tuple[Any, Any]:
    chosen = FORMATS[name]
    module: Any = import_module(f"transformers.exporters.{chosen.module}")
    shapes = _dynamic_shapes(part, longest, bounded=name == "executorch")
    config = getattr(module, chosen.config)(dynamic=True, dynamic_shapes=shapes)
    try:
        with silence():
            exported = getattr(module, chosen.exporter)().export(part.module, sample, config)
    except LearngeneError:
        raise
    except Exception as error:  # tracers raise nothing narrower
        kind = type(getattr(part.module, "model", part.module)).__name__
        raise LearngeneError(
            f"the {part.kind} part of this {kind} cannot be exported to {name}: {first_line(error)}"
        ) from error
    if name == "onnx":
        _name_axes(exported.program, part)
    return exported, exported.program


def _dynamic_shapes(part: Part, longest: int | None, bounded: bool) -> dict[str, dict[int, Any]]:
    """torch.export's word for axes of any length: the same name is the same length."""
    dims: dict[str, Any] = {}
    for axis in (PICTURES, TEXTS, TOKENS):
        most = longest if axis == TOKENS else None
        most = most or (_MOST[axis] if bounded else None)
        dims[axis] = Dim(axis) if most is None else Dim(axis, max=most)
    return {
        name: {index: dims[axis] for index, axis in enumerate(part.axes[name]) if isinstance(axis, str)}
        for name in part.inputs
    }


def _name_axes(program: Any, part: Part) -> None:
    """Name an ONNX graph's free axes as the JSON does, in place of the tracer's own names."""
    import onnx_ir

    for value in (*program.graph.inputs, *program.graph.outputs):
        axes = part.axes[value.name]
        value.shape = onnx_ir.Shape(list(axes))


def _save(name: str, program: Any, path: Path) -> list[Path]:
    if name == "torch":
        torch.export.save(program, path)
        return [path]
    if name == "executorch":
        path.write_bytes(program.buffer)
        return [path]
    if name == "openvino":
        import_module("openvino").save_model(program, str(path), compress_to_fp16=False)
        return [path, path.with_suffix(".bin")]
    import onnx_ir

    size = sum(
        value.const_value.nbytes for value in program.graph.initializers.values() if value.const_value is not None
    )
    if size < _PROTOBUF_LIMIT:
        onnx_ir.external_data.load_to_model(program)
        onnx_ir.save(program, str(path))
        return [path]
    data = path.with_name(f"{path.name}.data")
    onnx_ir.save(program, str(path), external_data=data.name)
    return [path, data]


def _open_onnx(path: Path, part: Part) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        feed = {name: inputs[name].numpy() for name in part.inputs}
        return {name: torch.from_numpy(value) for name, value in zip(names, session.run(None, feed), strict=True)}

    return run


def _open_torch(path: Path, part: Part) -> Run:
    program = torch.export.load(path).module()
    return lambda inputs: program(**{name: inputs[name] for name in part.inputs})


def _open_executorch(path: Path, part: Part) -> Run:
    runtime: Any = import_module("executorch.runtime")
    program = runtime.Runtime.get().load_program(path)
    method = program.load_method("forward")

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        values = method.execute([inputs[name].contiguous() for name in part.inputs])
        return {name: value.clone() for name, value in zip(part.outputs, values, strict=True)}

    return run


def _open_openvino(path: Path, part: Part) -> Run:
    openvino: Any = import_module("openvino")
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        values = compiled({name: inputs[name].numpy() for name in part.inputs})
        return {name: torch.from_numpy(values[name].copy()) for name in part.outputs}

    return run


_OPEN = {"onnx": _open_onnx, "torch": _open_torch, "executorch": _open_executorch, "openvino": _open_openvino}


@contextmanager
def silence() -> Iterator[None]:
    """Keep exporters' notices, progress and warnings from the terminal: what they mean is said in our own words."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with quiet(), warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def versions_of(name: str) -> dict[str, str]:
    """The versions that made a file."""
    return {package: version(package) for package in ("mmlg_hf", "transformers", "torch", *FORMATS[name].packages)}
