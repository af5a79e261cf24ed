"""The kernel that carries out the jobs of a forward pass: products, with what precedes each, and attention.

    product     y = W f(x), or y += W f(x); f is the identity, an RMSNorm, or SwiGLU's gate
    attention   rotates one token's query and key, appends key and value to the cache, and attends
    addition    y += x

All threads of a team go through the jobs together: each computes its share of the outputs, or of the heads, and waits
for the others before the next job. A job and a program are rows of int64, whose fields are named here by their offsets
in bytes; program.py fills them. int8 weights are multiplied by the scale of their row.
"""

from lm.generation import vectors
from lm.generation.vectors import (
    TOGETHER,
    add,
    add_floats,
    dot_bfloat16,
    dot_float32,
    dot_int8,
    dots_int8,
    gate,
    inverse,
    inverse_root_of_mean,
    mix,
    multiply_floats,
    rotate,
    scale,
    softmax,
)
from lm.machine.kernels import call_function, compiled
from lm.machine.lanes import BFLOAT16, INT8, LANES
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


@compiled(__file__, vectors.__file__)
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


@compiled(__file__, vectors.__file__)
def multiply(job: int, scratch: int, thread: int, threads: int) -> None:
    """Computes a thread's share of a product, in one pass over its weights."""
    rows = load64(job + ROWS)
    inputs = load64(job + INPUTS)
    outputs = load64(job + OUTPUTS)
    x = prepare(job, scratch, inputs)
    for output in range(outputs * thread // threads, outputs * (thread + 1) // threads):
        y = load64(job + Y) + 4 * output
        row = 0
        if load64(job + SIZE) == INT8:
            weights = load64(job + WEIGHTS) + output * inputs
            while row + TOGETHER <= rows:
                here = x + 4 * row * inputs
                dots_int8(weights, here, 4 * inputs, inputs, y + 4 * row * outputs, 4 * outputs)
                row += TOGETHER
            for done in range(row):
                there = y + 4 * done * outputs
                store32(there, multiply_floats(load32(there), load32(load64(job + SCALES) + 4 * output)))
        while row < rows:
            multiply_one(job, x + 4 * row * inputs, output, y + 4 * row * outputs, scratch + 4 * inputs)
            row += 1


@compiled(__file__, vectors.__file__)
def multiply_one(job: int, x: int, output: int, y: int, product: int) -> None:
    """Multiplies one row of weights by one vector."""
    inputs = load64(job + INPUTS)
    size = load64(job + SIZE)
    weights = load64(job + WEIGHTS) + output * inputs * size
    if size == INT8:
        dot_int8(weights, x, 0, inputs, product, 0)
        store32(product, multiply_floats(load32(product), load32(load64(job + SCALES) + 4 * output)))
    elif size == BFLOAT16:
        dot_bfloat16(weights, x, 0, inputs, product, 0)
    else:
        dot_float32(weights, x, 0, inputs, product, 0)
    number = load32(product)
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
    dot_float32(x, x, 0, length, squares, 0)
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
            dot_float32(q, keys + 4 * index * d_k, 0, d_k, scores + 4 * index, 0)
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
