"""What a scanner is to the kernels that use one: a head that names its code and says what it needs of a pattern.

A scanner's code is a kernel find_x(position, end, wanted, scanner, starts) that is called by its address. So each is
compiled for those alone whose pattern needs it, and the kernels that count and encode are the same for all patterns.
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from tokenization.native.instructions import instruction

(  # fields of a scanner's head; most are those of patterns.Parts
    CODE,  # address of the kernel
    CLASSES,  # address of the class table
    CONTRACTIONS,
    ANY_LEAD,
    CASED,
    SUFFIX,
    SPACED_NUMBERS,
    DIGITS,  # of a number, at most
    TAIL,  # 0 for none, 1 for line ends, 2 for / as well
    LINES,
    WHOLE_END,
) = SCANNER_FIELDS = range(0, 11 * 8, 8)

NO_LIMIT = 1 << 32  # DIGITS of a pattern that has none

_LONG = ir.IntType(64)


@instruction
def call(builder: Any, code: Any, position: Any, end: Any, wanted: Any, scanner: Any, starts: Any) -> Any:
    """Calls the kernel of five arguments at an address."""
    kind = ir.FunctionType(_LONG, [_LONG] * 5).as_pointer()
    return builder.call(builder.inttoptr(code, kind), [position, end, wanted, scanner, starts])
