"""Translates kernels from Python to LLVM's intermediate representation.

A kernel computes with int64 alone, in a small part of Python:

    values       parameters, local variables, and whole numbers that are global; comparisons, which are 0 or 1
    operators    + - * // & | ^ << >> ~ - not and or, comparisons, `a if condition else b`; sums wrap around
    statements   assignments, if, while, for ... in range(...), break, continue, return; of one value, or of a tuple
    calls        other kernels, instructions (instructions.py), min, max; f(...)[0] is the first of several results

Anything else is refused by its line. Shifting by less than 0 or more than 63 bits, and dividing by 0, are undefined.
"""

import ast
from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from tokenization.native.calling import add_call
from tokenization.native.source import BIT, LONG, ONE, ZERO, Instruction, Source

_ARITHMETIC = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.LShift: "shl", ast.RShift: "ashr"}
_ARITHMETIC |= {ast.BitAnd: "and_", ast.BitOr: "or_", ast.BitXor: "xor"}
_COMPARISONS = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}


def translate(source: Source) -> Any:
    """Returns a module with a kernel, "run", and all that it calls; "call" is the kernel for Python (`add_call`)."""
    module = ir.Module()
    functions: dict[str, Any] = {}
    waiting: list[Source] = []

    def function_of(called: Source) -> Any:
        if called.name not in functions:
            functions[called.name] = ir.Function(module, called.type(), called.name)
            functions[called.name].linkage = "internal"
            if called.is_rare:
                functions[called.name].attributes.add("noinline")
            waiting.append(called)
        return functions[called.name]

    kernel = function_of(source)
    run = ir.Function(module, source.type(), "run")
    builder = ir.IRBuilder(run.append_basic_block())
    result = builder.call(kernel, run.args)
    builder.ret(result) if source.num_results else builder.ret_void()
    add_call(module, kernel, source.returns_object)
    while waiting:
        called = waiting.pop()
        Body(called, functions[called.name], function_of).translate()
    return module


