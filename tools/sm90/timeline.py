"""How many cycles a block's warps would take for the instructions that they execute: a prediction.

Each warp issues in order. ptxas wrote into every instruction how long the warp pauses behind it and which scoreboards
it sets and waits for (listing.py); what is left are the latencies of what a scoreboard tells of, and the pipes that
warps share. All constants are assumptions about an H200 with their source; nothing here was measured by this project.
Not in it: misses of the instruction cache, bank conflicts, blocks that are late.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from .listing import Instruction
from .warp import Access, Unfit

CLOCK = 1.8e9
SCHEDULERS = 4

# Cycles until the result is there. [H] of the size reported for an H100 by W. Luo et al., arXiv:2402.13499; [R] taken
# over from the design of the kernels, docs/kernels/critical_path.md; [A] assumed here.
LATENCY = {
    "shared": 29,  # [H]
    "L1": 41,  # [H] a thread's own local memory, and what every step reads again
    "L2": 262,  # [H] weights, states, messages
    "memory": 479,  # [H] inputs of a step, which nobody has read before
    "parameters": 41,  # [A] as L1: constant bank by LDC
    "function": 18,  # [A] MUFU and conversions
    "shuffle": 23,  # [A]
    "barrier": 22,  # [A] from the last warp's arrival on
    "fence": 810,  # [R] 0.45 us: MEMBAR at the scope of the GPU, behind stores to L2
    "flag": 540,  # [R] 0.3 us: from the flag's store to the poll that sees it
    "remote": 450,  # [R] 0.25 us: from st.async to the wait in the other block that it ends
    "operands": 16,  # [A] until a load or store has read its registers
    "other": 30,  # [A]
}
NEW = ("gates", "saved", "grad_y")  # tensors of which a step reads what nothing has read before
AGAIN = ("lengths", "offsets")  # of a packed sequence: a few lines of memory, the same ones for many steps
# The pipe of a scheduler that an instruction occupies, and for how many cycles, by NVIDIA's table of throughputs for
# compute capability 9.0; that integer products have a pipe of their own is [A]. HMMA: 62% of the peak [R].
PIPES = {
    "tensor": (6.5, {"HMMA"}),
    "function": (8, {"MUFU", "F2F", "I2F", "F2I"}),
    "shuffle": (4, {"SHFL"}),
    "double": (2, {"DFMA", "DMUL", "DADD", "DSETP"}),
    "float": (1, {"FADD", "FMUL", "FFMA"}),
    "product": (2, {"IMAD"}),
    "control": (2, {"BRA", "BSSY", "BSYNC", "BREAK", "EXIT", "WARPSYNC", "YIELD", "NOP", "BAR", "VOTE"}),
    "uniform": (2, {"UIADD3", "UIMAD", "ULEA", "USHF", "ULOP3", "UISETP", "USEL", "UMOV", "ULDC", "R2UR", "UPLOP3"}),
    "memory": (2, {"LD", "ST", "LDS", "STS", "LDG", "STG", "LDL", "STL", "LDC", "LDGSTS", "STAS", "SYNCS"}),
    "integer": (2, set()),  # and comparisons, selections, bits: all others
}
_PIPE_OF = {name: pipe for pipe, (_, names) in PIPES.items() for name in names}
SHARED_BYTES = 128  # a cycle, of a multiprocessor's shared memory


@dataclass(frozen=True)
class Event:
    """One instruction as a warp issues it; ``off``: its guard lets no lane through. Receives and sends name the message
    by its number, else -1.
    """

    instruction: Instruction
    access: Access | None
    off: bool = False
    receives: int = -1
    sends: int = -1


def latency(event: Event) -> float:
    """Until an instruction's scoreboard is released."""
    kind, access = event.instruction.name[0], event.access
    if event.off:
        return 0
    if access is not None:
        places = {"shared": "shared", "local": "L1", "peers": "other", **dict.fromkeys(AGAIN, "L1")}
        return LATENCY[places.get(access.where, "memory" if access.where in NEW else "L2")]
    if kind in ("LDC", "ULDC"):
        return LATENCY["parameters"]
    if kind in ("MUFU", "F2F", "I2F", "F2I"):
        return LATENCY["function"]
    if kind == "SHFL":
        return LATENCY["shuffle"]
    return LATENCY["other"]


