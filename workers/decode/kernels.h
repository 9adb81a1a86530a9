#pragma once

#include <cstddef>
#include <cstdint>

#include "workers/decode/filter.h"

namespace stook::decode {

/// Fraction bits of samples between the two passes. Not clamped between them: filters with negative
/// weights overshoot, and 16 bits hold -512 to 512.
constexpr int kFractionBits = 6;

/// Bytes and samples that the kernels may read and write beyond what they are told to; the values
/// there change no result.
constexpr std::size_t kSlack = 32;

/// How a row of pixels is stored; for each of the four channels (of which the fourth is never
/// stored) value = byte * scale + offset in single precision, where the element is no byte.
struct StoreScale {
  float scale[4] = {1, 1, 1, 1};
  float offset[4] = {0, 0, 0, 0};
};

/// Where a row goes: channel c of pixel x at data + c * channel_stride + x * (the rest of a pixel).
/// With channel_stride 0 the channels of a pixel lie together.
struct StoreRow {
  void* data = nullptr;
  std::ptrdiff_t channel_stride = 0;  // bytes
};

/// The inner loops, in one version for each kind of processor. All versions give the same bits.
/// Rows between the passes and of the result have 1 or 4 channels.
struct Kernels {
  /// out[i] = sum over k of rows[k][i] * weights[k], rounded to kFractionBits and saturated.
  void (*blend_rows)(const std::uint8_t* const* rows, const std::int16_t* weights,
                     std::uint32_t count, int bits, std::size_t samples, std::int16_t* out);

  /// Pixel i of the result from those of `in` that its span names, rounded and clamped to a byte.
  /// Weights are padded to multiples of kPad.
  static constexpr std::uint32_t kPad = 8;
  void (*blend_columns_1)(const std::int16_t* in, const FixedTaps& taps, std::uint8_t* out);
  void (*blend_columns_4)(const std::int16_t* in, const FixedTaps& taps, std::uint8_t* out);

  // One row of pixels to where it belongs: of 4 channels the first three, or the one there is.
  using Store = void(const std::uint8_t* pixels, std::size_t width, const StoreScale& scale,
                     const StoreRow& to);
  Store* store_rgb_u8;  // channels together or apart, by channel_stride
  Store* store_rgb_f32;
  Store* store_rgb_f16;
  Store* store_gray_u8;
  Store* store_gray_f32;
  Store* store_gray_f16;
};

/// For any processor.
const Kernels& portable_kernels();

/// For x86-64 with AVX2 and F16C; null where this processor, or this build, is another one.
const Kernels* avx2_kernels();

/// The fastest that this processor has. The environment variable STOOK_SIMD=portable, looked at
/// once, keeps to the portable ones.
const Kernels& best_kernels();

/// Nearest half-precision number, ties to even, as IEEE 754 and F16C have it.
std::uint16_t half_of(float value);

}  // namespace stook::decode
