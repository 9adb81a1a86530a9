// The resampler without a decoder: microseconds per image, for each version of its kernels.
//
//   bench_resample WIDTH HEIGHT OUT_HEIGHT OUT_WIDTH
//
// Thread CPU time, the median of 21 images; handing the rows in, a copy each, is part of it, as
// writing them is part of the decoder's work.
#include "workers/decode/resample.h"

#include <ctime>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "workers/decode/kernels.h"

namespace {

namespace decode = stook::decode;

double thread_microseconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) / 1e3;
}

double once(const decode::ResampleShape& shape, const std::vector<std::uint8_t>& source,
            std::vector<std::uint8_t>& out, const decode::Kernels& kernels) {
  const double begin = thread_microseconds();
  decode::Resampler resampler(shape, kernels);
  std::size_t read = 0;
  std::uint8_t* to = out.data();
  decode::StoreRow row;
  while (!resampler.done()) {
    if (const std::uint8_t* const pixels = resampler.next_row()) {
      row.data = to;
      kernels.store_rgb_u8(pixels, shape.out_width, {}, row);
      to += std::size_t{3} * shape.out_width;
      continue;
    }
    const unsigned count = resampler.wanted();
    for (unsigned i = 0; i < count; ++i, ++read)
      std::memcpy(resampler.slots()[i], source.data() + read * shape.row_bytes, shape.row_bytes);
    resampler.added(count);
  }
  return thread_microseconds() - begin;
}

std::uint32_t number(const char* text) {
  return static_cast<std::uint32_t>(std::strtoul(text, nullptr, 10));
}

}  // namespace

int main(int count, char** arguments) {
  decode::ResampleShape shape;
  if (count == 5) {
    shape.width = number(arguments[1]);
    shape.height = number(arguments[2]);
    shape.out_height = number(arguments[3]);
    shape.out_width = number(arguments[4]);
  }
  if (shape.width == 0 || shape.height == 0 || shape.out_height == 0 || shape.out_width == 0) {
    std::fputs("bench_resample WIDTH HEIGHT OUT_HEIGHT OUT_WIDTH\n", stderr);
    return 2;
  }
  shape.right = shape.width;
  shape.bottom = shape.height;
  shape.row_bytes = std::size_t{4} * shape.width;
  std::vector<std::uint8_t> source(shape.row_bytes * shape.height);
  std::minstd_rand random;
  for (std::uint8_t& byte : source) byte = static_cast<std::uint8_t>(random() >> 8U);
  std::vector<std::uint8_t> out(std::size_t{3} * shape.out_width * shape.out_height);

  const auto report = [&](const char* name, const decode::Kernels& kernels) {
    std::vector<double> taken;
    for (int i = 0; i < 21; ++i) taken.push_back(once(shape, source, out, kernels));
    std::sort(taken.begin(), taken.end());
    std::printf("%s %.1f\n", name, taken[taken.size() / 2]);
  };
  if (decode::avx2_kernels() != nullptr) report("AVX2", *decode::avx2_kernels());
  report("portable", decode::portable_kernels());
  return 0;
}