class Body:
    """The translation of one function's statements. Local variables live on the stack, from where LLVM takes them."""

    def __init__(self, source: Source, function: Any, function_of: Callable[[Source], Any]) -> None:
        self.source, self.function, self.function_of = source, function, function_of
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self.loops: list[tuple[Any, Any]] = []  # where continue and break lead
        names = [node for node in ast.walk(source.definition) if isinstance(node, ast.Name)]
        local = [*source.parameters, *(node.id for node in names if isinstance(node.ctx, ast.Store))]
        self.variables = {name: self.builder.alloca(LONG, name=name) for name in dict.fromkeys(local)}
        for name, value in zip(source.parameters, function.args, strict=True):
            self.builder.store(value, self.variables[name])

    def translate(self) -> None:
        """Translates the whole function."""
        self.block(self.source.definition.body)
        if not self.builder.block.is_terminated:
            if self.source.num_results == 0:
                self.builder.ret_void()
            else:
                self.builder.unreachable()  # behind `while True`

    def refuse(self, node: ast.AST) -> TypeError:
        """Returns the error for something that no kernel may have."""
        code = self.source.function.__code__
        line = code.co_firstlineno + getattr(node, "lineno", 1) - 1
        return TypeError(f"{code.co_filename}, line {line}: no kernel may have `{ast.unparse(node)}`")

    # --- statements ---

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            if self.builder.block.is_terminated:
                return
            getattr(self, f"do_{type(statement).__name__}", self.do_other)(statement)

    def do_other(self, node: ast.stmt) -> None:
        raise self.refuse(node)

    def do_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.any_value(node.value)

    def do_Assign(self, node: ast.Assign) -> None:
        value = self.any_value(node.value)
        for target in node.targets:
            self.assign(target, value)

    def assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self.builder.store(value, self.variables[target.id])
        elif isinstance(target, ast.Tuple):
            for index, element in enumerate(target.elts):
                self.assign(element, self.builder.extract_value(value, index))
        else:
            raise self.refuse(target)

    def do_AugAssign(self, node: ast.AugAssign) -> None:
        assert isinstance(node.target, ast.Name)
        old = self.builder.load(self.variables[node.target.id])
        self.assign(node.target, self.arithmetic(node, node.op, old, self.value(node.value)))

    def do_Return(self, node: ast.Return) -> None:
        if node.value is None:
            self.builder.ret_void()
        else:
            self.builder.ret(self.any_value(node.value))

    def do_If(self, node: ast.If) -> None:
        then, otherwise, behind = (self.function.append_basic_block() for _ in range(3))
        self.builder.cbranch(self.condition(node.test), then, otherwise)
        for start, statements in ((then, node.body), (otherwise, node.orelse)):
            self.builder.position_at_end(start)
            self.block(statements)
            self.go_to(behind)
        self.builder.position_at_end(behind)

    def go_to(self, block: Any) -> None:
        if not self.builder.block.is_terminated:
            self.builder.branch(block)

    def do_While(self, node: ast.While) -> None:
        test, body, behind = (self.function.append_basic_block() for _ in range(3))
        self.go_to(test)
        self.builder.position_at_end(test)
        self.builder.cbranch(self.condition(node.test), body, behind)
        self.loop(body, node.body, test, behind)

    def loop(self, start: Any, statements: list[ast.stmt], again: Any, behind: Any) -> None:
        self.builder.position_at_end(start)
        self.loops.append((again, behind))
        self.block(statements)
        self.loops.pop()
        self.go_to(again)
        self.builder.position_at_end(behind)

    def do_For(self, node: ast.For) -> None:
        call = node.iter
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "range"):
            raise self.refuse(node.iter)
        bounds = [self.value(argument) for argument in call.args]
        start, end = (ZERO, bounds[0]) if len(bounds) == 1 else bounds[:2]
        step = bounds[2] if len(bounds) == 3 else ONE
        with self.builder.goto_entry_block():
            counter = self.builder.alloca(LONG)
        self.builder.store(start, counter)
        test, body, again, behind = (self.function.append_basic_block() for _ in range(4))
        self.go_to(test)
        self.builder.position_at_end(test)
        self.builder.cbranch(self.builder.icmp_signed("<", self.builder.load(counter), end), body, behind)
        self.builder.position_at_end(body)
        self.assign(node.target, self.builder.load(counter))
        self.loop(body, node.body, again, behind)
        self.builder.position_at_end(again)
        self.builder.store(self.builder.add(self.builder.load(counter), step, flags=("nsw",)), counter)
        self.builder.branch(test)
        self.builder.position_at_end(behind)

    def do_Break(self, node: ast.Break) -> None:
        self.builder.branch(self.loops[-1][1])

    def do_Continue(self, node: ast.Continue) -> None:
        self.builder.branch(self.loops[-1][0])

    # --- values ---

    def value(self, node: ast.expr) -> Any:
        """Returns the int64 of an expression."""
        value = self.any_value(node)
        if value is None or value.type != LONG:
            raise self.refuse(node)
        return value

    def any_value(self, node: ast.expr) -> Any:
        """Returns what an expression gives: an int64, a tuple of them, or None."""
        value = getattr(self, f"of_{type(node).__name__}", self.of_other)(node)
        return self.builder.zext(value, LONG) if value is not None and value.type == BIT else value

    def condition(self, node: ast.expr) -> Any:
        """Returns the bit that says whether an expression is true."""
        value = getattr(self, f"of_{type(node).__name__}", self.of_other)(node)
        return value if value.type == BIT else self.builder.icmp_signed("!=", value, ZERO)

    def of_other(self, node: ast.expr) -> Any:
        raise self.refuse(node)

    def of_Constant(self, node: ast.Constant) -> Any:
        if not isinstance(node.value, int):
            raise self.refuse(node)
        return LONG(int(node.value))

    def of_Name(self, node: ast.Name) -> Any:
        if node.id in self.variables:
            return self.builder.load(self.variables[node.id])
        known = self.source.named(node.id)
        if not isinstance(known, int):
            raise self.refuse(node)
        return LONG(int(known))

    def of_Tuple(self, node: ast.Tuple) -> Any:
        values = [self.value(element) for element in node.elts]
        result = ir.Constant(ir.LiteralStructType([LONG] * len(values)), ir.Undefined)
        for index, value in enumerate(values):
            result = self.builder.insert_value(result, value, index)
        return result

    def of_Subscript(self, node: ast.Subscript) -> Any:
        """Picks one value of a tuple."""
        if not isinstance(node.slice, ast.Constant):
            raise self.refuse(node)
        return self.builder.extract_value(self.any_value(node.value), node.slice.value)

    def of_BinOp(self, node: ast.BinOp) -> Any:
        return self.arithmetic(node, node.op, self.value(node.left), self.value(node.right))

    def arithmetic(self, node: ast.AST, operator: ast.operator, left: Any, right: Any) -> Any:
        if isinstance(operator, ast.FloorDiv):
            return self.floor_division(left, right)
        if type(operator) not in _ARITHMETIC:
            raise self.refuse(node)
        return getattr(self.builder, _ARITHMETIC[type(operator)])(left, right)

    def floor_division(self, left: Any, right: Any) -> Any:
        """Divides as Python does, towards the smaller number; the processor divides towards 0."""
        quotient, rest = self.builder.sdiv(left, right), self.builder.srem(left, right)
        inexact = self.builder.icmp_signed("!=", rest, ZERO)
        negative = self.builder.icmp_signed("<", self.builder.xor(rest, right), ZERO)
        return self.builder.sub(quotient, self.builder.zext(self.builder.and_(inexact, negative), LONG))

    def of_UnaryOp(self, node: ast.UnaryOp) -> Any:
        if isinstance(node.op, ast.Not):
            return self.builder.not_(self.condition(node.operand))
        if not isinstance(node.op, ast.USub | ast.Invert):
            raise self.refuse(node)
        value = self.value(node.operand)
        return self.builder.neg(value) if isinstance(node.op, ast.USub) else self.builder.not_(value)

    def of_Compare(self, node: ast.Compare) -> Any:
        if len(node.ops) != 1 or type(node.ops[0]) not in _COMPARISONS:
            raise self.refuse(node)
        left, right = self.value(node.left), self.value(node.comparators[0])
        return self.builder.icmp_signed(_COMPARISONS[type(node.ops[0])], left, right)

    def of_BoolOp(self, node: ast.BoolOp) -> Any:
        """Evaluates one operand after the other until the result, 0 or 1, is certain."""
        decisive, behind = BIT(isinstance(node.op, ast.Or)), self.function.append_basic_block()
        incoming = []
        for operand in node.values[:-1]:
            bit, following = self.condition(operand), self.function.append_basic_block()
            incoming.append((decisive, self.builder.block))
            blocks = (behind, following) if isinstance(node.op, ast.Or) else (following, behind)
            self.builder.cbranch(bit, *blocks)
            self.builder.position_at_end(following)
        incoming.append((self.condition(node.values[-1]), self.builder.block))
        self.builder.branch(behind)
        return self.merge(BIT, incoming, behind)

    def of_IfExp(self, node: ast.IfExp) -> Any:
        then, otherwise, behind = (self.function.append_basic_block() for _ in range(3))
        self.builder.cbranch(self.condition(node.test), then, otherwise)
        incoming = []
        for start, expression in ((then, node.body), (otherwise, node.orelse)):
            self.builder.position_at_end(start)
            incoming.append((self.any_value(expression), self.builder.block))
            self.builder.branch(behind)
        return self.merge(incoming[0][0].type, incoming, behind)

    def merge(self, kind: Any, incoming: list[tuple[Any, Any]], behind: Any) -> Any:
        """Goes on in the block `behind`, with the value of whichever block led there."""
        self.builder.position_at_end(behind)
        result = self.builder.phi(kind)
        for value, block in incoming:
            result.add_incoming(value, block)
        return result

    def of_Call(self, node: ast.Call) -> Any:
        arguments = [self.value(argument) for argument in node.args]
        called = self.source.named(node.func.id) if isinstance(node.func, ast.Name) else None
        if isinstance(called, Instruction):
            return called.emit(self.builder, *arguments)
        if isinstance(source := getattr(called, "source", None), Source):
            return self.builder.call(self.function_of(source), arguments)
        if isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
            least = arguments[0]
            for other in arguments[1:]:
                better = self.builder.icmp_signed("<" if node.func.id == "min" else ">", other, least)
                least = self.builder.select(better, other, least)
            return least
        raise self.refuse(node)
