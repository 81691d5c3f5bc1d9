"""A byte model trained by several processes, each with its share of every batch; the model stays as it is.

    torchrun --nproc-per-node 2 -m bench.train_distributed --model LSTM --parallel ddp
    torchrun --nproc-per-node 2 -m bench.train_distributed --model transformer --parallel fsdp2

The loss curve is that of one process, ``--parallel none`` without torchrun, but for rounding.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bench import layers, text, train
from bench.models import Factory, byte_lm
from bench.models.byte_lm import KINDS

PARALLEL = ("none", "ddp", "fsdp2")


def spread(model: nn.Module, parallel: str, device: torch.device) -> Any:
    """The model whose gradients are means over the ranks: a copy on each (``ddp``), or a part on each (``fsdp2``)."""
    if parallel == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if parallel == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for block in getattr(model, "layers", ()):
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)
    return model


def curve(kind: str, impl: str, parallel: str, steps: int, data: text.Text, device: torch.device) -> train.Curve:
    """Train one of `KINDS`, and return its loss on the held-out text, the same on all ranks.

    Raises:
        ValueError: a number of ranks that does not divide the batch.
    """
    rank, size = (0, 1) if parallel == "none" else (dist.get_rank(), dist.get_world_size())
    if train.BATCH % size:
        raise ValueError(f"the batch of {train.BATCH} must be a multiple of the number of ranks, got {size}")
    torch.manual_seed(0)
    model = spread(byte_lm(Factory(impl), kind).to(device), parallel, device)
    return train.train(model, data, kind, steps, device, share=slice(rank, None, size))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.train_distributed", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=KINDS, default="LSTM")
    parser.add_argument("--impl", choices=(layers.OURS, layers.TORCH), default=layers.OURS)
    parser.add_argument("--parallel", choices=PARALLEL, default="none")
    parser.add_argument("--steps", type=int, default=250)
    asked = parser.parse_args()
    device = torch.device("cpu")
    if asked.parallel != "none":
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        got = curve(asked.model, asked.impl, asked.parallel, asked.steps, text.load(), device)
        if not dist.is_initialized() or dist.get_rank() == 0:
            for seen, seconds, bits in zip(got.bytes_seen, got.seconds, got.bits, strict=True):
                print(f"{seen:>9} bytes {seconds:8.2f} s {bits:7.4f} bits a byte")
        if dist.is_initialized():
            dist.barrier()  # gloo has let go of the tensors of all that came before: it aborts if it must do so at exit
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
