// Checks for the C++ tests: a failed one prints where and what, and makes main return 1.
#pragma once

#include <cstdio>
#include <exception>
#include <string>

namespace ard::test {

inline int failures = 0;
inline int checks = 0;

inline bool report(bool passed, const char* file, int line, const char* what) {
  ++checks;
  if (passed) return true;
  // A systematic fault would print millions of lines.
  if (++failures <= 20) std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
  return false;
}

inline int finish(const char* name) {
  std::printf("%s: %d checks, %d failed\n", name, checks, failures);
  return failures == 0 ? 0 : 1;
}

/// Message of the exception of type E that `run` throws, or "" when it throws none.
template <typename E, typename F>
std::string message_of(F&& run) {
  try {
    run();
  } catch (const E& error) {
    return error.what();
  }
  return "";
}

inline bool contains(const std::string& text, const char* part) {
  const bool found = text.find(part) != std::string::npos;
  if (!found) std::fprintf(stderr, "'%s' is not in '%s'\n", part, text.c_str());
  return found;
}

}  // namespace ard::test

#define CHECK(...) ::ard::test::report((__VA_ARGS__), __FILE__, __LINE__, #__VA_ARGS__)
