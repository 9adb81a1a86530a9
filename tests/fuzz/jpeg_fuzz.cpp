// The first byte chooses what is asked for, the rest is the JPEG.
#include "workers/decode/jpeg.h"

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "tests/fuzz/choices.h"
#include "workers/decode/resized_crop.h"

namespace {

namespace decode = stook::decode;

constexpr std::uint64_t kMaxPixels = 1U << 16U;
constexpr int kMaxScans = 20;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  stook::fuzz::Choices choices({data, size});
  const unsigned how = choices.next();
  const std::span<const std::uint8_t> jpeg = choices.rest();
  decode::JpegInfo info;
  const decode::Error header = decode::read_jpeg_info(jpeg, &info);

  decode::JpegOptions options;
  options.mode = (how & 1U) != 0 ? decode::PixelMode::kGray : decode::PixelMode::kRgb;
  options.allow_truncated = (how & 2U) != 0;
  options.apply_orientation = (how & 4U) != 0;
  options.max_pixels = kMaxPixels;
  options.max_scans = kMaxScans;
  decode::JpegDecoder decoder(jpeg);
  decode::ImageSize shape;
  if (decoder.open() || decoder.output_size(options, &shape)) return 0;
  if (header) std::abort();  // the same header, read twice
  const std::size_t row = std::size_t{shape.width} * decode::channels_of(options.mode);
  std::vector<std::uint8_t> pixels(row * shape.height);
  if (decoder.decode(options, pixels.data(), static_cast<std::ptrdiff_t>(row))) return 0;
  if (options.apply_orientation || options.allow_truncated) return 0;

  // What decodes whole and unharmed decodes in part, to the same pixels.
  const std::uint32_t left = choices.rest().size() % shape.width;
  const std::uint32_t top = choices.rest().size() / 7 % shape.height;
  decode::ResizedCropOptions part;
  part.jpeg = options;
  part.size = {shape.height - top, shape.width - left};
  part.scaled_decode = false;
  const std::size_t part_row = row - left * std::size_t{decode::channels_of(options.mode)};
  std::vector<std::uint8_t> cropped(part_row * part.size.height);
  const decode::CropBox box{1.0 * left, 1.0 * top, 1.0 * shape.width, 1.0 * shape.height};
  if (decode::decode_resized_crop(jpeg, box, false, part,
                                  {cropped.data(), static_cast<std::ptrdiff_t>(part_row), 0})) {
    std::abort();
  }
  for (std::size_t y = 0; y < part.size.height; ++y) {
    for (std::size_t i = 0; i < part_row; ++i) {
      if (cropped[y * part_row + i] != pixels[(top + y) * row + (row - part_row) + i]) std::abort();
    }
  }
  return 0;
}
