"""What all ragged kernels share: the plan of a layer, and the way from a tile's number to its expert.

Persistent programs walk through the tiles of all experts; a tile's expert is found by comparing its number
with the running sums of tiles, so nothing about the routing is ever known to the host.

    tiles:  [widest expert: 0 1 2 3 4 5][next: 6 7 8 9]...      running sums (`ends`): 6 10 ...
    tile 7: `ends` <= 7 holds once, so it is tile 1 of the second expert in this order
"""

import os

import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Rows of the plan, each a vector over experts, padded with empty experts to a power of two.
PAIR = tl.constexpr(0)  # first pair
UNIT = tl.constexpr(1)  # first hidden unit
PRE = tl.constexpr(2)  # first pre-activation
BY_WIDTH = tl.constexpr(3)  # experts, widest first
BY_PAIRS = tl.constexpr(4)  # experts, busiest first
PAIRS = tl.constexpr(5)  # how many pairs
WIDTH = tl.constexpr(6)  # hidden units
WORK = tl.constexpr(7)  # tiles that were taken, of launches that count them
ROWS_OF_PLAN = 8


@triton.jit(debug=True, do_not_specialize=["num_pairs", "num_tokens"])  # debug: assertions are compiled in
def plan_kernel(count_E, width_E, plan, num_pairs, num_tokens, E: tl.constexpr, PADDED: tl.constexpr):
    """Write all offsets of a layer into its plan, from the counts on the device; one program.

    The counts are checked here, where nobody waits for them.
    """
    lane = tl.arange(0, PADDED)
    real = lane < E
    pairs = tl.load(count_E + lane, mask=real, other=0).to(tl.int64)
    width = tl.load(width_E + lane, mask=real, other=0).to(tl.int64)
    tl.device_assert(
        (pairs >= 0) & (pairs <= num_tokens),
        "expert_ffn: num_tokens_E must be from 0 to the number of tokens",
    )
    tl.device_assert(
        tl.sum(pairs, 0) <= num_pairs, "expert_ffn: num_tokens_E must sum to at most the pairs in token_N"
    )
    tl.store(plan + PAIR * PADDED + lane, tl.cumsum(pairs, 0) - pairs)
    tl.store(plan + UNIT * PADDED + lane, tl.cumsum(width, 0) - width)
    tl.store(plan + PRE * PADDED + lane, tl.cumsum(pairs * width, 0) - pairs * width)
    # Tiles of the widest (busiest) experts take longest, so they come first. The lane in the key makes it
    # unique, and is taken out of it again after the sort: Triton sorts values, not indices.
    back = PADDED - 1 - lane
    tl.store(
        plan + BY_WIDTH * PADDED + lane, PADDED - 1 - tl.sort(width * PADDED + back, descending=True) % PADDED
    )
    tl.store(
        plan + BY_PAIRS * PADDED + lane, PADDED - 1 - tl.sort(pairs * PADDED + back, descending=True) % PADDED
    )
    tl.store(plan + PAIRS * PADDED + lane, pairs)
    tl.store(plan + WIDTH * PADDED + lane, width)
    tl.store(plan + WORK * PADDED + lane, pairs * 0)


@triton.jit
def load_sizes(plan, ORDER: tl.constexpr, PADDED: tl.constexpr):
    """Load (pairs, width) of all experts in an order of the plan."""
    expert = tl.load(plan + ORDER * PADDED + tl.arange(0, PADDED))
    return tl.load(plan + PAIRS * PADDED + expert).to(tl.int32), tl.load(plan + WIDTH * PADDED + expert).to(
        tl.int32
    )


@triton.jit
def count_turns(tiles):
    """Return how many tiles this program computes, when programs take them in the turns of `tile_of_turn`."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    full = tiles // programs
    place = tl.where(full % 2 == 0, program, programs - 1 - program)
    return full + (place < tiles % programs).to(tl.int32)


@triton.jit
def tile_of_turn(turn):
    """Return this program's tile of a turn; every other turn goes through the programs in reverse."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    # Tiles come longest first: the program with the longest of one turn gets the shortest of the next.
    return turn * programs + tl.where(turn % 2 == 0, program, programs - 1 - program)


@triton.jit
def locate_tile(plan, ends, tile, ORDER: tl.constexpr, PADDED: tl.constexpr):
    """Return (tile within its expert, its pairs, width, first pair, first unit, first pre-activation)."""
    before = ends <= tile
    expert = tl.load(plan + ORDER * PADDED + tl.sum(before.to(tl.int32), 0))
    pairs = tl.load(plan + PAIRS * PADDED + expert).to(tl.int32)
    # Widths are multiples of 16 (checked at the door); the compiler is told, so that loads become 16-byte
    # copies.
    width = tl.multiple_of(tl.load(plan + WIDTH * PADDED + expert).to(tl.int32), 16)
    pair = tl.load(plan + PAIR * PADDED + expert)
    unit = tl.multiple_of(tl.load(plan + UNIT * PADDED + expert), 16)
    pre = tl.multiple_of(tl.load(plan + PRE * PADDED + expert), 16)
    return tile - tl.max(tl.where(before, ends, 0), 0), pairs, width, pair, unit, pre


@triton.jit
def row_and_column(tile, num_rows, num_columns, GROUP: tl.constexpr):
    """Return a tile's row and column, in groups of GROUP rows, so that neighbours share cached operands."""
    span = GROUP * num_columns
    first = tile // span * GROUP
    height = tl.minimum(num_rows - first, GROUP)
    return first + tile % span % height, tile % span // height


@triton.jit
def split_columns(tile, BM: tl.constexpr, BN: tl.constexpr):
    """Split a tile's columns into a left and a right half: what follows on a part needs fewer registers."""
    return tl.split(tl.permute(tl.reshape(tile, (BM, 2, BN // 2)), (0, 2, 1)))


@triton.jit
def accumulate_product(a, b, sum_, UPCAST: tl.constexpr):
    """Return sum_ + a @ b in float32.

    UPCAST is for the interpreter, which multiplies the bits of bfloat16 as they are (triton issue 11584).
    """
    if a.dtype == tl.float32:
        # Each step is summed alone and then added, so that errors grow with the number of steps, not with the
        # depth. It is subtracted, since the compiler would make one long sum of an addition.
        return sum_ - tl.dot(-a, b, input_precision="ieee")
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sum_, input_precision="ieee")
