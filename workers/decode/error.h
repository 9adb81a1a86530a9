#pragma once

#include <cstdint>
#include <string>

namespace stook::decode {

/// Why something could not be decoded: what the bytes are, and with kBadBox what the caller asked
/// for, where only the header tells whether that makes sense.
enum class ErrorCode : std::uint8_t {
  kOk,
  kEmpty,          // no bytes at all
  kNotJpeg,        // does not start with the start-of-image marker
  kUnsupported,    // a JPEG, but of a kind libjpeg-turbo cannot decode to 8-bit samples
  kCorrupt,        // the coded data contradict themselves, so the pixels cannot be trusted
  kTruncated,      // the data end before the end-of-image marker, or the marker comes too early
  kTooManyPixels,  // the header names more pixels than the caller allows
  kTooManyScans,   // a progressive image with more scans than any honest encoder writes
  kMemoryLimit,    // libjpeg would need more working memory than the caller allows
  kOutOfMemory,    // malloc failed
  kBadBox,         // the part that is asked for does not lie within the image
  kOutsideFile,    // the file has no such part: it ends before
  kBadHeader,      // an .npy header, a zip or a tar directory that no writer makes
  kRefused,        // understood, and not read on purpose: pickled objects
  kEndsEarly,      // the data end before what their header promises
  kSystem,         // reading failed; system_errno says how
};

/// Result of a decoding step: kOk, or the reason together with the decoder's own words.
struct [[nodiscard]] Error {
  ErrorCode code = ErrorCode::kOk;
  std::string text{};
  int system_errno = 0;  // of kSystem; after EINTR the step may be taken again

  /// True where something went wrong.
  explicit operator bool() const noexcept { return code != ErrorCode::kOk; }
};

}  // namespace stook::decode
