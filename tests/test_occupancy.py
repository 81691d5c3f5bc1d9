"""The occupancy calculator agrees with NVIDIA's own header, compiled here."""

from __future__ import annotations

import importlib.util
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from fusednn.__main__ import main
from fusednn.kernels import every, kernels, passports
from fusednn.occupancy import CAPABILITIES, GPUS, REGISTERS, SHARED_RESERVED, WARP, gpu_like, occupancy, one_more

SOURCE = r"""
#include <cstddef>
#include <cstdio>
#include <cuda_occupancy.h>

int main() {
  int major, minor, warps, shared, shared_block, threads, registers, bytes;
  while (std::scanf("%d%d%d%d%d%d%d%d", &major, &minor, &warps, &shared, &shared_block, &threads, &registers, &bytes) ==
         8) {
    cudaOccDeviceProp device;
    device.computeMajor = major, device.computeMinor = minor;
    device.maxThreadsPerBlock = 1024, device.maxThreadsPerMultiprocessor = warps * 32;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 * 1024, device.sharedMemPerMultiprocessor = shared;
    device.numSms = 100;
    device.sharedMemPerBlockOptin = shared_block, device.reservedSharedMemPerBlock = 1024;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024, kernel.numRegs = registers;
    kernel.sharedSizeBytes = 0;
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = shared_block;
    kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    cudaOccResult result;
    const cudaOccError error =
        cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, bytes);
    std::printf("%d\n", error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -1);
  }
}
"""


@pytest.fixture(scope="module")
def nvidias(tmp_path_factory):
    """Blocks a multiprocessor by NVIDIA's header, for lines of numbers."""
    found = importlib.util.find_spec("triton")
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if found is None or found.origin is None or compiler is None:
        pytest.skip("needs a C++ compiler and Triton's wheel, which carries cuda_occupancy.h")
    include = Path(found.origin).parent / "backends/nvidia/include"
    folder = tmp_path_factory.mktemp("occupancy")
    (folder / "main.cpp").write_text(SOURCE)
    subprocess.run([compiler, "-w", "-I", include, folder / "main.cpp", "-o", folder / "main"], check=True)

    def ask(lines: list[str]) -> list[int]:
        done = subprocess.run([folder / "main"], input="\n".join(lines), capture_output=True, text=True, check=True)
        return [int(line) for line in done.stdout.split()]

    return ask


@pytest.mark.parametrize("gpu", GPUS.values(), ids=lambda gpu: gpu.name)
def test_blocks_agree_with_nvidias_calculator(nvidias, gpu):
    limits = CAPABILITIES[gpu.capability]
    draw = random.Random(0)
    kernels = [
        (draw.randint(1, 1024), draw.randint(1, 255), draw.choice([0, draw.randint(0, limits.shared_block)]))
        for _ in range(3000)
    ]
    kernels += [(threads, registers, 0) for threads in (32, 256, 1024) for registers in range(1, 256)]
    major, minor = gpu.capability.split(".")
    device = f"{major} {minor} {limits.warps} {limits.shared} {limits.shared_block}"
    expected = nvidias([f"{device} {threads} {registers} {shared}" for threads, registers, shared in kernels])
    assert [occupancy(gpu, *kernel).blocks for kernel in kernels] == expected


@pytest.mark.parametrize(
    "kernel, limiter",
    [
        ((32, 16, 0), "blocks"),
        ((1024, 16, 0), "warps"),
        ((256, 255, 0), "registers"),
        ((64, 16, 90_000), "shared memory"),
    ],
)
def test_the_limiter_is_the_resource_that_allows_no_further_block(kernel, limiter):
    gpu = GPUS["H200"]
    found = occupancy(gpu, *kernel)
    assert found.limiter == limiter and found.blocks > 0
    threads, registers, shared = kernel
    used = {
        "blocks": found.blocks / CAPABILITIES["9.0"].blocks,
        "warps": found.warps / CAPABILITIES["9.0"].warps,
        "registers": found.blocks * threads * registers / REGISTERS,
        "shared memory": found.blocks * (shared + SHARED_RESERVED) / CAPABILITIES["9.0"].shared,
    }
    assert max(used.values()) <= 1 and used[limiter] * (1 + 1 / found.blocks) > 1
    assert found.warps == found.blocks * threads // WARP


