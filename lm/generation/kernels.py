"""The kernel that carries out the jobs of a forward pass: products, with what precedes each, and attention.

    product     y = W f(x), or y += W f(x); f is the identity, an RMSNorm, or SwiGLU's gate
    attention   rotates one token's query and key, appends key and value to the cache, and attends
    addition    y += x

All threads of a team go through the jobs together: each computes its share of the outputs, or of the heads, and waits
for the others before the next job. A job and a program are rows of int64, whose fields are named here by their offsets
in bytes; program.py fills them. int8 weights multiply x rounded to 16 bits: a sum of whole numbers, which is exact, is
multiplied by the scales of the weights' row and of x.
"""

from lm.generation import vectors, whole_numbers
from lm.generation.vectors import (
    add,
    add_floats,
    dot_bfloat16,
    dot_float32,
    gate,
    inverse,
    inverse_root_of_mean,
    mix,
    multiply_floats,
    rotate,
    scale,
    softmax,
)
from lm.generation.whole_numbers import INT8, dot_int8, round_to_16_bits
from lm.machine.kernels import call_function, compiled
from lm.machine.lanes import BFLOAT16, LANES
from tokenization.native.instructions import copy_bytes, load32, load64, store32

# A program; addresses unless stated otherwise. SCRATCH_SIZE: bytes for each thread. The last three are C functions.
PROGRAM = JOBS, NUM_JOBS, SCRATCH, SCRATCH_SIZE, THREAD_NUMBER, NUM_THREADS, BARRIER = range(0, 56, 8)

# A job. X: (rows, inputs), Y: (rows, outputs), EPS: a float. For attention, OUTPUTS is the number of heads and INPUTS
# their width d_k, X holds q, k and v; KEYS and VALUES are (heads, CONTEXT, d_k), FACTOR is the float 1 / sqrt(d_k).
JOB = range(0, 160, 8)
KIND, X, Y, ROWS, INPUTS, OUTPUTS, WEIGHTS, SIZE, SCALES, ADDED, BEFORE, GAINS, EPS = JOB[:13]
KEYS, VALUES, CONTEXT, POSITION, FACTOR, COSINES, SINES = JOB[13:]
Q_GAINS, K_GAINS = WEIGHTS, SCALES  # of attention with normalized queries and keys; otherwise 0
JOB_BYTES = 8 * len(JOB)
PRODUCT, ATTENTION, ADDITION = range(3)
NOTHING, NORM, GATE = range(3)
MINUS_INFINITY = 0xFF800000


@compiled(__file__, vectors.__file__, whole_numbers.__file__)
def run_jobs(program: int) -> None:
    """Carries out a thread's share of all jobs."""
    thread = 0
    threads = 1
    if load64(program + NUM_THREADS):
        thread = call_function(load64(program + THREAD_NUMBER))
        threads = call_function(load64(program + NUM_THREADS))
    scratch = load64(program + SCRATCH) + thread * load64(program + SCRATCH_SIZE)
    job = load64(program + JOBS)
    for _ in range(load64(program + NUM_JOBS)):
        kind = load64(job + KIND)
        if kind == PRODUCT:
            multiply(job, scratch, thread, threads)
        elif kind == ATTENTION:
            attend(job, scratch, thread, threads)
        elif thread == 0:
            add(load64(job + X), load64(job + Y), load64(job + INPUTS))
        if threads > 1:
            call_function(load64(program + BARRIER))
        job += JOB_BYTES


@compiled(__file__, vectors.__file__, whole_numbers.__file__)
def multiply(job: int, scratch: int, thread: int, threads: int) -> None:
    """Computes a thread's share of a product, in one pass over its weights."""
    rows = load64(job + ROWS)
    inputs = load64(job + INPUTS)
    outputs = load64(job + OUTPUTS)
    x = prepare(job, scratch, inputs)
    size = load64(job + SIZE)
    first = outputs * thread // threads
    behind = outputs * (thread + 1) // threads
    if size == INT8:
        multiply_int8(job, x, scratch + 4 * (inputs + LANES), first, behind)
    else:
        product = scratch + 4 * inputs
        for output in range(first, behind):
            weights = load64(job + WEIGHTS) + output * inputs * size
            for row in range(rows):
                if size == BFLOAT16:
                    dot_bfloat16(weights, x + 4 * row * inputs, inputs, product)
                else:
                    dot_float32(weights, x + 4 * row * inputs, inputs, product)
                finish(job, load32(product), load64(job + Y) + 4 * (row * outputs + output))


