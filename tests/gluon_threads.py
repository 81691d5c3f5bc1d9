"""Executes a kernel in Gluon on the CPU: its own source, one thread a group of warps, one of them at a time.

Triton's interpreter cannot run Gluon. Here the plain functions behind ``gluon.jit`` and ``triton.jit`` are called with
torch in the place of Gluon. Who goes on after each operation on a barrier is drawn, and so is when a load arrives; the
same seed draws the same. What hardware leaves open is made hostile:

* shared memory is NaN before it is written, and from the issue of a load to its arrival;
* a product in flight is computed when it is issued and when it is waited for, and both must agree;
* arrivals beyond a barrier's count, a result used before it was waited for, and a state in which nobody can go on, are
  errors.

Barriers count phases as the PTX manual has it (mbarrier): a wait for a parity returns while the current phase has the
other one. The warps of a group are one thread: whether they meet before each arrival, ``tools/sass.py`` reads in the
machine code. Layouts have no meaning here.
"""

from __future__ import annotations

import random
import threading
import types
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import triton.language as tl
from torch import Tensor


class Schedule:
    """Lets one thread run at a time, and draws the next one where it pauses."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.loads: list[Callable[[], None]] = []  # under way
        self.ready: dict[threading.Thread, Callable[[], bool]] = {}
        self.go: dict[threading.Thread, threading.Semaphore] = {}
        self.back = threading.Semaphore(0)
        self.error: BaseException | None = None

    def pause(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Let others run, until ``ready`` holds and this thread is drawn."""
        me = threading.current_thread()
        self.ready[me] = ready
        self.back.release()
        self.go[me].acquire()
        if self.error is not None:
            raise SystemExit

    def run(self, functions: Sequence[Callable[[], None]]) -> None:
        """Run all to their ends, and deliver all loads."""

        def body(function: Callable[[], None]) -> None:
            try:
                self.pause()
                function()
            except BaseException as error:  # raised again below
                self.error = self.error or error
            del self.ready[threading.current_thread()]
            self.back.release()

        threads = [threading.Thread(target=body, args=(f,), name=str(n), daemon=True) for n, f in enumerate(functions)]
        self.go = {thread: threading.Semaphore(0) for thread in threads}
        for thread in threads:
            thread.start()
            self.back.acquire()
        while self.ready and self.error is None:
            able = [*self.loads, *(thread for thread, ready in self.ready.items() if ready())]
            if not able:
                self.error = AssertionError(f"deadlock: groups {[thread.name for thread in self.ready]} wait")
                break
            drawn = self.random.choice(able)
            if isinstance(drawn, threading.Thread):
                self.go[drawn].release()
                self.back.acquire()
            else:
                self.loads.remove(drawn)
                drawn()
        for thread in list(self.ready):
            self.go[thread].release()
        for thread in threads:
            thread.join()
        if self.error is not None:
            raise self.error
        assert not self.loads, "a load that nobody waits for"


@dataclass
class Barrier:
    """Of shared memory."""

    count: int = 0
    pending: int = 0
    bytes: int = 0
    phases: int = 0  # completed

    def arrive(self, count: int = 1, bytes: int = 0) -> None:
        self.pending -= count
        self.bytes += bytes
        assert self.pending >= 0, "more arrivals than the barrier counts"
        if self.pending == 0 and self.bytes == 0:
            self.pending = self.count
            self.phases += 1


@dataclass
class Shared:
    """A view of shared memory: a tensor, or a list of barriers."""

    tensor: Tensor | None
    barriers: list[Barrier] = field(default_factory=list)

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def index(self, at: int) -> Shared:
        return Shared(self.tensor[at]) if self.tensor is not None else Shared(None, [self.barriers[at]])

    def reshape(self, shape: Sequence[int]) -> Shared:
        return Shared(self.tensor.view(*shape))

    def permute(self, order: Sequence[int]) -> Shared:
        return Shared(self.tensor.permute(*order))


@dataclass
class Block:
    """A descriptor of a tensor's blocks."""

    tensor: Tensor
    shape: tuple[int, ...]
    layout: None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def block_type(self) -> types.SimpleNamespace:
        size = torch.Size(self.shape).numel() * self.tensor.itemsize
        return types.SimpleNamespace(shape=list(self.shape), nbytes=size)

    def read(self, start: Sequence[int]) -> Tensor:
        """The block at some coordinates, zero outside the tensor."""
        block = self.tensor.new_zeros(self.shape)
        part = self.tensor[tuple(slice(a, a + n) for a, n in zip(start, self.shape, strict=True))]
        block[tuple(slice(n) for n in part.shape)] = part
        return block


@dataclass(frozen=True)
class Pointer:
    """Into the storage of a tensor."""

    tensor: Tensor
    offset: int | Tensor = 0

    def __add__(self, more: int | Tensor) -> Pointer:
        return Pointer(self.tensor, self.offset + more)


@dataclass(eq=False)
class Product:
    """Of matrices, in flight."""

    a: Tensor | Shared
    b: Shared
    sums: Tensor
    use_sums: bool
    result: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.result = self.compute()

    def compute(self) -> Tensor:
        a, b = ((x.tensor if isinstance(x, Shared) else x).to(self.sums.dtype) for x in (self.a, self.b))
        return self.sums + a @ b if self.use_sums else a @ b


