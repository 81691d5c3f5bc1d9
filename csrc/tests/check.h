// A test is TEST(what_it_promises) { ... CHECK(...) ... }; the program runs those
// whose name contains its argument, or all, and returns how many failed.
#pragma once

#include <cstdio>
#include <exception>
#include <sstream>
#include <string>
#include <vector>

namespace fusednn::testing {

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Register {
  Register(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

inline void fail(const char* file, int line, const std::string& what) {
  if (++failures() <= 20) std::printf("%s:%d: %s\n", file, line, what.c_str());
}

// Those whose name contains `part`.
inline int run_all(const std::string& part) {
  int failed = 0;
  for (const Test& test : tests()) {
    if (std::string(test.name).find(part) == std::string::npos) continue;
    const int before = failures();
    try {
      test.body();
    } catch (const std::exception& error) {
      fail(test.name, 0, error.what());
    }
    const bool ok = failures() == before;
    failed += !ok;
    std::printf("%s %s\n", ok ? "ok    " : "FAILED", test.name);
  }
  return failed;
}

}  // namespace fusednn::testing

#define TEST(name)                                                      \
  static void name();                                                   \
  static const fusednn::testing::Register register_##name(#name, name); \
  static void name()

// CHECK(condition, "text" << values that explain a failure).
#define CHECK(condition, explanation)                               \
  do {                                                              \
    if (!(condition)) {                                             \
      std::ostringstream check_text;                                \
      check_text << #condition << ": " << explanation;              \
      fusednn::testing::fail(__FILE__, __LINE__, check_text.str()); \
    }                                                               \
  } while (false)
