// The first 13 bytes choose what is asked for, the rest is the JPEG.
#include "workers/decode/resized_crop.h"

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <span>
#include <vector>

#include "tests/fuzz/choices.h"

namespace {

using stook::fuzz::Choices;
namespace decode = stook::decode;

constexpr std::uint64_t kMaxPixels = 1U << 18U;
constexpr int kMaxScans = 20;  // each costs a pass over all coefficients; the limit is one of ours

decode::ResizedCropOptions options_from(Choices& choices) {
  decode::ResizedCropOptions options;
  const unsigned bits = choices.next();
  options.jpeg.mode = (bits & 1U) != 0 ? decode::PixelMode::kGray : decode::PixelMode::kRgb;
  options.jpeg.allow_truncated = (bits & 2U) != 0;
  options.scaled_decode = (bits & 4U) != 0;
  options.jpeg.max_pixels = kMaxPixels;
  options.jpeg.max_scans = kMaxScans;
  options.type = static_cast<decode::ElementType>((bits >> 3U) % 3);
  options.filter = static_cast<decode::Filter>(choices.next() % 5);
  options.size.height = choices.next() % 96U + 1U;
  options.size.width = choices.next() % 96U + 1U;
  options.scale.scale[0] = 0.01F;
  return options;
}

/// Eighths of a pixel, so that boxes have fractions, and up to 32 pixels and a bit, so that they
/// lie within small images and beyond them.
double edge_from(Choices& choices) {
  const double fraction = choices.next() / 8.0;
  return fraction + choices.next() % 64;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Choices choices({data, size});
  const unsigned how = choices.next();
  const bool flip = (how & 1U) != 0;
  const bool planes = (how & 2U) != 0;
  const decode::ResizedCropOptions options = options_from(choices);
  const double left = edge_from(choices);
  const double top = edge_from(choices);
  const double right = left + edge_from(choices);
  const double bottom = top + edge_from(choices);
  std::optional<decode::CropBox> box;
  if ((how & 4U) != 0) box = {left, top, right, bottom};

  const std::size_t channels = decode::channels_of(options.jpeg.mode);
  const std::size_t element = decode::size_of(options.type);
  const std::size_t row = options.size.width * element * (planes ? 1 : channels);
  const std::size_t plane = row * options.size.height;
  // A heap block of exactly the right size each time, so that AddressSanitizer sees its end.
  std::vector<std::uint8_t> fast(plane * (planes ? channels : 1));
  decode::CropTarget target{fast.data(), static_cast<std::ptrdiff_t>(row),
                            planes ? static_cast<std::ptrdiff_t>(plane) : 0};
  const decode::Error error =
      decode::decode_resized_crop(choices.rest(), box, flip, options, target);

  // All kernels agree, also about what is wrong.
  std::vector<std::uint8_t> portable(fast.size());
  target.data = portable.data();
  const decode::Error same = decode::decode_resized_crop(choices.rest(), box, flip, options, target,
                                                         decode::portable_kernels());
  if (error.code != same.code || (!error && fast != portable)) std::abort();

  return 0;
}
