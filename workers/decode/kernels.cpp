#include "workers/decode/kernels.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <string_view>

namespace stook::decode {
namespace {

void blend_rows(const std::uint8_t* const* rows, const std::int16_t* weights, std::uint32_t count,
                int bits, std::size_t samples, std::int16_t* out) {
  // A block of sums stays in registers and the nearest cache while rows pass by.
  constexpr std::size_t kBlock = 64;
  const int shift = bits - kFractionBits;
  for (std::size_t start = 0; start < samples; start += kBlock) {
    const std::size_t n = std::min(kBlock, samples - start);
    std::int32_t sums[kBlock];
    std::fill_n(sums, kBlock, std::int32_t{1} << (shift - 1));
    for (std::uint32_t k = 0; k < count; ++k) {
      const std::uint8_t* const row = rows[k] + start;
      const std::int32_t weight = weights[k];
      for (std::size_t i = 0; i < n; ++i) sums[i] += row[i] * weight;
    }
    for (std::size_t i = 0; i < n; ++i) {
      out[start + i] = static_cast<std::int16_t>(
          std::clamp<std::int32_t>(sums[i] >> shift, INT16_MIN, INT16_MAX));
    }
  }
}

std::uint8_t to_byte(std::int32_t value) {
  return static_cast<std::uint8_t>(std::clamp<std::int32_t>(value, 0, UINT8_MAX));
}

template <std::uint32_t kChannels>
void blend_columns(const std::int16_t* in, const FixedTaps& taps, std::uint8_t* out) {
  const int shift = taps.bits + kFractionBits;
  const std::int16_t* weights = taps.weights.data();
  for (const Span& span : taps.spans) {
    std::int32_t sums[kChannels];
    std::fill_n(sums, kChannels, std::int32_t{1} << (shift - 1));
    const std::int16_t* from = in + std::size_t{span.first} * kChannels;
    for (std::uint32_t k = 0; k < span.count; ++k) {
      for (std::uint32_t c = 0; c < kChannels; ++c) sums[c] += *from++ * weights[k];
    }
    for (const std::int32_t sum : sums) *out++ = to_byte(sum >> shift);
    weights += taps.stride;
  }
}

struct AsIs {
  using Element = std::uint8_t;
  static Element of(std::uint8_t byte, float, float) { return byte; }
};
struct AsSingle {
  using Element = float;
  static Element of(std::uint8_t byte, float scale, float offset) {
    const float product = static_cast<float>(byte) * scale;
    return product + offset;
  }
};
struct AsHalf {
  using Element = std::uint16_t;
  static Element of(std::uint8_t byte, float scale, float offset) {
    return half_of(AsSingle::of(byte, scale, offset));
  }
};

template <typename As>
void store_rgb(const std::uint8_t* pixels, std::size_t width, const StoreScale& scale,
               const StoreRow& to) {
  using Element = typename As::Element;
  const bool apart = to.channel_stride != 0;
  const std::size_t step = apart ? 1 : 3;
  for (unsigned c = 0; c < 3; ++c) {
    auto* out = static_cast<Element*>(to.data) + (apart ? 0 : c);
    if (apart) {
      out = reinterpret_cast<Element*>(static_cast<std::uint8_t*>(to.data) + c * to.channel_stride);
    }
    for (std::size_t x = 0; x < width; ++x) {
      out[x * step] = As::of(pixels[4 * x + c], scale.scale[c], scale.offset[c]);
    }
  }
}

template <typename As>
void store_gray(const std::uint8_t* pixels, std::size_t width, const StoreScale& scale,
                const StoreRow& to) {
  auto* const out = static_cast<typename As::Element*>(to.data);
  for (std::size_t x = 0; x < width; ++x)
    out[x] = As::of(pixels[x], scale.scale[0], scale.offset[0]);
}

}  // namespace

std::uint16_t half_of(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16U & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  std::uint32_t half = 0;
  if (magnitude > 0x7F800000U) {  // not a number: stays one, quiet
    half = 0x7E00U | (magnitude >> 13U & 0x3FFU);
  } else if (magnitude >= 0x477FF000U) {  // rounds to 65,536 or more
    half = 0x7C00U;
  } else if (magnitude >= 0x38800000U) {  // normal: 10 bits of the fraction, half of the rest added
    half = (magnitude - 0x38000000U + 0xFFFU + (magnitude >> 13U & 1U)) >> 13U;
  } else {  // subnormal: a multiple of 2^-24, which adding 0.5 rounds to
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    half = std::bit_cast<std::uint32_t>(shifted) - 0x3F000000U;
  }
  return static_cast<std::uint16_t>(sign | half);
}

const Kernels& portable_kernels() {
  static constexpr Kernels kernels{
      .blend_rows = blend_rows,
      .blend_columns_1 = blend_columns<1>,
      .blend_columns_4 = blend_columns<4>,
      .store_rgb_u8 = store_rgb<AsIs>,
      .store_rgb_f32 = store_rgb<AsSingle>,
      .store_rgb_f16 = store_rgb<AsHalf>,
      .store_gray_u8 = store_gray<AsIs>,
      .store_gray_f32 = store_gray<AsSingle>,
      .store_gray_f16 = store_gray<AsHalf>,
  };
  return kernels;
}

const Kernels& best_kernels() {
  static const Kernels& best = []() -> const Kernels& {
    const char* const wanted = std::getenv("STOOK_SIMD");
    const Kernels* const avx2 = avx2_kernels();
    const bool portable = wanted != nullptr && std::string_view(wanted) == "portable";
    return portable || avx2 == nullptr ? portable_kernels() : *avx2;
  }();
  return best;
}

}  // namespace stook::decode
