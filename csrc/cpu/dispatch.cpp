// Chooses the instruction set: the best one the machine has, or the one that FUSEDNN_CPU_ISA or set_isa() names.
#include <cstdlib>
#include <cstring>
#include <string>

#include "api.h"
#include "cpu/kernels.h"

namespace fusednn {
namespace {

struct Isa {
  const char* name;
  const cpu::Kernels* kernels[4];  // by Dtype
  bool (*supported)();
};

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
#endif

bool has_baseline() {
  return true;
}

#define FUSEDNN_ISA_ENTRY(isa) \
  {#isa, {&cpu::isa##_float64, &cpu::isa##_float32, &cpu::isa##_bfloat16, &cpu::isa##_float16}, has_##isa}
const Isa kIsas[] = {
    FUSEDNN_ISA_ENTRY(baseline),
#if defined(__x86_64__)
    FUSEDNN_ISA_ENTRY(avx2),
    FUSEDNN_ISA_ENTRY(avx512),
    {"avx512_bf16",
     {&cpu::avx512_float64, &cpu::avx512_float32, &cpu::avx512_bf16_bfloat16, &cpu::avx512_float16},
     has_avx512_bf16},
#endif
};
constexpr int kIsaCount = sizeof(kIsas) / sizeof(kIsas[0]);

const Isa* best_isa() {
  const Isa* best = kIsas;
  for (const Isa& isa : kIsas) {
    if (isa.supported()) best = &isa;
  }
  return best;
}

thread_local std::string message;

// Null and a message where the name is unknown or the machine lacks the instructions.
const Isa* named_isa(const char* name) {
  if (name == nullptr || *name == '\0') return best_isa();
  for (const Isa& isa : kIsas) {
    if (std::strcmp(isa.name, name) != 0) continue;
    if (isa.supported()) return &isa;
    message = std::string("this CPU lacks the instruction set '") + name + "'";
    return nullptr;
  }
  message = std::string("unknown instruction set '") + name + "'; expected one of:";
  for (const Isa& isa : kIsas) message += std::string(" ") + isa.name;
  return nullptr;
}

// An impossible FUSEDNN_CPU_ISA is reported by the binding through set_isa; here the best one stands in.
const Isa* initial_isa() {
  const Isa* isa = named_isa(std::getenv("FUSEDNN_CPU_ISA"));
  return isa == nullptr ? best_isa() : isa;
}

const Isa*& current_isa() {
  static const Isa* current = initial_isa();
  return current;
}

}  // namespace

int isa_count() {
  return kIsaCount;
}
const char* isa_name(int index) {
  return kIsas[index].name;
}
bool isa_supported(int index) {
  return kIsas[index].supported();
}
const char* isa_chosen() {
  return current_isa()->name;
}

const char* set_isa(const char* name) {
  const Isa* isa = named_isa(name);
  if (isa == nullptr) return message.c_str();
  current_isa() = isa;
  return nullptr;
}

const cpu::Kernels& cpu::chosen_kernels(Dtype dtype) {
  return *current_isa()->kernels[static_cast<int>(dtype)];
}

}  // namespace fusednn
