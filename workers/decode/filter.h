#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace stook::decode {

/// What surrounding samples count for, by their distance. Where an image gets smaller, distances
/// are in samples of the result (the filter gets wider and so keeps out what the result cannot
/// show), otherwise in samples of the source. The functions are those of Pillow's filters of these
/// names.
enum class Filter : std::uint8_t {
  kBox,       // 1 within half a sample
  kBilinear,  // a triangle, one sample to each side
  kHamming,   // the main lobe of a sine under Hamming's window, one sample to each side
  kBicubic,   // Keys' cubic, a = -1/2, two samples to each side
  kLanczos,   // a sine under the main lobe of a wider one, three samples to each side
};

/// The samples that one sample of the result is made of.
struct Span {
  std::uint32_t first = 0;
  std::uint32_t count = 0;
};

/// The weights of one axis, as real numbers.
struct Taps {
  std::vector<Span> spans;      // one for each sample of the result
  std::uint32_t most = 0;       // the longest span
  std::vector<double> weights;  // `most` for each; their sum is 1; those behind a span's end are 0

  const double* of(std::size_t output) const { return weights.data() + output * most; }
};

/// Weights that make `outputs` samples of the part [begin, end] of `inputs` samples, where sample i
/// covers [i, i + 1]. Samples beyond the first and the last do not exist: weights that would fall
/// there go to the others in proportion.
///
/// 0 <= begin < end <= inputs, outputs > 0. Throws std::bad_alloc.
Taps make_taps(Filter filter, double begin, double end, std::uint32_t inputs,
               std::uint32_t outputs);

/// The same as integers: weight = integer / 2^bits. Each span's integers sum to exactly 2^bits, so
/// that an even surface stays what it is.
struct FixedTaps {
  std::vector<Span> spans;
  std::uint32_t most = 0;             // the longest span
  std::uint32_t stride = 0;           // from one span's weights to the next's, a multiple of `pad`
  std::vector<std::int16_t> weights;  // zeros behind a span's end
  int bits = 0;

  const std::int16_t* of(std::size_t output) const { return weights.data() + output * stride; }
};

/// The largest value that a sum of weighted samples out of [low, high] can take, and the smallest.
struct Range {
  double low = 0;
  double high = 0;
};
Range range_of(const Taps& taps, Range samples);

/// As many bits as fit into 16-bit weights, and at most `most_bits`.
FixedTaps quantized(const Taps& taps, int most_bits, std::uint32_t pad);

}  // namespace stook::decode
