#include "workers/decode/kernels.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>

#include <cstring>

#define STOOK_AVX2 __attribute__((target("avx2,f16c")))

namespace stook::decode {
namespace {

STOOK_AVX2 __m128i load_16(const void* from) {
  return _mm_loadu_si128(static_cast<const __m128i*>(from));
}

STOOK_AVX2 __m256i load_32(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

STOOK_AVX2 void store_16(void* to, __m128i value) {
  _mm_storeu_si128(static_cast<__m128i*>(to), value);
}

STOOK_AVX2 void store_32(void* to, __m256i value) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), value);
}

std::int32_t load_int(const void* from) {
  std::int32_t value = 0;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

/// Two weights, side by side as multiply-add wants them; the second is 0 behind the last.
std::int32_t pair_of(const std::int16_t* weights, std::uint32_t k, std::uint32_t count) {
  const std::uint32_t second =
      k + 1 < count ? static_cast<std::uint32_t>(static_cast<std::uint16_t>(weights[k + 1])) : 0U;
  return static_cast<std::int32_t>(second << 16U | static_cast<std::uint16_t>(weights[k]));
}

/// 32 samples of two rows, times the weights of the two: sums in order, eight in each.
struct Sums {
  __m256i parts[4];
};

STOOK_AVX2 Sums two_rows(const std::uint8_t* first, const std::uint8_t* second, __m256i pair,
                         Sums sums) {
  // Their bytes side by side, widened, multiplied and added in pairs. Widening takes bytes 0-7 and
  // 8-15 of a half apart, so that sums come out in order.
  const __m256i zero = _mm256_setzero_si256();
  const __m256i a = load_32(first);
  const __m256i b = load_32(second);
  const __m256i low = _mm256_unpacklo_epi8(a, b);
  const __m256i high = _mm256_unpackhi_epi8(a, b);
  const __m256i wide[4] = {_mm256_unpacklo_epi8(low, zero), _mm256_unpackhi_epi8(low, zero),
                           _mm256_unpacklo_epi8(high, zero), _mm256_unpackhi_epi8(high, zero)};
  for (int i = 0; i < 4; ++i)
    sums.parts[i] = _mm256_add_epi32(sums.parts[i], _mm256_madd_epi16(wide[i], pair));
  return sums;
}

STOOK_AVX2 void store_sums(const Sums& sums, __m128i shifts, std::int16_t* out) {
  __m256i shifted[4];
  for (int i = 0; i < 4; ++i) shifted[i] = _mm256_sra_epi32(sums.parts[i], shifts);
  // Lane 0 of these holds samples 0-7 and 8-15, lane 1 holds 16-23 and 24-31.
  const __m256i first = _mm256_packs_epi32(shifted[0], shifted[1]);
  const __m256i second = _mm256_packs_epi32(shifted[2], shifted[3]);
  store_32(out, _mm256_permute2x128_si256(first, second, 0x20));
  store_32(out + 16, _mm256_permute2x128_si256(first, second, 0x31));
}

// Two rows at a time. Most images are made larger or hardly smaller, from two or three rows, so
// the weights of those stay in registers.
STOOK_AVX2 void blend_rows(const std::uint8_t* const* rows, const std::int16_t* weights,
                           std::uint32_t count, int bits, std::size_t samples, std::int16_t* out) {
  const int shift = bits - kFractionBits;
  const __m256i half = _mm256_set1_epi32(1 << (shift - 1));
  const __m128i shifts = _mm_cvtsi32_si128(shift);
  const Sums none{{half, half, half, half}};
  const __m256i pair0 = _mm256_set1_epi32(pair_of(weights, 0, count));
  const std::uint8_t* const row0 = rows[0];
  const std::uint8_t* const row1 = rows[count > 1 ? 1 : 0];
  if (count <= 2) {
    for (std::size_t start = 0; start < samples; start += 32)
      store_sums(two_rows(row0 + start, row1 + start, pair0, none), shifts, out + start);
    return;
  }
  const __m256i pair1 = _mm256_set1_epi32(pair_of(weights, 2, count));
  const std::uint8_t* const row2 = rows[2];
  const std::uint8_t* const row3 = rows[count > 3 ? 3 : 2];
  for (std::size_t start = 0; start < samples; start += 32) {
    Sums sums = two_rows(row0 + start, row1 + start, pair0, none);
    sums = two_rows(row2 + start, row3 + start, pair1, sums);
    for (std::uint32_t k = 4; k < count; k += 2) {
      const __m256i pair = _mm256_set1_epi32(pair_of(weights, k, count));
      sums = two_rows(rows[k] + start, rows[k + 1 < count ? k + 1 : k] + start, pair, sums);
    }
    store_sums(sums, shifts, out + start);
  }
}

/// Four pixels of four samples times four weights, added up to one pixel per half.
STOOK_AVX2 __m256i four_pixels(const std::int16_t* in, const std::int16_t* weights) {
  // In each half, sample c of the first pixel beside sample c of the second.
  const __m256i pairs = _mm256_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15,  //
                                         0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
  const __m256i halves = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
  const __m128i four = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(weights));
  const __m256i spread = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(four), halves);
  return _mm256_madd_epi16(_mm256_shuffle_epi8(load_32(in), pairs), spread);
}

