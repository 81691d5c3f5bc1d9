"""The path of a step counted from machine code: what a walk executes, how long it would take, what the page says."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from math import ceil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import critical_path  # noqa: E402
from sm90 import listing, timeline, warp  # noqa: E402
from sm90.semantics import steps_of  # noqa: E402
from sm90.timeline import Event  # noqa: E402

TENSOR = warp.Region("x", 0x700000000000, 4 * 64)

# A kernel as nvdisasm lists it: `float *x, int n`; n turns of a loop, then two ways for a float of x that is unknown.
KERNEL = """
    S2R R0, SR_TID.X
    LDC R2, c[0x0][0x218]
    LDC.64 R6, c[0x0][0x210]
    MOV R3, RZ
.L_x_0:
    VIADD R3, R3, 0x1
    ISETP.GE.AND P0, PT, R3, R2, PT
@!P0 BRA `(.L_x_0)
    IMAD.WIDE.U32 R6, R0, 0x4, R6
    LDG.E R4, desc[UR4][R6.64]
    FSETP.GT.AND P1, PT, R4, RZ, PT
    BSSY B0, `(.L_x_2)
@P1 BRA `(.L_x_1)
    FADD R5, R4, R4
    BRA `(.L_x_2)
.L_x_1:
    FMUL R5, R4, R4
.L_x_2:
    BSYNC B0
    STG.E desc[UR4][R6.64], R5
    EXIT
"""


def code_of(lines: str, stall: int = 1, **boards: int) -> listing.Code:
    """Read as a listing, with the same control fields everywhere but for the scoreboards of some instructions."""
    out, address = [], 0
    for line in filter(str.strip, lines.splitlines()):
        if line.startswith(".L"):
            out.append(line)
            continue
        name = line.split()[-1 if line.strip() == "EXIT" else line.startswith("@")].split(".")[0]
        word = stall << 41 | boards.get(name, 7) << 46 | 7 << 49 | boards.get(f"{name}_wait", 0) << 52
        out += [f"  /*{address:04x}*/ {line.strip()} ;  /* 0x{0:016x} */", f"  /* 0x{word:016x} */"]
        address += 16
    return listing.read("\n".join(out))


def walked(
    code: listing.Code, n: int = 3, thread: int = 0, region: warp.Region = TENSOR, among=(TENSOR,)
) -> list[Event]:
    parameters = region.start.to_bytes(8, "little") + n.to_bytes(4, "little")
    walker = warp.Warp(warp.Block(code, parameters, list(among), 64, (1, 1, 1)), thread)
    walker.walk(steps_of(code))
    return [Event(code.instructions[at], walker.accesses.get(k), k in walker.off) for k, at in enumerate(walker.trace)]


@pytest.mark.parametrize("turns", [1, 4])
def test_a_walk_takes_each_turn_and_both_ways_of_a_float(turns):
    names = Counter(event.instruction.name[0] for event in walked(code_of(KERNEL), turns))
    assert names["VIADD"] == turns and names["FADD"] == names["FMUL"] == names["STG"] == 1
    assert names["BRA"] == turns + 2
    assert names.total() == len(code_of(KERNEL).instructions) + 3 * (turns - 1) + 1, "lanes come to BSYNC twice"


def test_bytes_are_counted_where_they_lie():
    counted = critical_path.tally(walked(code_of(KERNEL)))
    assert counted["bytes", "from x"] == counted["bytes", "to x"] == 32 * 4
    assert counted["kind", "LDG"] == counted["kind", "STG"] == 1


def test_parts_and_classes_add_up_to_all_instructions():
    counted = critical_path.tally(walked(code_of(KERNEL)))
    for what in ("part", "kind"):
        assert sum(n for key, n in counted.items() if key[0] == what) == counted["all", ""] > 0


def test_steps_are_alike_or_a_lap_is_shared_out():
    lap = Counter({"all": 71, "fence": 1})
    assert critical_path.share(lap, Counter(all=1), 7, uniform=False) == {"all": 10, "fence": 0}
    with pytest.raises(warp.Unfit, match="steps differ"):
        critical_path.share(lap, Counter(all=1), 7, uniform=True)


def test_a_walk_outside_of_the_tensors_ends():
    with pytest.raises(warp.Unfit, match="outside of all tensors"):
        walked(code_of(KERNEL), region=warp.Region("x", TENSOR.start + TENSOR.size - 4, 4))


def test_lanes_may_read_from_several_tensors_of_which_nothing_is_known():
    halves = [warp.Region("left", TENSOR.start, 64, word=0), warp.Region("right", TENSOR.start + 64, 64)]
    events = walked(code_of(KERNEL), among=halves)
    assert critical_path.tally(events)["bytes", "from left and right"] == 32 * 4
    assert {"FADD", "FMUL"} <= {event.instruction.name[0] for event in events}


def test_a_branch_on_an_unknown_integer_ends_the_walk():
    with pytest.raises(warp.Unfit, match="unknown number"):
        walked(code_of(KERNEL.replace("FSETP.GT.AND", "ISETP.GT.AND")))


def test_an_instruction_that_is_not_known_ends_the_walk():
    with pytest.raises(warp.Unfit, match="no such instruction"):
        walked(code_of(KERNEL.replace("FADD R5, R4, R4", "FROB R5, R4")))


def test_a_division_of_integers_is_exact():
    """What ptxas makes of n / 7 for an unsigned n: an estimate by floats, a product, two corrections."""
    divide = """
    S2R R0, SR_TID.X
    IMAD.MOV.U32 R3, RZ, RZ, 0x7
    I2F.U32.RP R4, R3
    MUFU.RCP R4, R4
    VIADD R8, R4, 0xffffffe
    F2I.FTZ.U32.TRUNC.NTZ R9, R8
    IMAD.MOV.U32 R8, RZ, RZ, RZ
    IADD3 R5, RZ, -R9, RZ
    IMAD R5, R5, R3, RZ
    IMAD.HI.U32 R9, R9, R5, R8
    IMAD.HI.U32 R9, R9, R0, RZ
    IADD3 R5, -R9, RZ, RZ
    IMAD R0, R3, R5, R0
    ISETP.GE.U32.AND P0, PT, R0, R3, PT
