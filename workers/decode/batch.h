#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "workers/decode/error.h"
#include "workers/decode/file.h"
#include "workers/decode/resized_crop.h"

namespace stook::decode {

/// One image of a batch: a file or a part of one, or bytes that the caller keeps.
struct BatchItem {
  const char* path = nullptr;  // null: `bytes` are the image
  FilePart part;               // of the file
  std::span<const std::uint8_t> bytes;
  std::optional<CropBox> box;
  bool flip = false;
  bool refused = false;  // by the caller: nothing is read
};

/// What became of one image: nothing wrong, a file that could not be read, or one that could not be
/// decoded.
struct BatchOutcome {
  int system_error = 0;  // errno
  Error error;

  bool failed() const { return system_error != 0 || error; }
};

/// Several JPEGs decoded, one after the other, into equally spaced places. One that fails has its
/// place filled with zeros and holds up no other.
///
/// One thread at a time; needs no GIL. Items' paths and bytes belong to the caller.
class BatchDecoder {
 public:
  BatchDecoder(std::vector<BatchItem> items, const ResizedCropOptions& options);

  /// Goes on until all are done (0), or it is time to look for signals (EINTR): one came while a
  /// file was being read, or a tenth of a second has passed. Calling again goes on where it
  /// stopped. `first` is where image 0 goes, `item_stride` the bytes from one to the next. Throws
  /// std::bad_alloc.
  int run(const CropTarget& first, std::ptrdiff_t item_stride);

  const std::vector<BatchOutcome>& outcomes() const { return outcomes_; }

 private:
  void clear(const CropTarget& target) const;

  std::vector<BatchItem> items_;
  ResizedCropOptions options_;
  std::vector<BatchOutcome> outcomes_;  // of those that are done
  std::optional<FileReader> file_;      // of the one that is not
};

}  // namespace stook::decode