/// The samples of one pixel, before they are rounded; of kPairs pairs of weights, or with 0 of as
/// many as the span has.
template <int kPairs>
STOOK_AVX2 __m128i column_sum(const std::int16_t* in, const Span& span,
                              const std::int16_t* weights) {
  const std::int16_t* const from = in + std::size_t{span.first} * 4;
  if constexpr (kPairs == 0) {
    __m256i sum = four_pixels(from, weights);
    for (std::uint32_t k = 4; k < span.count; k += 4)
      sum = _mm256_add_epi32(sum, four_pixels(from + std::size_t{k} * 4, weights + k));
    return _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  } else {
    const __m128i pairs = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    __m128i sum = _mm_setzero_si128();
    for (int k = 0; k < kPairs; ++k) {
      const __m128i two = _mm_shuffle_epi8(load_16(from + 8 * k), pairs);
      sum = _mm_add_epi32(sum, _mm_madd_epi16(two, _mm_set1_epi32(load_int(weights + 2 * k))));
    }
    return sum;
  }
}

template <int kPairs>
STOOK_AVX2 void blend_columns_of(const std::int16_t* in, const FixedTaps& taps, std::uint8_t* out) {
  const int shift = taps.bits + kFractionBits;
  const __m128i half = _mm_set1_epi32(1 << (shift - 1));
  const __m128i shifts = _mm_cvtsi32_si128(shift);
  const std::size_t count = taps.spans.size();
  const auto rounded = [&](std::size_t i) STOOK_AVX2 {
    const __m128i sum = column_sum<kPairs>(in, taps.spans[i], taps.of(i));
    return _mm_sra_epi32(_mm_add_epi32(sum, half), shifts);
  };
  std::size_t i = 0;
  for (; i + 4 <= count; i += 4) {  // packed together
    const __m128i low = _mm_packs_epi32(rounded(i), rounded(i + 1));
    const __m128i high = _mm_packs_epi32(rounded(i + 2), rounded(i + 3));
    store_16(out + 4 * i, _mm_packus_epi16(low, high));
  }
  for (; i < count; ++i) {
    const __m128i words = _mm_packs_epi32(rounded(i), rounded(i));
    const std::int32_t pixel = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    std::memcpy(out + 4 * i, &pixel, sizeof(pixel));
  }
}

// Where an image is made larger, or hardly smaller, all spans are short: no branch asks how short.
STOOK_AVX2 void blend_columns_4(const std::int16_t* in, const FixedTaps& taps, std::uint8_t* out) {
  const auto blend = taps.most <= 2   ? blend_columns_of<1>
                     : taps.most <= 4 ? blend_columns_of<2>
                                      : blend_columns_of<0>;
  blend(in, taps, out);
}

