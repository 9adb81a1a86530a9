// How an element is written down: a tree of tags, with arrays by value or as places in blocks.
//
//   envelope := u32 name_count, u8 has_pickle [pickle] tree names
//   pickle   := u32 buffer_count { u32 block, u64 offset, u64 bytes } u64 size, bytes
//   tree     := u8 tag, then as the tag says (encoder.cpp and decoder.cpp, side by side)
//   names    := the segments that go with the element (workers::SegmentName each): at the end, for
//               the manager, which unlinks those of an element that nobody reads
//
// Written and read by the same build on the same machine: native byte order, no versions.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "bindings/python_api.h"

namespace stook::bindings {

enum class Tag : std::uint8_t {
  kNone,
  kTrue,
  kFalse,
  kInt,           // i64
  kFloat,         // f64
  kComplex,       // 2 x f64
  kStr,           // u8 kind (0: ASCII, else bytes per character), u64 length, characters
  kBytes,         // u64 length, bytes
  kTuple,         // u64 length, trees
  kList,          // u64 length, trees
  kDict,          // u64 length, (key, value) trees
  kScalar,        // dtype, bytes of one item
  kInlineArray,   // dtype, shape, u8 order (0: C, 1: Fortran, 2: strides follow), bytes
  kBlockArray,    // dtype, shape, strides, u32 block, u64 offset in the arena
  kSegmentArray,  // dtype, shape, strides, u64 offset in the segment, u64 length, name
  kPickled,       // u32 index into the pickled list
  kMemoized,      // the next tree can be referred to later
  kReference,     // u32 index among the memoized
};

// Indices of the pickled list are below this; the whole element as one pickle has its own.
inline constexpr std::uint32_t kWholePickle = 0xFFFFFFFF;

enum class DtypeTag : std::uint8_t {
  kNumber,    // u8 type number, u8 swapped: everything follows from these
  kFlexible,  // the same, and i64 item size: S, U, V without fields
  kPickled,   // u32 length, pickle
};

class EnvelopeWriter {
 public:
  void clear() { bytes_.clear(); }
  std::size_t size() const { return bytes_.size(); }
  std::byte* data() { return bytes_.data(); }
  const std::vector<std::byte>& bytes() const { return bytes_; }

  void put_bytes(const void* data, std::size_t size) {
    const std::size_t at = bytes_.size();
    bytes_.resize(at + size);
    if (size != 0) std::memcpy(bytes_.data() + at, data, size);
  }
  template <class T>
  void put(T value) {
    put_bytes(&value, sizeof value);
  }
  // Room for a value that is known later.
  std::size_t skip(std::size_t size) {
    bytes_.resize(bytes_.size() + size);
    return bytes_.size() - size;
  }
  template <class T>
  void patch(std::size_t at, T value) {
    std::memcpy(bytes_.data() + at, &value, sizeof value);
  }
  void truncate(std::size_t size) { bytes_.resize(size); }
  void pad_to(std::size_t multiple) {
    bytes_.resize((bytes_.size() + multiple - 1) / multiple * multiple);
  }

 private:
  std::vector<std::byte> bytes_;
};

// Reads what may have been written by a process that is not well: every read is checked.
class EnvelopeReader {
 public:
  EnvelopeReader(const std::byte* data, std::size_t size) : at_(data), end_(data + size) {}

  // False once anything was read beyond the end.
  bool ok() const { return ok_; }
  void fail() { ok_ = false; }
  std::size_t left() const { return static_cast<std::size_t>(end_ - at_); }

  const std::byte* take(std::uint64_t size) {
    if (!ok_ || size > left()) {
      ok_ = false;
      return nullptr;
    }
    const std::byte* taken = at_;
    at_ += size;
    return taken;
  }
  // What lies at the end; it is then not there any more.
  const std::byte* take_last(std::uint64_t size) {
    if (!ok_ || size > left()) {
      ok_ = false;
      return nullptr;
    }
    end_ -= size;
    return end_;
  }
  template <class T>
  T get() {
    T value{};
    if (const std::byte* bytes = take(sizeof value)) std::memcpy(&value, bytes, sizeof value);
    return value;
  }

 private:
  const std::byte* at_;
  const std::byte* end_;
  bool ok_ = true;
};

}  // namespace stook::bindings
