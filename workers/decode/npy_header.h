#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "workers/decode/error.h"

namespace stook::decode {

/// A value as it is written in the header of an .npy file: a small part of Python's literals.
struct Literal {
  enum class Kind : std::uint8_t { kText, kNumber, kTruth, kTuple, kList, kDict };
  Kind kind = Kind::kTuple;
  std::string text{};            // UTF-8
  std::uint64_t number = 0;      // below 2**63; of kTruth 0 or 1
  std::vector<Literal> items{};  // of kDict keys and values in turn
};

/// What the header of an .npy file says.
struct NpyHeader {
  /// kText: one of NumPy's type strings, such as "<f8". kList: the fields of a structured dtype,
  /// each (name, descr) or (name, descr, shape), where name is a text or (title, name). Of the form
  /// that NumPy writes, which does not mean that NumPy accepts it.
  Literal descr{};
  bool fortran_order = false;
  std::vector<std::uint64_t> shape{};
};

/// The longest header that is looked at. NumPy writes 128 bytes, and more than a few thousand only
/// for dtypes with hundreds of fields.
constexpr std::size_t kMaxNpyHeader = std::size_t{1} << 20U;

/// Parses the text of a header, which is in UTF-8 from format version 3 on and Latin-1 before.
///
/// Strict where NumPy evaluates: nothing but the dict that NumPy writes, of whatever layout.
/// Pickled objects anywhere in the dtype are kRefused. Any thread; allocates in proportion to the
/// text.
Error parse_npy_header(std::string_view text, int version, NpyHeader* header);

/// `text` in quotes for a message: short, and of printable ASCII.
std::string quoted(std::string_view text);

}  // namespace stook::decode
