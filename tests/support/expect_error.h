// Checks that something throws nibble::Error and that its sentence says what it must.
#pragma once

#include "core/error.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace nibble::test {

/// Runs `action`, which must throw nibble::Error, and returns the sentence; fails the test otherwise.
template <typename Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

/// The sentence of the Error that `action` throws must contain `part`.
template <typename Action>
void expect_error(std::string_view part, Action&& action) {
  const std::string sentence = error_of(action);
  EXPECT_NE(sentence.find(part), std::string::npos)
      << "the error says: " << sentence << "\nand should contain: " << part;
}

}  // namespace nibble::test