STOOK_AVX2 void blend_columns_1(const std::int16_t* in, const FixedTaps& taps, std::uint8_t* out) {
  const int shift = taps.bits + kFractionBits;
  const std::int16_t* weights = taps.weights.data();
  for (const Span& span : taps.spans) {
    const std::int16_t* const from = in + span.first;
    __m128i sum = _mm_madd_epi16(load_16(from), load_16(weights));
    for (std::uint32_t k = 8; k < span.count; k += 8) {
      sum = _mm_add_epi32(sum, _mm_madd_epi16(load_16(from + k), load_16(weights + k)));
    }
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1));
    const std::int32_t value = (_mm_cvtsi128_si32(sum) + (1 << (shift - 1))) >> shift;
    *out++ = static_cast<std::uint8_t>(value < 0 ? 0 : value > UINT8_MAX ? UINT8_MAX : value);
    weights += taps.stride;
  }
}

/// Four bytes as single precision, scaled.
STOOK_AVX2 __m128 four_scaled(std::int32_t bytes, __m128 scale, __m128 offset) {
  const __m128i wide = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(bytes));
  return _mm_add_ps(_mm_mul_ps(_mm_cvtepi32_ps(wide), scale), offset);
}

STOOK_AVX2 __m256 eight_scaled(__m256i wide, float scale, float offset) {
  return _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(wide), _mm256_set1_ps(scale)),
                       _mm256_set1_ps(offset));
}

constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// The last pixels of a row, for which there is no room to write more than they are.
template <std::size_t kChannels>
StoreRow behind(const StoreRow& to, std::size_t pixels, std::size_t element) {
  const std::size_t step = (to.channel_stride != 0 ? 1 : kChannels) * element;
  return {static_cast<std::uint8_t*>(to.data) + pixels * step, to.channel_stride};
}

std::uint8_t* plane(const StoreRow& to, unsigned channel) {
  return static_cast<std::uint8_t*>(to.data) + channel * to.channel_stride;
}

STOOK_AVX2 void store_rgb_u8(const std::uint8_t* pixels, std::size_t width, const StoreScale& scale,
                             const StoreRow& to) {
  std::size_t x = 0;
  if (to.channel_stride == 0) {
    // 16 bytes of which 12 count: the others fall on the pixels that come next.
    const __m128i packed = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    auto* const out = static_cast<std::uint8_t*>(to.data);
    for (; x + 6 <= width; x += 4) {
      store_16(out + 3 * x, _mm_shuffle_epi8(load_16(pixels + 4 * x), packed));
    }
  } else {
    const __m128i sorted = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (; x + 16 <= width; x += 16) {
      const std::uint8_t* const from = pixels + 4 * x;
      const __m128i p0 = _mm_shuffle_epi8(load_16(from), sorted);
      const __m128i p1 = _mm_shuffle_epi8(load_16(from + 16), sorted);
      const __m128i p2 = _mm_shuffle_epi8(load_16(from + 32), sorted);
      const __m128i p3 = _mm_shuffle_epi8(load_16(from + 48), sorted);
      const __m128i rg0 = _mm_unpacklo_epi32(p0, p1);
      const __m128i rg1 = _mm_unpacklo_epi32(p2, p3);
      const __m128i b0 = _mm_unpackhi_epi32(p0, p1);
      const __m128i b1 = _mm_unpackhi_epi32(p2, p3);
      store_16(plane(to, 0) + x, _mm_unpacklo_epi64(rg0, rg1));
      store_16(plane(to, 1) + x, _mm_unpackhi_epi64(rg0, rg1));
      store_16(plane(to, 2) + x, _mm_unpacklo_epi64(b0, b1));
    }
  }
  portable_kernels().store_rgb_u8(pixels + 4 * x, width - x, scale, behind<3>(to, x, 1));
}

