#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "workers/decode/filter.h"
#include "workers/decode/kernels.h"

namespace stook::decode {

/// What a resampler makes of what.
struct ResampleShape {
  std::uint32_t width = 0;  // of the source, in pixels; both at least 1
  std::uint32_t height = 0;
  double left = 0;  // the part of it that becomes the result; within the source
  double top = 0;
  double right = 0;
  double bottom = 0;
  std::uint32_t out_width = 0;  // of the result; both at least 1
  std::uint32_t out_height = 0;
  unsigned channels = 4;  // 1 or 4 bytes a pixel; of 4, the last is carried along and means nothing
  Filter filter = Filter::kBilinear;
  bool flip = false;  // mirrored left to right

  std::size_t row_bytes = 0;  // of the rows that are handed in: what is reserved for each
  std::size_t skip = 0;       // bytes in front of the source's first pixel in each
};

/// Makes an image of another size out of rows of pixels, as they come: source rows go in from the
/// top, rows of the result come out as soon as theirs are there, and only those rows of the source
/// are kept that are still to be used. Down each column first, then along each row; between the
/// two, 16 bits and no clamping.
///
/// Rounded results are within 1 of the exact ones, and the same for all kernels. One thread at a
/// time; needs no GIL; throws std::bad_alloc where it is made, and nowhere else.
class Resampler {
 public:
  Resampler(const ResampleShape& shape, const Kernels& kernels);

  /// Next row of the result, in 1 or 4 channels and good until the next call; null where rows of
  /// the source are missing, or all rows have come out.
  const std::uint8_t* next_row();

  /// Whether all rows have come out.
  bool done() const { return made_ == shape_.out_height; }

  /// How many source rows can be taken now. 0 only where `next_row` has one to give, or is done.
  unsigned wanted() const;

  /// Where the next `wanted()` source rows go: `row_bytes` each.
  std::uint8_t* const* slots();

  /// The next `count` rows lie in their slots.
  void added(unsigned count);

 private:
  void plan_rows();
  void add_to_sums();
  void blend_sums(std::uint32_t row);

  // Spans longer than this are added up in double precision: integers of 16 bits lose too much,
  // and so many rows are not to be kept.
  static constexpr std::uint32_t kMostTaps = 64;
  // Rows that are asked for at a time, so that the decoder and the filters keep their caches.
  static constexpr std::uint32_t kRowsAtATime = 16;

  ResampleShape shape_;
  const Kernels& kernels_;
  Taps down_;    // one for each row of the result
  Taps across_;  // one for each pixel of a row
  bool few_down_ = true;
  bool few_across_ = true;
  FixedTaps fixed_down_;    // where there are few
  FixedTaps fixed_across_;  // where there are few
  std::vector<std::uint32_t>
      oldest_;  // for each row of the result, the first that it or later need

  std::size_t samples_ = 0;  // of a source row
  std::size_t slot_bytes_ = 0;
  std::uint32_t ring_ = 0;  // slots
  std::vector<std::uint8_t> rows_;
  std::vector<std::uint8_t*> slots_;
  std::vector<const std::uint8_t*> inputs_;
  std::uint32_t taken_ = 0;   // source rows that have come in
  std::uint32_t summed_ = 0;  // source rows that are in the sums
  std::uint32_t made_ = 0;    // rows of the result that have come out
  std::uint32_t open_ = 0;    // sums that are needed at a time
  std::vector<double> sums_;
  std::vector<std::int16_t> blended_;
  std::vector<std::uint8_t> result_;
};

}  // namespace stook::decode
