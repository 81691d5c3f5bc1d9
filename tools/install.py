"""Install torch (a CPU build where no GPU is visible), fusednn in place, and what tests and benchmarks need."""

from __future__ import annotations

import glob
import importlib.util
import os
import shutil
import subprocess
import sys

TORCH = "torch>=2.11,<2.16"
CPU_TORCH = "2.13.0"


def pip(*arguments: str, quiet: bool = False) -> bool:
    """Run pip in this environment; True if it succeeded."""
    sink = subprocess.DEVNULL if quiet else None
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q", *arguments]
    return subprocess.run(command, stdout=sink, stderr=sink).returncode == 0


def gpu_visible() -> bool:
    """Whether an NVIDIA GPU shows on this machine."""
    return bool(glob.glob("/dev/nvidia[0-9]*")) or shutil.which("nvidia-smi") is not None


def install_torch() -> None:
    """A torch that is already there stays. Without a GPU, try the CPU builds before gigabytes of CUDA."""
    if importlib.util.find_spec("torch") is not None:
        return
    if gpu_visible():
        print("fusednn: a GPU is visible, installing torch with CUDA", flush=True)
        attempts = [lambda: pip(TORCH)]
    else:
        print("fusednn: no GPU is visible, preferring a CPU build of torch", flush=True)
        attempts = [lambda: pip(f"torch=={CPU_TORCH}+cpu", quiet=True), cpu_torch_by_uv, lambda: pip(TORCH)]
    if not any(attempt() for attempt in attempts):
        sys.exit("fusednn: torch could not be installed; install it by hand (any build of 2.11 to 2.15) and run again")


def cpu_torch_by_uv() -> bool:
    """Use uv, which knows where torch's CPU builds are kept on each platform."""
    if sys.platform != "linux" or not pip("uv", quiet=True):
        return False
    command = [sys.executable, "-m", "uv", "pip", "install", "-q", "--python", sys.executable]
    environment = {**os.environ, "UV_HTTP_TIMEOUT": "15", "UV_HTTP_RETRIES": "0"}
    command += ["--torch-backend=cpu", TORCH]
    return subprocess.run(command, env=environment, stderr=subprocess.DEVNULL).returncode == 0


def report_missing() -> None:
    """Say what this machine lacks and what would add it; none of it is needed for the CPU kernels."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        print("fusednn: no C++ compiler: plain PyTorch runs. For compiled kernels: apt-get install g++, make build")
    if not gpu_visible():
        print("fusednn: no NVIDIA GPU: the CPU kernels are measured; figures for a GPU need one")
    elif shutil.which("nvcc") is None:
        print("fusednn: no CUDA compiler: pip install 'fusednn[nvcc]' brings the one that matches torch")


def main() -> None:
    """Install everything, in the order that a source build needs."""
    install_torch()
    if not pip("setuptools>=77", "wheel", "pybind11>=3.0", "ninja"):
        sys.exit("fusednn: the build tools could not be installed; see pip's message above")
    print("fusednn: building and installing in place, a minute or more", flush=True)
    if not pip("--no-build-isolation", "-e", ".[bench,test]"):
        sys.exit("fusednn: the build failed; the compiler's messages are above (`python setup.py build_ext --inplace`)")
    report_missing()
    active = os.environ.get("VIRTUAL_ENV") or os.environ.get("CONDA_PREFIX")
    print(f"fusednn: installed; next: {'' if active else f'. {sys.prefix}/bin/activate && '}python -m fusednn")


if __name__ == "__main__":
    main()
