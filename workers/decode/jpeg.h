#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "workers/decode/error.h"

namespace stook::decode {

/// What the header of a JPEG says.
struct JpegInfo {
  std::uint32_t width = 0;   // as stored, in pixels, whatever the orientation
  std::uint32_t height = 0;  // as stored, in pixels
  int components = 0;
  std::string_view
      color_space;  // "grayscale", "RGB", "YCbCr", "CMYK", "YCCK" or "unknown"; static storage
  bool progressive = false;
  bool arithmetic = false;
  std::string_view
      subsampling;      // "4:2:0" and the like; empty where the term does not apply; static storage
  int orientation = 1;  // Exif, 1 to 8; 1 where the file does not say
};

enum class PixelMode : std::uint8_t {
  kRgb,   // 3 bytes a pixel
  kGray,  // 1 byte a pixel
};

constexpr unsigned channels_of(PixelMode mode) { return mode == PixelMode::kRgb ? 3 : 1; }

struct JpegOptions {
  PixelMode mode = PixelMode::kRgb;
  /// Keep what there is of an image whose data end early; what is missing is filled as libjpeg
  /// fills it.
  bool allow_truncated = false;
  /// Turn the image the way its Exif orientation says.
  bool apply_orientation = false;
  std::uint64_t max_pixels = UINT64_MAX;
  /// Honest encoders write about ten. Each scan of a progressive image costs a pass over all its
  /// coefficients, so that a small file with thousands of them is an attack on the reader's time.
  int max_scans = 100;
  /// Bytes of working memory that libjpeg may take for the coefficients of a multi-scan image.
  /// 0: what an image of its width and height can need at most.
  std::size_t max_memory = 0;
};

struct ImageSize {
  std::uint32_t height = 0;
  std::uint32_t width = 0;
};

/// A part of an image, and how much smaller than stored the image is decoded.
struct JpegWindow {
  unsigned denominator = 1;  // 1, 2, 4 or 8; sizes are divided and rounded up
  std::uint32_t left = 0;    // in pixels of the image so decoded; right and bottom lie behind
  std::uint32_t top = 0;
  std::uint32_t right = 0;
  std::uint32_t bottom = 0;
};

/// The rows in which a window comes.
struct WindowRows {
  std::size_t bytes = 0;        // that a row needs room for
  std::size_t skip = 0;         // bytes in front of the window's first pixel
  std::size_t pixel_bytes = 0;  // 4 (R, G, B and a byte that says nothing) or 1
};

/// One JPEG in memory, decoded with libjpeg-turbo into memory of the caller.
///
/// The bytes belong to the caller and must stay until the decoder is gone. One thread at a time,
/// any number of decoders in any number of threads; never blocks; needs no GIL. `open`, then
/// `output_size`, then `decode` once, or `begin_window`, `read_window` and `end_window`. Pixels are
/// those of `djpeg` with its defaults (accurate integer DCT, fancy upsampling), bit for bit.
///
/// Nothing is kept from one image to the next: libjpeg keeps quantization and Huffman tables in a
/// decompressor, and a file without its own tables would be decoded with those of the image before.
class JpegDecoder {
 public:
  explicit JpegDecoder(std::span<const std::uint8_t> data);
  ~JpegDecoder();
  JpegDecoder(const JpegDecoder&) = delete;
  JpegDecoder& operator=(const JpegDecoder&) = delete;

  /// Reads the header. Memory taken does not depend on the size the header names.
  Error open();

  /// What `open` found, without `orientation`.
  const JpegInfo& info() const;

  /// Checks the header against `options`, and says what size the result will have.
  Error output_size(const JpegOptions& options, ImageSize* size);

  /// Decodes into rows of `width * channels_of(mode)` bytes, `row_stride` bytes apart (which may be
  /// negative or leave gaps; gaps are not touched). After an error the content of the rows is
  /// undefined.
  Error decode(const JpegOptions& options, std::uint8_t* pixels, std::ptrdiff_t row_stride);

  /// Prepares for the rows of a window alone, which must not be empty and must lie within the
  /// image. Its pixels are those that the whole image has there, bit for bit. `apply_orientation`
  /// must be off: windows are of the image as stored.
  Error begin_window(const JpegOptions& options, const JpegWindow& window, WindowRows* rows);

  /// The next `count` rows of the window.
  Error read_window(std::uint8_t* const* rows, unsigned count);

  /// After the last row of the window: looks for the end-of-image marker. Rows below the window are
  /// not decoded, so that damage there stays unnoticed, but truncation does not.
  Error end_window();

  /// Of the implementation.
  struct State;

 private:
  std::unique_ptr<State> state_;
};

/// The header of a JPEG, with its orientation.
Error read_jpeg_info(std::span<const std::uint8_t> data, JpegInfo* info);

}  // namespace stook::decode
