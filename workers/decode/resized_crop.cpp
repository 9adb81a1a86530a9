#include "workers/decode/resized_crop.h"

#include <cmath>
#include <cstdio>
#include <new>
#include <string>

#include "workers/decode/resample.h"

namespace stook::decode {
namespace {

/// A box that does not lie within the image, or is none. Not-a-number is never within.
Error bad_box(const CropBox& box, const JpegInfo& info) {
  char text[160];
  std::snprintf(text, sizeof(text), "box (%.17g, %.17g, %.17g, %.17g)", box.left, box.top,
                box.right, box.bottom);
  return {ErrorCode::kBadBox,
          std::string(text) + " is not a box (left, top, right, bottom) within " +
              std::to_string(info.width) + " x " + std::to_string(info.height) + " pixels"};
}

bool lies_within(const CropBox& box, const JpegInfo& info) {
  return box.left >= 0 && box.left < box.right && box.right <= info.width &&  //
         box.top >= 0 && box.top < box.bottom && box.bottom <= info.height;
}

/// How much smaller the image may be decoded.
unsigned denominator_for(const CropBox& box, ImageSize size) {
  for (const unsigned denominator : {8U, 4U, 2U}) {
    if (box.right - box.left >= static_cast<double>(denominator) * size.width &&
        box.bottom - box.top >= static_cast<double>(denominator) * size.height) {
      return denominator;
    }
  }
  return 1;
}

Kernels::Store* store_of(const Kernels& kernels, ElementType type, PixelMode mode) {
  const bool rgb = mode == PixelMode::kRgb;
  switch (type) {
    case ElementType::kFloat32:
      return rgb ? kernels.store_rgb_f32 : kernels.store_gray_f32;
    case ElementType::kFloat16:
      return rgb ? kernels.store_rgb_f16 : kernels.store_gray_f16;
    default:
      return rgb ? kernels.store_rgb_u8 : kernels.store_gray_u8;
  }
}

/// Everything behind the header. Throws std::bad_alloc.
Error decode_part(JpegDecoder& decoder, const CropBox& box, bool flip,
                  const ResizedCropOptions& options, const CropTarget& target,
                  const Kernels& kernels) {
  const unsigned denominator = options.scaled_decode ? denominator_for(box, options.size) : 1;
  const double scale = 1.0 / denominator;  // a power of two: exact
  JpegWindow window;
  window.denominator = denominator;
  window.left = static_cast<std::uint32_t>(std::floor(box.left * scale));
  window.top = static_cast<std::uint32_t>(std::floor(box.top * scale));
  window.right = static_cast<std::uint32_t>(std::ceil(box.right * scale));
  window.bottom = static_cast<std::uint32_t>(std::ceil(box.bottom * scale));
  WindowRows rows;
  if (Error error = decoder.begin_window(options.jpeg, window, &rows); error) return error;

  ResampleShape shape;
  shape.width = window.right - window.left;
  shape.height = window.bottom - window.top;
  shape.left = box.left * scale - window.left;
  shape.top = box.top * scale - window.top;
  shape.right = box.right * scale - window.left;
  shape.bottom = box.bottom * scale - window.top;
  shape.out_width = options.size.width;
  shape.out_height = options.size.height;
  shape.channels = static_cast<unsigned>(rows.pixel_bytes);
  shape.filter = options.filter;
  shape.flip = flip;
  shape.row_bytes = rows.bytes;
  shape.skip = rows.skip;
  Resampler resampler(shape, kernels);

  Kernels::Store* const store = store_of(kernels, options.type, options.jpeg.mode);
  StoreRow to{target.data, target.channel_stride};
  std::uint8_t* out = target.data;
  while (true) {
    while (const std::uint8_t* const row = resampler.next_row()) {
      to.data = out;
      store(row, options.size.width, options.scale, to);
      out += target.row_stride;
    }
    if (resampler.done()) break;
    const unsigned count = resampler.wanted();
    if (Error error = decoder.read_window(resampler.slots(), count); error) return error;
    resampler.added(count);
  }
  return decoder.end_window();
}

}  // namespace

Error decode_resized_crop(std::span<const std::uint8_t> jpeg, const std::optional<CropBox>& box,
                          bool flip, const ResizedCropOptions& options, const CropTarget& target,
                          const Kernels& kernels) {
  try {
    JpegDecoder decoder(jpeg);
    if (Error error = decoder.open(); error) return error;
    ImageSize stored;
    if (Error error = decoder.output_size(options.jpeg, &stored); error) return error;
    const CropBox whole{0, 0, static_cast<double>(stored.width),
                        static_cast<double>(stored.height)};
    const CropBox& part = box ? *box : whole;
    if (!lies_within(part, decoder.info())) return bad_box(part, decoder.info());
    return decode_part(decoder, part, flip, options, target, kernels);
  } catch (const std::bad_alloc&) {
    return {ErrorCode::kOutOfMemory, "no memory for the rows of the image"};
  }
}

}  // namespace stook::decode
