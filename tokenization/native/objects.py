"""Instructions on Python's objects, for kernels that return one and so hold Python's lock: lists of ints, str, bytes.

An object is an int64, its id(), which is its address. Python's own functions do the work, so that an index is checked
and references are counted. Where they fail they return 0, and an exception is raised if the kernel returns it.
"""

from typing import Any

from tokenization.native.calling import LONG, POINTER, api_function
from tokenization.native.instructions import instruction


def _call(builder: Any, name: str, *arguments: Any) -> Any:
    """Calls a function of the C API. Its objects and addresses are int64 here, and pointers there."""
    function = api_function(builder.module, name)
    kinds = function.function_type.args
    converted = [
        builder.inttoptr(value, POINTER) if kind == POINTER else value
        for value, kind in zip(arguments, kinds, strict=True)
    ]
    result = builder.call(function, converted)
    return builder.ptrtoint(result, LONG) if result.type == POINTER else result


@instruction
def number_at(builder: Any, listed: Any, index: Any) -> Any:
    """Returns the number at an index of a list; -1 where there is none, or no whole number below 2**63.

    Whatever is raised then is forgotten.
    """
    item = _call(builder, "PyList_GetItem", listed, index)
    _call(builder, "Py_IncRef", item)  # what is no int may run code of its own, which may empty the list
    number = _call(builder, "PyLong_AsLongLong", item)  # refuses the 0 of an index that is not there
    _call(builder, "Py_DecRef", item)
    with builder.if_then(builder.icmp_signed("==", number, LONG(-1)), likely=False):
        _call(builder, "PyErr_Clear")
    return number


@instruction
def item_at(builder: Any, items: Any, index: Any) -> Any:
    """Returns the object at an index of a tuple."""
    return _call(builder, "PyTuple_GetItem", items, index)


@instruction
def bytes_of(builder: Any, item: Any) -> Any:
    """Returns the address of what a bytes object holds."""
    return _call(builder, "PyBytes_AsString", item)


@instruction
def size_of(builder: Any, item: Any) -> Any:
    """Returns how many bytes a bytes object holds."""
    return _call(builder, "PyBytes_Size", item)


@instruction
def share_item(builder: Any, item: Any, target: Any, index: Any) -> None:
    """Puts an object that others keep at an index of a list."""
    _call(builder, "Py_IncRef", item)
    _call(builder, "PyList_SetItem", target, index, item)


@instruction
def release(builder: Any, item: Any) -> None:
    """Gives up an object."""
    _call(builder, "Py_DecRef", item)


@instruction
def new_list(builder: Any, length: Any) -> Any:
    """Returns a list that must be filled before anyone sees it."""
    return _call(builder, "PyList_New", length)


@instruction
def new_number(builder: Any, value: Any) -> Any:
    """Returns an int."""
    return _call(builder, "PyLong_FromLongLong", value)


@instruction
def new_text(builder: Any, address: Any, length: Any, errors: Any) -> Any:
    """Returns a str of UTF-8. errors: the address of what Python calls the treatment of other bytes, and a 0."""
    return _call(builder, "PyUnicode_DecodeUTF8", address, length, errors)


@instruction
def new_bytes(builder: Any, address: Any, length: Any) -> Any:
    """Returns bytes."""
    return _call(builder, "PyBytes_FromStringAndSize", address, length)
