// The Python module fusednn._C: questions about the build and the machine. The operators are in torch_ops.cpp.
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <stdexcept>

#include "api.h"
#include "bindings/launches.h"
#include "bindings/providers.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::list compiled, supported;
  for (int i = 0; i < fusednn::isa_count(); ++i) {
    compiled.append(fusednn::isa_name(i));
    if (fusednn::isa_supported(i)) supported.append(fusednn::isa_name(i));
  }
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["cplusplus"] = static_cast<long>(__cplusplus);
  info["openmp"] = fusednn::built_with_openmp();
  info["isas_compiled"] = compiled;
  info["isas_supported"] = supported;
  info["isa"] = fusednn::isa_chosen();
  return info;
}

py::list cells() {
  py::list out;
  for (int i = 0; i < fusednn::cell_count(); ++i) {
    const fusednn::CellInfo& cell = fusednn::cell_info(i);
    py::dict entry;
    entry["name"] = cell.name;
    entry["gates"] = cell.gates;
    entry["saved"] = cell.saved;
    entry["cell_state"] = cell.cell_state;
    entry["split"] = cell.split;
    entry["second_gates"] = cell.second_gates;
    out.append(entry);
  }
  return out;
}

void load_provider(const std::string& name, const std::string& path) {
  if (name != "cuda" && name != "emulated")
    throw std::invalid_argument("provider must be cuda or emulated, got " + name);
  fusednn::load_provider(name, path);
  if (name == "cuda") fusednn::register_cuda_operators();
}

fusednn::Dtype dtype_named(const std::string& name) {
  const char* names[] = {"float64", "float32", "bfloat16", "float16"};
  for (int i = 0; i < 4; ++i) {
    if (name == names[i]) return static_cast<fusednn::Dtype>(i);
  }
  throw std::invalid_argument("dtype must be float64, float32, bfloat16 or float16, got " + name);
}

py::list launches(const std::string& provider, const std::string& cell, const std::string& dtype,
                  const std::string& strategy, int64_t batch, int64_t steps, int64_t hidden, int64_t proj,
                  int64_t directions, int64_t heads, int layers, bool training, bool tf32, bool packed, bool norm) {
  const fusednn::Provider* loaded = fusednn::loaded_provider(provider);
  if (loaded == nullptr) throw std::invalid_argument("provider '" + provider + "' is not loaded");
  py::list out;
  if (layers < 1) throw std::invalid_argument("layers must be positive");
  const fusednn::Sequence sequence{cell, dtype_named(dtype), strategy, tf32,   batch,  steps, hidden,
                                   proj, directions,         heads,    layers, packed, norm};
  for (const fusednn::Launched& each : fusednn::launches(*loaded, sequence, training)) {
    const fusednn::LaunchShape& s = each.shape;
    py::dict entry;
    entry["kernel"] = each.kernel;
    entry["grid"] = py::make_tuple(s.grid[0], s.grid[1], s.grid[2]);
    entry["threads"] = s.threads;
    entry["shared"] = s.shared_bytes;
    entry["cluster"] = s.cluster;
    entry["cooperative"] = s.cooperative;
    entry["resident"] = s.resident;
    entry["programmatic"] = s.programmatic;
    entry["replayed"] = s.replayed;
    out.append(entry);
  }
  return out;
}

void set_isa(const std::string& name) {
  const char* error = fusednn::set_isa(name.c_str());
  if (error != nullptr) throw std::invalid_argument(error);  // ValueError in Python
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of fusednn.";
  m.def("build_info", &build_info, "How this module was built, and the CPU instruction set it uses.");
  m.def("cells", &cells, "The compiled cells, as the registry in csrc/cells has them.");
  m.def("set_isa", &set_isa, py::arg("name"),
        "Use this CPU instruction set from the next call on; \"\" is the best one. ValueError where the CPU lacks it.");
  m.def("load_provider", &load_provider, py::arg("name"), py::arg("path"),
        "Load the library of CUDA kernels (\"cuda\") or of the same kernels on the host (\"emulated\").");
  m.def("launches", &launches, py::arg("provider"), py::arg("cell"), py::arg("dtype"), py::arg("strategy"),
        py::arg("batch"), py::arg("steps"), py::arg("hidden"), py::arg("proj"), py::arg("directions"), py::arg("heads"),
        py::arg("layers"), py::arg("training"), py::arg("tf32"), py::arg("packed"), py::arg("norm"),
        "What a sequence would launch, in order, forward and with training backward; nothing runs. proj 0: none.");
  if (const char* name = std::getenv("FUSEDNN_CPU_ISA")) set_isa(name);  // so that a wrong name is an error at import
}
