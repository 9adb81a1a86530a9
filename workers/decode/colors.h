#pragma once

#include <cstddef>
#include <cstdint>

namespace stook::decode {

/// round(a * b / 255)
constexpr std::uint8_t scaled(unsigned a, unsigned b) {
  return static_cast<std::uint8_t>((a * b + 127) / 255);
}

/// CMYK to RGB in place, `kPixel` bytes from one RGB pixel to the next: 3, or 4 with a fourth byte
/// that says nothing. Files with an Adobe marker hold inverted values (255: no ink), others plain
/// ones.
template <std::size_t kPixel>
void cmyk_to_rgb(std::uint8_t* row, std::uint32_t width, bool inverted) {
  static_assert(kPixel == 3 || kPixel == 4);
  const unsigned flip = inverted ? 0 : 0xFF;
  const std::uint8_t* from = row;
  std::uint8_t* to = row;
  for (std::uint32_t x = 0; x < width; ++x, from += 4, to += kPixel) {
    const unsigned k = from[3] ^ flip;
    const std::uint8_t r = scaled(from[0] ^ flip, k);
    const std::uint8_t g = scaled(from[1] ^ flip, k);
    const std::uint8_t b = scaled(from[2] ^ flip, k);
    to[0] = r;
    to[1] = g;
    to[2] = b;
  }
}

/// RGB to luma in place, in the 16-bit fixed point of libjpeg's own conversion (ITU-R BT.601).
inline void rgb_to_gray(std::uint8_t* row, std::uint32_t width) {
  for (std::uint32_t x = 0; x < width; ++x) {
    const std::uint8_t* const p = row + std::size_t{3} * x;
    row[x] =
        static_cast<std::uint8_t>((19595U * p[0] + 38470U * p[1] + 7471U * p[2] + 32768U) >> 16U);
  }
}

}  // namespace stook::decode