@P0 VIADD R9, R9, 0x1
    EXIT
    """
    walker = warp.Warp(warp.Block(code_of(divide), b"", [], 64, (1, 1, 1)), 1)
    walker.walk(steps_of(walker.block.code))
    quotient, known = walker.registers["R9"]
    assert known == warp.ALL and quotient.tolist() == [n // 7 for n in range(32, 64)]


def test_a_shuffle_brings_what_another_lane_has():
    ask = """
    S2R R0, SR_TID.X
    LOP3.LUT R1, R0, 0x1, RZ, 0x3c, !PT
    SHFL.IDX PT, R2, R0, R1, 0x1f
    SHFL.IDX PT, R3, R0, RZ, 0x1f
    EXIT
    """
    walker = warp.Warp(warp.Block(code_of(ask), b"", [], 64, (1, 1, 1)), 1)
    walker.walk(steps_of(walker.block.code))
    (swapped, sure), (first, also) = walker.registers["R2"], walker.registers["R3"]
    assert sure == also == warp.ALL
    assert swapped.tolist() == [n ^ 1 for n in range(32, 64)] and set(first.tolist()) == {32}


def test_a_warp_waits_for_its_loads_and_for_the_others():
    meet = "\n".join(["LDS R4, [RZ]", "FADD R5, R4, R4", "BAR.SYNC.DEFER_BLOCKING 0x0", "EXIT"])
    event = walked(code_of(meet, 1))
    late = walked(code_of(meet, 1, LDS=0, FADD_wait=1))
    assert timeline.Block([event], 0).run() < timeline.LATENCY["shared"]
    alone = timeline.Block([late], 0).run()
    assert alone >= timeline.LATENCY["shared"] + timeline.LATENCY["barrier"]
    assert alone < timeline.Block([late, [*late[:1] * 100, *late[1:]]], 0).run(), (
        "the later warp holds the other one up"
    )


def test_a_message_arrives_when_its_last_part_was_sent():
    plain = Event(code_of("NOP\nEXIT").instructions[0], None)
    wait, send = Event(plain.instruction, None, receives=0), Event(plain.instruction, None, sends=0)
    slow = [*[plain] * 50, send]
    assert timeline.Block([[wait], [send], slow], 100).run() >= 150
    with pytest.raises(warp.Unfit, match="never comes"):
        timeline.Block([[wait], [plain]], 100).run()


@pytest.mark.parametrize(
    ("file", "text", "part"),
    [
        ("walk.h", "return add_up<Launch::kSlices>(first, sum);", "sums"),
        ("walk.h", "block_sync();", "sums"),
        ("residence.h", "sums.template add<kChunk % 2>(kept_[kChunk], now);", "product"),
        ("exchange.h", "mbarrier_try(barrier(n, channel.column)", "receive"),
        ("exchange.h", "store_async(remote_address", "send"),
        ("exchange.h", "got[b] = load_relaxed(from + place[b]);", "receive"),
        ("exchange.h", "store_relaxed(mail(n, channel) + place, present(piece));", "send"),
        ("persistent_forward.h", "in.item[i].active = s.time < it.length;", "inputs"),
        ("persistent_forward.h", "const V h = cell_.forward(x, rec", "gates"),
        ("persistent_forward.h", "to[k * z.hidden] = out.saved[k];", "write"),
        ("persistent_forward.h", "for (int step = 0; step < steps_of(0); ++step)", "loop"),
    ],
)
def test_a_line_of_the_source_belongs_to_a_part(file, text, part):
    path = ROOT / "csrc/cuda" / file
    lines = [n for n, line in enumerate(path.read_text().splitlines(), 1) if text in line]
    assert lines, f"{file} has no such line any more"
    assert critical_path.part_of(((str(path), lines[0]),)) == part


ROWS = json.loads(critical_path.COUNTS.read_text())["rows"]


def test_the_counts_are_those_of_these_sources():
    assert json.loads(critical_path.COUNTS.read_text())["files"] == critical_path.marks(), (
        "tools/critical_path.py --write"
    )


def test_the_page_shows_the_counts():
    assert critical_path.page_with(ROWS) == critical_path.PAGE.read_text(encoding="utf-8")


def test_every_case_is_counted():
    assert list(ROWS) == [case.label for case in critical_path.cases()]


@pytest.mark.parametrize("label", [label for label in ROWS if re.match("block|cluster|grid", label)])
def test_products_are_as_many_as_the_layout_says(label):
    """Two for each chunk of 32 k and each row tile: forward has one a gate, backward one with all gates' k."""
    rung, cell, _, hidden, batch, way, *_ = label.split()  # and "packed"
    H, B = int(hidden[2:]), int(batch[2:])
    gates = {"lstm": 4, "gru": 3, "rnn_tanh": 1}[cell]
    tiles = {"block": ceil(H / 16), "cluster": 2, "grid": 1}[rung]
    k, rows = (H, gates) if way == "forward" else (gates * H, 1)
    chunks = ceil(ceil(k / 32) / (8 // tiles))
    groups = {"block": 2, "cluster": 2, "grid": 132 // (H // 16)}[rung]
    columns = ceil(ceil(B / 8) / groups)
    assert ROWS[label]["kinds"]["HMMA"] == 2 * chunks * rows * columns