template <bool kHalf>
STOOK_AVX2 void store_rgb_real(const std::uint8_t* pixels, std::size_t width,
                               const StoreScale& scale, const StoreRow& to) {
  constexpr std::size_t kElement = kHalf ? sizeof(std::uint16_t) : sizeof(float);
  std::size_t x = 0;
  if (to.channel_stride == 0) {
    // 4 elements of which 3 count: the last falls on the pixel that comes next.
    auto* out = static_cast<std::uint8_t*>(to.data);
    const __m128 factor = _mm_loadu_ps(scale.scale);
    const __m128 offset = _mm_loadu_ps(scale.offset);
    for (; x + 2 <= width; ++x, out += 3 * kElement) {
      const __m128 values = four_scaled(load_int(pixels + 4 * x), factor, offset);
      if constexpr (kHalf) {
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_cvtps_ph(values, kNearest));
      } else {
        _mm_storeu_ps(reinterpret_cast<float*>(out), values);
      }
    }
  } else {
    const __m256i low = _mm256_set1_epi32(0xFF);
    for (; x + 8 <= width; x += 8) {
      const __m256i eight = load_32(pixels + 4 * x);
      const __m256i channels[] = {_mm256_and_si256(eight, low),
                                  _mm256_and_si256(_mm256_srli_epi32(eight, 8), low),
                                  _mm256_and_si256(_mm256_srli_epi32(eight, 16), low)};
      for (unsigned c = 0; c < 3; ++c) {
        const __m256 values = eight_scaled(channels[c], scale.scale[c], scale.offset[c]);
        std::uint8_t* const out = plane(to, c) + x * kElement;
        if constexpr (kHalf) {
          store_16(out, _mm256_cvtps_ph(values, kNearest));
        } else {
          _mm256_storeu_ps(reinterpret_cast<float*>(out), values);
        }
      }
    }
  }
  const Kernels& rest = portable_kernels();
  (kHalf ? rest.store_rgb_f16 : rest.store_rgb_f32)(pixels + 4 * x, width - x, scale,
                                                    behind<3>(to, x, kElement));
}

template <bool kHalf>
STOOK_AVX2 void store_gray_real(const std::uint8_t* pixels, std::size_t width,
                                const StoreScale& scale, const StoreRow& to) {
  constexpr std::size_t kElement = kHalf ? sizeof(std::uint16_t) : sizeof(float);
  std::size_t x = 0;
  for (; x + 8 <= width; x += 8) {
    const __m256i wide =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(pixels + x)));
    const __m256 values = eight_scaled(wide, scale.scale[0], scale.offset[0]);
    std::uint8_t* const out = plane(to, 0) + x * kElement;
    if constexpr (kHalf) {
      store_16(out, _mm256_cvtps_ph(values, kNearest));
    } else {
      _mm256_storeu_ps(reinterpret_cast<float*>(out), values);
    }
  }
  const Kernels& rest = portable_kernels();
  (kHalf ? rest.store_gray_f16 : rest.store_gray_f32)(pixels + x, width - x, scale,
                                                      behind<1>(to, x, kElement));
}

}  // namespace

const Kernels* avx2_kernels() {
  static const Kernels kernels{
      .blend_rows = blend_rows,
      .blend_columns_1 = blend_columns_1,
      .blend_columns_4 = blend_columns_4,
      .store_rgb_u8 = store_rgb_u8,
      .store_rgb_f32 = store_rgb_real<false>,
      .store_rgb_f16 = store_rgb_real<true>,
      .store_gray_u8 = portable_kernels().store_gray_u8,
      .store_gray_f32 = store_gray_real<false>,
      .store_gray_f16 = store_gray_real<true>,
  };
  // The builtin also asks whether the system saves the wide registers. It does not know F16C by
  // name with every compiler.
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  const bool half = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & unsigned{bit_F16C}) != 0;
  return half && __builtin_cpu_supports("avx2") != 0 ? &kernels : nullptr;
}

}  // namespace stook::decode

#else

namespace stook::decode {

const Kernels* avx2_kernels() { return nullptr; }

}  // namespace stook::decode

#endif