def pipe(event: Event) -> tuple[str, float]:
    """The pipe of an instruction and its cycles there."""
    name = _PIPE_OF.get(event.instruction.name[0], "integer")
    return name, 1 if event.off else PIPES[name][0]


def is_fence(instruction: Instruction) -> bool:
    """Whether it waits until the GPU has seen what was stored."""
    return instruction.name[0] == "MEMBAR" and "GPU" in instruction.name


class Block:
    """The warps of a block, each with its events, and their clocks."""

    def __init__(self, warps: list[list[Event]], remote: float):
        """``remote``: cycles from the last send of a message to its arrival."""
        self.warps, self.remote = warps, remote
        self.left: dict[int, int] = {}  # sends that a message still needs
        for events in warps:
            for event in events:
                if event.sends >= 0:
                    self.left[event.sends] = self.left.get(event.sends, 0) + 1
        self.arrived: dict[int, float] = {}
        self.sent: dict[int, float] = {}
        self.starts: list[list[float]] = [[] for _ in warps]  # cycle at which each event was issued

    def run(self) -> float:
        """The cycle of the last warp's last instruction."""
        warps, count = self.warps, len(self.warps)
        at, clock = [0] * count, [0.0] * count
        boards = [[0.0] * 6 for _ in range(count)]
        issue, pipes, shared = [0.0] * SCHEDULERS, [{} for _ in range(SCHEDULERS)], 0.0
        queue = [(0.0, w) for w in range(count)]
        parked: dict[int, list[int]] = {}  # by message
        at_barrier: list[int] = []
        finished, end = 0, 0.0
        heapq.heapify(queue)
        while queue:
            time, w = heapq.heappop(queue)
            if at[w] == len(warps[w]):
                finished, end = finished + 1, max(end, clock[w])
                continue
            event = warps[w][at[w]]
            instruction, kind = event.instruction, event.instruction.name[0]
            scheduler, control = w % SCHEDULERS, instruction.control
            if event.receives >= 0 and event.receives not in self.arrived:
                parked.setdefault(event.receives, []).append(w)
                continue
            used, cycles = pipe(event)
            start = max(time, clock[w], issue[scheduler], pipes[scheduler].get(used, 0.0))
            for board in range(6):
                if control.wait >> board & 1:
                    start = max(start, boards[w][board])
            if event.receives >= 0:
                start = max(start, self.arrived[event.receives])
            if kind == "DEPBAR" and not event.off:
                start = max(start, *boards[w])
            if queue and start > queue[0][0]:
                heapq.heappush(queue, (start, w))
                continue
            self.starts[w].append(start)
            issue[scheduler] = start + 1
            pipes[scheduler][used] = start + cycles
            done = start + latency(event)
            if event.access is not None and event.access.where == "shared":
                shared = max(shared, start) + math.ceil(event.access.bytes / SHARED_BYTES)
                done = max(done, shared + LATENCY["shared"])
            for board, free in ((control.write, done), (control.read, start + LATENCY["operands"])):
                if board < 6:
                    boards[w][board] = max(boards[w][board], free)
            clock[w] = start + max(control.stall, 1)
            if is_fence(instruction) and not event.off:
                clock[w] = start + LATENCY["fence"]
            at[w] += 1
            if event.sends >= 0:
                message = event.sends
                self.sent[message] = max(self.sent.get(message, 0.0), start)
                self.left[message] -= 1
                if self.left[message] == 0:
                    self.arrived[message] = self.sent[message] + self.remote
                    for waiting in parked.pop(message, []):
                        heapq.heappush(queue, (max(clock[waiting], self.arrived[message]), waiting))
            if kind in ("BAR", "UCGABAR_WAIT") and not event.off:
                at_barrier.append(w)
                if len(at_barrier) < count - finished:
                    continue
                open_ = max(clock[v] for v in at_barrier) + LATENCY["barrier"]
                for waiting in at_barrier:
                    clock[waiting] = open_
                    heapq.heappush(queue, (open_, waiting))
                at_barrier = []
                continue
            heapq.heappush(queue, (clock[w], w))
        if parked or at_barrier:
            raise Unfit("warps wait for what never comes")
        return end