class Gluon:
    """What a kernel may call, with the threads and the barriers of one program.

    Attributes:
        program: its number.
        float32: what stands for that dtype.
        issued: names of the groups of warps, in the order in which they issued products.
        flying: products not waited for, a group.
    """

    def __init__(self, program: int, seed: int, float32: torch.dtype):
        self.program, self.float32, self.schedule = program, float32, Schedule(seed)
        self.issued: list[str] = []
        self.flying: dict[str, list[Product]] = defaultdict(list)

    # The language.
    def namespace(self) -> types.SimpleNamespace:
        """In the place of ``gl`` and of ``tl``."""
        layouts = ("NVMMADistributedLayout", "SliceLayout", "DotOperandLayout", "BlockedLayout")
        return types.SimpleNamespace(
            **{name: lambda *_: None for name in layouts},
            int64=torch.int64, float32=self.float32,
            program_id=lambda _: self.program,
            cdiv=lambda a, b: -(-a // b),
            cast=lambda x, _: x,
            static_range=range,
            arange=lambda start, stop, _=None: torch.arange(start, stop),
            full=lambda shape, value, dtype, _=None: torch.full(shape, value, dtype=dtype),
            where=torch.where, exp2=torch.exp2, log2=torch.log2,
            maximum=self.larger, minimum=self.smaller,
            max=lambda x, axis: x.amax(axis),
            sum=lambda x, axis: x.sum(axis),
            convert_layout=lambda x, _: x,
            allocate_shared_memory=self.allocate,
            warp_specialize=self.warp_specialize,
            store=self.store,
        )  # fmt: skip

    @staticmethod
    def larger(a, b):
        return torch.maximum(a, torch.as_tensor(b, dtype=a.dtype)) if isinstance(a, Tensor) else max(a, b)

    @staticmethod
    def smaller(a, b):
        return torch.minimum(a, torch.as_tensor(b, dtype=a.dtype)) if isinstance(a, Tensor) else min(a, b)

    @staticmethod
    def allocate(dtype: torch.dtype, shape: Sequence[int], _) -> Shared:
        if dtype != torch.int64:
            return Shared(torch.full(tuple(shape), torch.nan, dtype=dtype))
        return Shared(None, [Barrier() for _ in range(shape[0])])

    def warp_specialize(self, functions: Sequence[tuple], *_) -> None:
        self.schedule.run([lambda f=f, a=a: f(*a) for f, a in functions])

    @staticmethod
    def store(at: Pointer, value: Tensor, mask: Tensor) -> None:
        storage = at.tensor.view(-1)
        storage[at.offset.expand(mask.shape)[mask]] = value.expand(mask.shape)[mask].to(storage.dtype)

    # Hopper.
    def init(self, at: Shared, count: int) -> None:
        (barrier,) = at.barriers
        barrier.count = barrier.pending = count

    def wait(self, at: Shared, parity: int) -> None:
        (barrier,) = at.barriers
        self.schedule.pause(lambda: barrier.phases & 1 != parity)

    def arrive(self, at: Shared) -> None:
        at.barriers[0].arrive()
        self.schedule.pause()

    def expect(self, at: Shared, bytes: int) -> None:
        at.barriers[0].arrive(bytes=bytes)
        self.schedule.pause()

    def async_load(self, block: Block, start: Sequence[int], at: Shared, target: Shared) -> None:
        (barrier,) = at.barriers

        def deliver() -> None:
            target.tensor.copy_(block.read(start))
            barrier.arrive(0, -block.block_type.nbytes)

        target.tensor.fill_(torch.nan)
        self.schedule.loads.append(deliver)
        self.schedule.pause()

    def warpgroup_mma(self, a, b, sums, use_acc: bool = True, is_async: bool = False) -> Product:
        group = threading.current_thread().name
        self.issued.append(group)
        self.flying[group].append(Product(a, b, sums, use_acc))
        self.schedule.pause()
        return self.flying[group][-1]

    def warpgroup_mma_wait(self, outstanding: int, deps: Sequence) -> Tensor | tuple:
        self.schedule.pause()
        flying = self.flying[threading.current_thread().name]
        while len(flying) > outstanding:
            product = flying.pop(0)
            assert torch.equal(product.result, product.compute()), "a factor changed while it was read"
        assert not any(x in flying for x in deps if isinstance(x, Product)), "used before it was waited for"
        found = tuple(x.result if isinstance(x, Product) else x for x in deps)
        return found if len(found) > 1 else found[0]

    def run(self, kernel, arguments: Sequence, **changed) -> None:
        """Execute one program of a kernel, with others in the place of some of its functions."""
        language = self.namespace()
        mbarrier = types.SimpleNamespace(
            init=self.init, wait=self.wait, arrive=self.arrive, expect=self.expect, MBarrierLayout=lambda: None
        )
        ours = {
            "gl": language, "tl": language, "mbarrier": mbarrier, "async_load": self.async_load,
            "fence_async_shared": lambda: None, "warpgroup_mma": self.warpgroup_mma,
            "warpgroup_mma_wait": self.warpgroup_mma_wait,
        }  # fmt: skip
        plain(kernel, ours | changed)(*arguments)
        assert not any(self.flying.values()), "a product that nobody waits for"


def plain(function, names: dict):
    """The Python function behind a jitted one, and behind all that it calls, with other globals for some names."""
    source = function.fn
    world = {}
    for name, value in source.__globals__.items():
        if name in names:
            world[name] = names[name]
        elif name in source.__code__.co_names and isinstance(value, tl.constexpr):
            world[name] = value.value
        elif name in source.__code__.co_names and hasattr(value, "fn"):
            world[name] = plain(value, names)
    world["__builtins__"] = __builtins__
    return types.FunctionType(source.__code__, world, source.__name__, source.__defaults__)
