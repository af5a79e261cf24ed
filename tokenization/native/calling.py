"""How Python calls a kernel: as a built-in function, so that a call costs a fraction of a microsecond.

    call(self, arguments, count)    converts Python's numbers to int64, releases Python's lock, runs the kernel, takes
                                    the lock again, and returns a number, or a tuple of the results

A kernel that returns an object of Python's (objects.py) runs with the lock held. `call` is made of LLVM's instructions
(`add_call`) and becomes a function of Python's by the description that its C API wants (`built_in`).
"""

import ctypes
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
from llvmlite import ir

LONG, WORD, POINTER = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()
METH_FASTCALL = 0x80

# The functions of Python's C API that `call` and objects.py use, with their results and parameters.
API = {
    "PyBytes_AsString": (POINTER, [POINTER]),
    "PyBytes_FromStringAndSize": (POINTER, [POINTER, LONG]),
    "PyBytes_Size": (LONG, [POINTER]),
    "PyErr_BadArgument": (WORD, []),
    "PyErr_Clear": (ir.VoidType(), []),
    "PyErr_Occurred": (POINTER, []),
    "PyEval_RestoreThread": (ir.VoidType(), [POINTER]),
    "PyEval_SaveThread": (POINTER, []),
    "PyList_GetItem": (POINTER, [POINTER, LONG]),
    "PyList_New": (POINTER, [LONG]),
    "PyList_SetItem": (WORD, [POINTER, LONG, POINTER]),
    "PyLong_AsLongLong": (LONG, [POINTER]),
    "PyLong_FromLongLong": (POINTER, [LONG]),
    "PyTuple_GetItem": (POINTER, [POINTER, LONG]),
    "PyTuple_New": (POINTER, [LONG]),
    "PyTuple_SetItem": (WORD, [POINTER, LONG, POINTER]),
    "PyUnicode_DecodeUTF8": (POINTER, [POINTER, LONG, POINTER]),
    "Py_DecRef": (ir.VoidType(), [POINTER]),
    "Py_IncRef": (ir.VoidType(), [POINTER]),
}


class _Method(ctypes.Structure):
    """PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("code", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


def api_function(module: Any, name: str) -> Any:
    """Returns the declaration in a module of one of the functions of Python's C API."""
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(*API[name]), name)


def add_call(module: Any, kernel: Any, returns_object: bool) -> None:
    """Adds the function "call" to a module, by which Python calls a kernel of int64.

    returns_object: whether its result is the address of an object, or 0 where an exception is raised.
    """
    api = {name: api_function(module, name) for name in API}
    call = ir.Function(module, ir.FunctionType(POINTER, [POINTER, POINTER.as_pointer(), LONG]), "call")
    _, arguments, count = call.args
    convert, refuse, run = (call.append_basic_block(name) for name in ("", "refuse", "run"))
    builder = ir.IRBuilder(convert)
    with builder.if_then(builder.icmp_signed("!=", count, LONG(len(kernel.args))), likely=False):
        builder.call(api["PyErr_BadArgument"], [])
        builder.branch(refuse)
    values = []
    for index in range(len(kernel.args)):
        argument = builder.load(builder.gep(arguments, [LONG(index)]))
        values.append(builder.call(api["PyLong_AsLongLong"], [argument]))
    failed = builder.icmp_unsigned("!=", builder.call(api["PyErr_Occurred"], []), POINTER(None))
    builder.cbranch(failed, refuse, run)

    builder.position_at_end(refuse)
    builder.ret(POINTER(None))

    builder.position_at_end(run)
    if returns_object:
        builder.ret(builder.inttoptr(builder.call(kernel, values), POINTER))
        return
    thread = builder.call(api["PyEval_SaveThread"], [])
    result = builder.call(kernel, values)
    builder.call(api["PyEval_RestoreThread"], [thread])
    if result.type == LONG:
        builder.ret(builder.call(api["PyLong_FromLongLong"], [result]))
        return
    elements = getattr(result.type, "elements", ())  # of a tuple; an empty one stands for None
    made = builder.call(api["PyTuple_New"], [LONG(len(elements))])
    for index in range(len(elements)):
        number = builder.call(api["PyLong_FromLongLong"], [builder.extract_value(result, index)])
        builder.call(api["PyTuple_SetItem"], [made, LONG(index), number])
    builder.ret(made)


def add_symbols() -> None:
    """Tells LLVM where the functions of Python's C API are."""
    for name in API:
        llvm.add_symbol(name, ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value)


def built_in(name: str, code: int) -> tuple[Any, Any]:
    """Returns (a function of Python's that runs the code of "call" at an address, what must live as long)."""
    method = _Method(name.encode(), code, METH_FASTCALL, None)
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype, make.argtypes = ctypes.py_object, (ctypes.POINTER(_Method), ctypes.c_void_p, ctypes.c_void_p)
    return make(ctypes.byref(method), None, None), method