@pytest.mark.parametrize("gpu", [GPUS["H200"], GPUS["RTX 4090"]], ids=lambda gpu: gpu.name)
def test_what_one_more_block_needs_is_enough_and_the_most(gpu):
    draw = random.Random(1)
    seen = set()
    for _ in range(150):
        threads, registers = draw.choice([32, 96, 128, 256, 512]), draw.randint(16, 255)
        shared = draw.choice([0, draw.randint(0, 99_000)])
        blocks = occupancy(gpu, threads, registers, shared).blocks
        needs = one_more(gpu, threads, registers, shared)
        most = {"registers": registers, "shared": shared}
        for need in needs.split(", ") if "<=" in needs else ():
            resource, _, value = need.split()
            most[resource] = int(value)
        seen.add(tuple(sorted(name for name in most if f"{name} <=" in needs)))
        if needs == "fewer threads":
            assert occupancy(gpu, threads, 0, 0).blocks == blocks
            continue
        assert occupancy(gpu, threads, *most.values()).blocks > blocks
        for name in most:
            if f"{name} <=" in needs:
                more = {**most, name: most[name] + 1}
                assert occupancy(gpu, threads, *more.values()).blocks == blocks
    assert {(), ("registers",), ("shared",)} <= seen


def test_a_kernel_that_does_not_fit_has_no_blocks():
    assert occupancy(GPUS["A10"], 256, 32, 150_000).blocks == 0
    assert occupancy(GPUS["H200"], 1024, 128, 0).limiter == "registers"


@pytest.mark.parametrize("kernel", [(0, 32, 0), (1025, 32, 0), (32, -1, 0), (32, 32, -1)])
def test_impossible_kernels_are_refused(kernel):
    with pytest.raises(ValueError, match="expected 1 to 1024 threads"):
        occupancy(GPUS["H200"], *kernel)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=lambda gpu: gpu.name)
def test_every_kernel_runs_on_every_gpu_that_it_was_compiled_for(gpu):
    compiled = [kernel for kernel in every() if kernel.on(gpu) is not None]
    assert len(compiled) >= len(kernels()) > 90
    for kernel in compiled:
        follows_the_sizes = kernel.name.startswith("persistent_")  # what a GPU has too little for is refused
        assert kernel.occupancy(gpu, 0 if follows_the_sizes else None).blocks > 0, kernel.name


@pytest.mark.parametrize("name", ["A100", "H100", "H200", "B200", "RTX 4090", "RTX 5090"])
def test_the_named_gpus_have_the_kernels_of_every_family(name):
    families = {kernel.name.split("<")[0] for kernel in every() if kernel.on(GPUS[name]) is not None}
    assert {"step_forward", "gemm_backward", "persistent_forward", "attention_forward", "attention_key_value",
            "attention_decode", "additive_forward", "scan_backward"} <= families  # fmt: skip


@pytest.mark.parametrize(
    "name, gpu",
    [("NVIDIA H200", "H200"), ("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA GeForce RTX 5090", "RTX 5090"),
     ("NVIDIA A10", "A10"), ("NVIDIA GeForce RTX 3060", None)],
)  # fmt: skip
def test_a_device_name_is_recognised(name, gpu):
    assert gpu_like(name) is (GPUS[gpu] if gpu else None)


def test_the_command_line_prints_occupancy(capsys):
    assert main(["occupancy", "step_forward<Lstm, Bf16", "--gpu", "H200"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    kernel = kernels()["step_forward<Lstm, Bf16, false>"]
    fits = kernel.occupancy(GPUS["H200"])
    assert head.startswith("kernel ") and row.startswith(kernel.name)
    assert row.endswith(f"{fits.limiter}   {kernel.one_more(GPUS['H200'])}") and f"{100 * fits.share:.3g}%" in row
    assert main(["occupancy", "attention_forward<fp16, 128>"]) == 0
    attention = passports()[1]["attention_forward<fp16, 128>"]
    fits = attention.occupancy(GPUS["H200"])
    row = next(line for line in capsys.readouterr().out.splitlines() if "H200" in line)
    assert row.startswith(attention.name) and f"{100 * fits.share:.3g}%" in row and f" {fits.limiter} " in row
    assert main(["occupancy", "no such kernel"]) == 2
    assert "no kernel's name contains 'no such kernel'" in capsys.readouterr().err
