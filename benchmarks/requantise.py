"""Rewrite a GGUF model with its matrices in another type, for comparisons between types.

    python requantise.py IN.gguf OUT.gguf Q8_0

Matrices are dequantised and quantised again, so nothing is gained over the source; the output layer
and embedding change as well. Needs the `gguf` package (the dev extra).
"""

from __future__ import annotations

import sys
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, quants


def main() -> None:
    """Convert as the command line says."""
    source, target, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    dtype = GGMLQuantizationType[name]
    reader = GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(target, architecture)
    copy_metadata(reader, writer)
    writer.add_file_type(LlamaFileType[f"MOSTLY_{name}"])
    for tensor in reader.tensors:
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, tensor.data)
        else:
            values = quants.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, quants.quantize(values, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def copy_metadata(reader: GGUFReader, writer: GGUFWriter) -> None:
    """Copy every key but those that the writer sets itself."""
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub_type=inner)


if __name__ == "__main__":
    main()
