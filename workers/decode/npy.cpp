#include "workers/decode/npy.h"

#include <algorithm>
#include <string>
#include <string_view>

namespace stook::decode {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kVersionAt = kMagic.size();
constexpr std::size_t kLengthAt = kVersionAt + 2;

}  // namespace

/// Reads on until `text_` has `size` bytes.
Error NpyReader::read_text(std::size_t size) {
  if (text_.size() == size && wanted_ == 0) return {};
  if (wanted_ == 0) {
    if (size - text_.size() > stream_.left())
      return {ErrorCode::kEndsEarly, "ends in the middle of its .npy header"};
    done_ = 0;
    wanted_ = size - text_.size();
    text_.resize(size);
  }
  const std::span<std::uint8_t> to(text_.data() + text_.size() - wanted_, wanted_);
  Error error = stream_.read(to, &done_);
  if (!error) wanted_ = 0;
  return error;
}

Error NpyReader::open(NpyHeader* header) {
  if (text_.empty() && stream_.left() == 0) return {ErrorCode::kEmpty, "empty: 0 bytes"};
  if (text_.size() <= kLengthAt) {
    if (Error error = read_text(kLengthAt); error) return error;
  }
  const std::string_view start(reinterpret_cast<const char*>(text_.data()), kLengthAt);
  if (start.substr(0, kMagic.size()) != kMagic) {
    return {ErrorCode::kBadHeader, "no .npy file: begins with " + quoted(start.substr(0, 6))};
  }
  const int version = text_[kVersionAt];
  const int minor = text_[kVersionAt + 1];
  if (version < 1 || version > 3 || minor != 0) {
    return {ErrorCode::kBadHeader, ".npy format version " + std::to_string(version) + "." +
                                       std::to_string(minor) + ", known are 1.0, 2.0 and 3.0"};
  }
  const std::size_t length_size = version == 1 ? 2 : 4;
  const std::size_t header_at = kLengthAt + length_size;
  if (text_.size() <= header_at) {
    if (Error error = read_text(header_at); error) return error;
  }
  std::size_t length = 0;
  for (std::size_t i = 0; i < length_size; ++i)
    length |= static_cast<std::size_t>(text_[kLengthAt + i]) << 8U * i;
  if (length > kMaxNpyHeader) {
    return {ErrorCode::kBadHeader, "an .npy header of " + std::to_string(length) +
                                       " bytes; more than " + std::to_string(kMaxNpyHeader) +
                                       " are not read"};
  }
  if (Error error = read_text(header_at + length); error) return error;
  const std::string_view text(reinterpret_cast<const char*>(text_.data()) + header_at, length);
  *header = {};
  return parse_npy_header(text, version, header);
}

Error NpyReader::data_size(const NpyHeader& header, std::uint64_t item_size,
                           std::uint64_t* size) const {
  const auto times = [](std::uint64_t a, std::uint64_t b, std::uint64_t* product) {
    return !__builtin_mul_overflow(a, b, product) && *product <= INT64_MAX;
  };
  // NumPy's own rule: what is not empty counts, also beside a dimension of length 0.
  std::uint64_t all = std::max<std::uint64_t>(item_size, 1);
  bool empty = item_size == 0;
  for (const std::uint64_t length : header.shape) {
    if (length == 0) {
      empty = true;
    } else if (!times(all, length, &all)) {
      return {ErrorCode::kBadHeader, "bad .npy header: the array has more than 2**63 bytes"};
    }
  }
  *size = empty ? 0 : all;
  if (*size > stream_.left()) {
    return {ErrorCode::kEndsEarly, "ends early: " + std::to_string(stream_.left()) + " of " +
                                       std::to_string(*size) + " bytes of the array are there"};
  }
  return {};
}

}  // namespace stook::decode
