"""Qualcomm's system library through ctypes: what a context binary says about itself.

The structures are our own declarations of what the public API documentation describes, in the
layout since core API 2.21 (QNN SDK 2.28). A damaged file can make the library crash: only
`inspect_process.py` uses this module.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Callable, Iterator
from ctypes import POINTER, Structure, Union, c_char, c_char_p, c_float, c_int32, c_uint32, c_uint64
from ctypes import c_void_p as pointer
from typing import Any

from powerserve.core.errors import BackendError

SYSTEM_API_MAJOR = 1
DEFINED = 1
ONE_SCALE = 0
SUCCESS = 0


class _Version(Structure):
    _fields_ = (("major", c_uint32), ("minor", c_uint32), ("patch", c_uint32))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


class _ScaleOffset(Structure):
    _fields_ = (("scale", c_float), ("offset", c_int32))


class _Encoding(Union):
    _fields_ = (("one", _ScaleOffset), ("others", c_uint64 * 4))


class _Quantisation(Structure):
    _fields_ = (("definition", c_uint32), ("kind", c_uint32), ("encoding", _Encoding))


class _Tensor(Structure):
    _fields_ = (
        ("version", c_uint32),
        ("padding", c_uint32),
        ("id", c_uint32),
        ("name", c_char_p),
        ("kind", c_uint32),
        ("format", c_uint32),
        ("data_type", c_uint32),
        ("quantisation", _Quantisation),
        ("rank", c_uint32),
        ("dimensions", POINTER(c_uint32)),
        ("memory", c_uint64 * 3),
        ("of_version_2", c_uint64 * 3),
    )


class _Graph(Structure):
    _fields_ = (
        ("version", c_uint32),
        ("name", c_char_p),
        ("num_inputs", c_uint32),
        ("inputs", POINTER(_Tensor)),
        ("num_outputs", c_uint32),
        ("outputs", POINTER(_Tensor)),
        ("of_later_versions", c_uint64 * 5),
    )


_COMMON_FIELDS = (
    ("version", c_uint32),
    ("padding", c_uint32),
    ("backend_id", c_uint32),
    ("build_id", c_char_p),
    ("core_api", _Version),
    ("backend_api", _Version),
    ("soc_version", c_char_p),
)


class _Info(Structure):
    """What the description of a binary starts with, in each of its forms."""

    _fields_ = _COMMON_FIELDS


class _FirstInfo(Structure):
    """The first form; the second appends to it."""

    _fields_ = (
        *_COMMON_FIELDS,
        ("hardware_blob", _Version),
        ("context_blob", _Version),
        ("hardware_blob_size", c_uint32),
        ("hardware_blob_data", pointer),
        ("context_blob_size", c_uint64),
        ("num_tensors", c_uint32),
        ("tensors", POINTER(_Tensor)),
        ("num_graphs", c_uint32),
        ("graphs", POINTER(_Graph)),
    )


class _ThirdInfo(Structure):
    _fields_ = (
        *_COMMON_FIELDS,
        ("context_blob", _Version),
        ("context_blob_size", c_uint64),
        ("num_tensors", c_uint32),
        ("tensors", POINTER(_Tensor)),
        ("num_graphs", c_uint32),
        ("graphs", POINTER(_Graph)),
        ("platform", pointer),
        ("metadata_size", c_uint32),
        ("metadata", pointer),
        ("soc_model", c_uint32),
    )


_FORMS: dict[int, type[_FirstInfo | _ThirdInfo]] = {1: _FirstInfo, 2: _FirstInfo, 3: _ThirdInfo}


class _Interface(Structure):
    _fields_ = (
        ("id", c_uint32),
        ("name", c_char_p),
        ("api", _Version),
        ("context_create", pointer),
        ("context_get_binary_info", pointer),
    )


def describe_binary(library: str, binary: mmap.mmap) -> dict[str, Any]:
    """What the system library `library` reads in `binary`, as the fields of `BinaryInfo`.

    The memory must be writable (`ACCESS_COPY`): the library does not promise to leave it alone.

    Raises:
        BackendError: the library is missing or of another major version, or the bytes are no
            context binary.
    """
    interface = _interface(library)
    context, info, info_size = pointer(), POINTER(_Info)(), c_uint64()
    buffer = (c_char * len(binary)).from_buffer(binary)
    create = _function(interface.context_create, POINTER(pointer))
    if create(ctypes.byref(context)) != SUCCESS:
        raise BackendError(f"{library} cannot describe binaries")
    get_info = _function(
        interface.context_get_binary_info,
        *(pointer, pointer, c_uint64, POINTER(POINTER(_Info)), POINTER(c_uint64)),
    )
    error = get_info(context, buffer, len(binary), ctypes.byref(info), ctypes.byref(info_size))
    if error != SUCCESS or not info:
        raise BackendError("it is no context binary of QNN, or a damaged one")
    return _described(info)


def _interface(library: str) -> _Interface:
    try:
        get_providers = ctypes.CDLL(library).QnnSystemInterface_getProviders
    except (OSError, AttributeError) as error:
        raise BackendError(f"{library} cannot be used: {error}") from None
    providers, count = POINTER(POINTER(_Interface))(), c_uint32()
    if get_providers(ctypes.byref(providers), ctypes.byref(count)) != SUCCESS or not count.value:
        raise BackendError(f"{library} offers no interface")
    interface: _Interface = providers[0].contents
    if interface.api.major != SYSTEM_API_MAJOR:
        raise BackendError(
            f"{library} speaks version {interface.api} of its interface; "
            f"{SYSTEM_API_MAJOR}.x is needed"
        )
    return interface


def _function(address: int, *arguments: Any) -> Callable[..., int]:
    return ctypes.CFUNCTYPE(c_uint64, *arguments)(address)


def _described(info: Any) -> dict[str, Any]:
    common = info.contents
    if common.version not in _FORMS:
        raise BackendError(f"its description has the unknown form {common.version}")
    full = ctypes.cast(info, POINTER(_FORMS[common.version])).contents
    return {
        "build_id": _text(full.build_id),
        "core_api": str(full.core_api),
        "backend_api": str(full.backend_api),
        "soc_model": getattr(full, "soc_model", 0),
        "graphs": [_graph(full.graphs[index]) for index in range(full.num_graphs)],
    }


def _graph(graph: _Graph) -> dict[str, Any]:
    return {
        "name": _text(graph.name),
        "inputs": list(_tensors(graph.inputs, graph.num_inputs)),
        "outputs": list(_tensors(graph.outputs, graph.num_outputs)),
    }


def _tensors(tensors: Any, count: int) -> Iterator[dict[str, Any]]:
    for tensor in tensors[:count]:
        fields = {
            "name": _text(tensor.name),
            "data_type": tensor.data_type,
            "shape": tensor.dimensions[: tensor.rank],
        }
        quantisation = tensor.quantisation
        one = quantisation.encoding.one
        has_one = quantisation.definition == DEFINED and quantisation.kind == ONE_SCALE
        if has_one and math.isfinite(one.scale):  # in a damaged file it may be anything
            fields |= {"scale": one.scale, "offset": one.offset}
        yield fields


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")