@compiled(__file__, vectors.__file__, whole_numbers.__file__)
def multiply_int8(job: int, x: int, factors: int, first: int, behind: int) -> None:
    """Computes these outputs of a product with int8 weights, after rounding x to 16 bits.

    factors: memory for a float and `inputs` numbers of 16 bits for each row.
    """
    rows = load64(job + ROWS)
    inputs = load64(job + INPUTS)
    outputs = load64(job + OUTPUTS)
    numbers = factors + 4 * rows
    product = numbers + 2 * rows * inputs
    for row in range(rows):
        store32(factors + 4 * row, round_to_16_bits(x + 4 * row * inputs, numbers + 2 * row * inputs, inputs))
    for output in range(first, behind):
        weights = load64(job + WEIGHTS) + output * inputs
        scale_of_weights = load32(load64(job + SCALES) + 4 * output)
        for row in range(rows):
            dot_int8(weights, numbers + 2 * row * inputs, inputs, product)
            number = multiply_floats(load32(product), scale_of_weights)
            number = multiply_floats(number, load32(factors + 4 * row))
            finish(job, number, load64(job + Y) + 4 * (row * outputs + output))


@compiled(__file__, vectors.__file__)
def finish(job: int, number: int, y: int) -> None:
    """Stores a product, or adds it to what is there."""
    if load64(job + ADDED):
        number = add_floats(number, load32(y))
    store32(y, number)


@compiled(__file__, vectors.__file__)
def prepare(job: int, scratch: int, inputs: int) -> int:
    """Returns the address of what a product multiplies; each thread computes all of it."""
    x = load64(job + X)
    before = load64(job + BEFORE)
    if before == NORM:
        normalize(x, load64(job + GAINS), load64(job + EPS), scratch, inputs)
    elif before == GATE:
        gate(x, x + 4 * inputs, scratch, inputs)
    return scratch if before else x


@compiled(__file__, vectors.__file__)
def normalize(x: int, gains: int, eps: int, y: int, length: int) -> None:
    """Stores the RMSNorm of x; y may be x, but for the number that follows it."""
    squares = y + 4 * length
    dot_float32(x, x, length, squares)
    scale(x, gains, inverse_root_of_mean(load32(squares), length, eps), y, length)


@compiled(__file__, vectors.__file__)
def attend(job: int, scratch: int, thread: int, threads: int) -> None:
    """Attends in a thread's share of the heads."""
    heads = load64(job + OUTPUTS)
    d_k = load64(job + INPUTS)
    position = load64(job + POSITION)
    q = scratch
    scores = scratch + 4 * (d_k + LANES)
    for head in range(heads * thread // threads, heads * (thread + 1) // threads):
        keys = load64(job + KEYS) + 4 * head * load64(job + CONTEXT) * d_k
        values = load64(job + VALUES) + 4 * head * load64(job + CONTEXT) * d_k
        new = load64(job + X) + 4 * head * d_k
        place(job, new, load64(job + Q_GAINS), scores, q)
        place(job, new + 4 * heads * d_k, load64(job + K_GAINS), scores, keys + 4 * position * d_k)
        copy_bytes(new + 8 * heads * d_k, values + 4 * position * d_k, 4 * d_k)
        count = position + 1
        for index in range(count):
            dot_float32(q, keys + 4 * index * d_k, d_k, scores + 4 * index)
        padded = (count + LANES - 1) & -LANES
        for index in range(count, padded):
            store32(scores + 4 * index, MINUS_INFINITY)
        total = softmax(scores, padded, load64(job + FACTOR))
        mix(scores, count, values, d_k, inverse(total), load64(job + Y) + 4 * head * d_k)


@compiled(__file__, vectors.__file__)
def place(job: int, x: int, gains: int, scratch: int, y: int) -> None:
    """Stores a query or key, normalized if there are gains, and rotated by the position."""
    d_k = load64(job + INPUTS)
    row = 4 * load64(job + POSITION) * d_k
    if gains:
        normalize(x, gains, load64(job + EPS), scratch, d_k)
        x = scratch
    rotate(x, load64(job + COSINES) + row, load64(job + SINES) + row, y, d_k)
