#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "workers/decode/error.h"
#include "workers/decode/filter.h"
#include "workers/decode/jpeg.h"
#include "workers/decode/kernels.h"

namespace stook::decode {

/// A rectangle of the stored image: pixel (x, y) covers [x, x + 1] x [y, y + 1].
struct CropBox {
  double left = 0;
  double top = 0;
  double right = 0;
  double bottom = 0;
};

enum class ElementType : std::uint8_t { kUint8, kFloat32, kFloat16 };

constexpr std::size_t size_of(ElementType type) {
  return type == ElementType::kUint8 ? 1 : type == ElementType::kFloat32 ? 4 : 2;
}

/// What is to be made of every image alike.
struct ResizedCropOptions {
  JpegOptions jpeg;  // without apply_orientation
  ImageSize size;    // of the result; both at least 1
  Filter filter = Filter::kBilinear;
  /// Lets libjpeg shrink the image by 2, 4 or 8 while decoding, as long as the box still has as
  /// many pixels as the result, both ways.
  bool scaled_decode = true;
  ElementType type = ElementType::kUint8;
  StoreScale scale;  // of elements that are not bytes
};

/// Memory for one result. Without `channel_stride` the channels of a pixel lie together.
struct CropTarget {
  std::uint8_t* data = nullptr;
  std::ptrdiff_t row_stride = 0;      // bytes; may be negative or leave gaps
  std::ptrdiff_t channel_stride = 0;  // bytes, from one channel's plane to the next
};

/// Decodes the part of a JPEG in `box` (the whole where there is none) to the size that `options`
/// name, mirrored left to right where `flip` says so.
///
/// Only what the box needs is decoded, and of that only the rows that are being filtered are kept.
/// Pixels beyond those that the box touches have no influence. Any thread; never blocks; needs no
/// GIL. After an error the target's content is undefined.
Error decode_resized_crop(std::span<const std::uint8_t> jpeg, const std::optional<CropBox>& box,
                          bool flip, const ResizedCropOptions& options, const CropTarget& target,
                          const Kernels& kernels = best_kernels());

}  // namespace stook::decode
