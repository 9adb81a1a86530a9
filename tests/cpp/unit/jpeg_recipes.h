// JPEG files made on the spot, in every kind that libjpeg-turbo can write.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>  // jpeglib.h uses FILE and size_t without including their headers
#include <cstdlib>
#include <vector>

#include <jpeglib.h>

namespace stook::decode {

using Bytes = std::vector<std::uint8_t>;

struct Recipe {
  unsigned width = 17;
  unsigned height = 13;
  J_COLOR_SPACE from = JCS_RGB;     // what the samples are
  J_COLOR_SPACE coded = JCS_YCbCr;  // what the file holds
  int h = 2;                        // sampling factors of the first component; the others have 1
  int v = 2;
  bool progressive = false;
  bool all_bits_scans = false;  // progressive, in one scan of DC and one of AC per component
  bool arithmetic = false;
  int restart_rows = 0;
  bool adobe_marker = false;
  bool tables = true;
  bool smooth = false;  // without noise and jumps
};

inline int components_of(J_COLOR_SPACE space) {
  if (space == JCS_GRAYSCALE) return 1;
  return space == JCS_CMYK ? 4 : 3;
}

/// Slow waves, as large areas of photographs are.
inline Bytes smooth_samples(unsigned width, unsigned height, int channels) {
  Bytes pixels;
  for (unsigned y = 0; y < height; ++y) {
    for (unsigned x = 0; x < width; ++x) {
      for (int c = 0; c < channels; ++c) {
        const double wave = std::sin(0.04 * x + c) + std::cos(0.05 * y - 0.02 * x - c);
        pixels.push_back(static_cast<std::uint8_t>(127.5 + 60 * wave));
      }
    }
  }
  return pixels;
}

/// Smooth colours with some noise, so that neither is a channel like another nor a row like the
/// next.
inline Bytes samples(unsigned width, unsigned height, int channels) {
  Bytes pixels(std::size_t{width} * height * static_cast<unsigned>(channels));
  std::uint32_t noise = 12345;
  std::size_t i = 0;
  for (unsigned y = 0; y < height; ++y) {
    for (unsigned x = 0; x < width; ++x) {
      for (int c = 0; c < channels; ++c) {
        noise = noise * 1664525U + 1013904223U;
        pixels[i++] = static_cast<std::uint8_t>(x * 11 + y * (7U + static_cast<unsigned>(c) * 5U) +
                                                static_cast<unsigned>(c) * 60 + (noise >> 28U));
      }
    }
  }
  return pixels;
}

inline Bytes encode(const Recipe& recipe) {
  const int channels = components_of(recipe.from);
  Bytes pixels = (recipe.smooth ? smooth_samples : samples)(recipe.width, recipe.height, channels);
  jpeg_compress_struct cinfo{};
  jpeg_error_mgr errors{};
  cinfo.err = jpeg_std_error(&errors);
  jpeg_create_compress(&cinfo);
  unsigned char* memory = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&cinfo, &memory, &size);
  cinfo.image_width = recipe.width;
  cinfo.image_height = recipe.height;
  cinfo.input_components = channels;
  cinfo.in_color_space = recipe.from;
  jpeg_set_defaults(&cinfo);
  jpeg_set_colorspace(&cinfo, recipe.coded);
  jpeg_set_quality(&cinfo, 85, TRUE);
  for (int c = 0; c < cinfo.num_components; ++c) {
    const bool full = c == 0 || c == 3;
    cinfo.comp_info[c].h_samp_factor = full ? recipe.h : 1;
    cinfo.comp_info[c].v_samp_factor = full ? recipe.v : 1;
  }
  if (recipe.progressive) jpeg_simple_progression(&cinfo);
  const jpeg_scan_info all_bits[] = {{3, {0, 1, 2, 0}, 0, 0, 0, 0},
                                     {1, {0, 0, 0, 0}, 1, 63, 0, 0},
                                     {1, {1, 0, 0, 0}, 1, 63, 0, 0},
                                     {1, {2, 0, 0, 0}, 1, 63, 0, 0}};
  if (recipe.all_bits_scans) {
    cinfo.scan_info = all_bits;
    cinfo.num_scans = 4;
  }
  cinfo.arith_code = recipe.arithmetic ? TRUE : FALSE;
  cinfo.restart_in_rows = recipe.restart_rows;
  cinfo.write_Adobe_marker = recipe.adobe_marker ? TRUE : FALSE;
  if (!recipe.tables) jpeg_suppress_tables(&cinfo, TRUE);
  jpeg_start_compress(&cinfo, recipe.tables ? TRUE : FALSE);
  while (cinfo.next_scanline < cinfo.image_height) {
    JSAMPROW row = pixels.data() + std::size_t{cinfo.next_scanline} * recipe.width *
                                       static_cast<unsigned>(channels);
    jpeg_write_scanlines(&cinfo, &row, 1);
  }
  jpeg_finish_compress(&cinfo);
  Bytes file(memory, memory + size);
  jpeg_destroy_compress(&cinfo);
  std::free(memory);
  return file;
}

}  // namespace stook::decode
