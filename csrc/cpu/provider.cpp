#include <exception>
#include <stdexcept>
#include <string>

#include "api.h"
#include "cpu/kernels.h"

namespace fusednn {
namespace {

thread_local std::string message;

void check(const RecurrentShape& s, const void* w_hr) {
  const CellInfo* cell = find_cell(s.cell);
  if (cell == nullptr) throw std::invalid_argument(std::string("unknown cell '") + s.cell + "'");
  if (w_hr != nullptr && !cell->cell_state) {
    throw std::invalid_argument(std::string("cell '") + s.cell + "' has no projection (w_hr): it keeps no c");
  }
  if (w_hr == nullptr && s.proj != s.hidden)
    throw std::invalid_argument("without w_hr the size of h is the hidden size");
  if (s.hidden < 1 || s.proj < 1) throw std::invalid_argument("the hidden size must be positive");
  if (s.directions != 1 && s.directions != 2) throw std::invalid_argument("directions must be 1 or 2");
  if (s.heads < 1) throw std::invalid_argument("heads must be positive");
}

template <class Args>
const char* run(const Args& args, void (*kernel)(const Args&)) {
  try {
    check(args.shape, args.w_hr);
    kernel(args);
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

const char* forward(const RecurrentForward& args) {
  return run(args, cpu::chosen_kernels(args.shape.dtype).forward);
}
const char* backward(const RecurrentBackward& args) {
  return run(args, cpu::chosen_kernels(args.shape.dtype).backward);
}

// Kernels whose arguments the caller checked: what is left is memory that cannot be had.
template <class Args>
const char* attempt(const Args& args, void (*kernel)(const Args&)) {
  try {
    kernel(args);
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

template <class Args>
const char* scan(const Args& args, void (*kernel)(const Args&)) {
  if (scan_gates(args.shape.cell) == 0) {
    message = std::string("unknown cell '") + args.shape.cell + "'";
    return message.c_str();
  }
  kernel(args);
  return nullptr;
}

}  // namespace

const char* linear_backward(const LinearBackward& args) {
  return attempt(args, cpu::chosen_kernels(args.dtype).linear_backward);
}

const char* scan_forward(const ScanForward& args) {
  return scan(args, cpu::chosen_kernels(args.shape.dtype).scan_forward);
}
const char* scan_backward(const ScanBackward& args) {
  return scan(args, cpu::chosen_kernels(args.shape.dtype).scan_backward);
}

const char* additive_forward(const AdditiveForward& args) {
  cpu::chosen_kernels(args.shape.dtype).additive_forward(args);
  return nullptr;
}
const char* additive_backward(const AdditiveBackward& args) {
  return attempt(args, cpu::chosen_kernels(args.shape.dtype).additive_backward);
}

const char* attention_forward(const AttentionForward& args) {
  return attempt(args, cpu::chosen_kernels(args.shape.dtype).attention_forward);
}
const char* attention_backward(const AttentionBackward& args) {
  return attempt(args, cpu::chosen_kernels(args.shape.dtype).attention_backward);
}

const Provider& cpu_provider() {
  static const Provider provider{"cpu", forward, backward, nullptr, nullptr, nullptr, nullptr};
  return provider;
}

}  // namespace fusednn
