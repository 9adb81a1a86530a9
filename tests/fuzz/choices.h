// How fuzz targets take their parameters out of what the fuzzer hands them.
#pragma once

#include <cstdint>
#include <span>

namespace stook::fuzz {

/// Bytes from the front, one by one; zeros behind the end.
class Choices {
 public:
  explicit Choices(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  std::uint8_t next() {
    if (bytes_.empty()) return 0;
    const std::uint8_t byte = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return byte;
  }

  /// All that have not been taken.
  std::span<const std::uint8_t> rest() const { return bytes_; }

 private:
  std::span<const std::uint8_t> bytes_;
};

}  // namespace stook::fuzz
