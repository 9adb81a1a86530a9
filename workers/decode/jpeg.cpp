#include "workers/decode/jpeg.h"

#include <new>
#include <string>
#include <utility>

#include "workers/decode/colors.h"
#include "workers/decode/exif.h"
#include "workers/decode/jpeg_state.h"

namespace stook::decode {
namespace {

// Rows decoded at a time where they cannot go straight to their place. Enough that turning an image
// by 90 degrees writes 48 neighbouring bytes per column, few enough that the strip of a
// 10-megapixel image stays in cache.
constexpr unsigned kStripRows = 16;

std::string_view name_of(J_COLOR_SPACE space) {
  switch (space) {
    case JCS_GRAYSCALE:
      return "grayscale";
    case JCS_RGB:
      return "RGB";
    case JCS_YCbCr:
      return "YCbCr";
    case JCS_CMYK:
      return "CMYK";
    case JCS_YCCK:
      return "YCCK";
    default:
      return "unknown";
  }
}

std::string_view subsampling_of(const jpeg_decompress_struct& cinfo) {
  if (cinfo.num_components != 3 && cinfo.num_components != 4) return {};
  const jpeg_component_info* const c = cinfo.comp_info;
  const int h = c[1].h_samp_factor;
  const int v = c[1].v_samp_factor;
  if (c[2].h_samp_factor != h || c[2].v_samp_factor != v) return {};
  if (cinfo.num_components == 4 &&
      (c[3].h_samp_factor != c[0].h_samp_factor || c[3].v_samp_factor != c[0].v_samp_factor))
    return {};
  if (c[0].h_samp_factor % h != 0 || c[0].v_samp_factor % v != 0) return {};
  switch (c[0].h_samp_factor / h * 10 + c[0].v_samp_factor / v) {
    case 11:
      return "4:4:4";
    case 21:
      return "4:2:2";
    case 22:
      return "4:2:0";
    case 12:
      return "4:4:0";
    case 41:
      return "4:1:1";
    case 42:
      return "4:1:0";
    case 14:
      return "4:4:1";
    default:
      return {};
  }
}

/// Where stored pixel (row, column) goes: first + row * row_step + column * column_step.
struct Placement {
  std::uint8_t* first;
  std::ptrdiff_t row_step;
  std::ptrdiff_t column_step;
};

constexpr bool swaps_sides(int orientation) { return orientation >= 5; }

Placement place(int orientation, std::uint8_t* pixels, std::ptrdiff_t stride, std::ptrdiff_t pixel,
                const JpegInfo& info) {
  const std::ptrdiff_t last_row = static_cast<std::ptrdiff_t>(info.height) - 1;
  const std::ptrdiff_t last_column = static_cast<std::ptrdiff_t>(info.width) - 1;
  switch (orientation) {
    case 2:  // mirrored left to right
      return {pixels + last_column * pixel, stride, -pixel};
    case 3:  // turned by 180 degrees
      return {pixels + last_row * stride + last_column * pixel, -stride, -pixel};
    case 4:  // mirrored top to bottom
      return {pixels + last_row * stride, -stride, pixel};
    case 5:  // transposed
      return {pixels, pixel, stride};
    case 6:  // to be turned clockwise
      return {pixels + last_row * pixel, -pixel, stride};
    case 7:  // transposed over the other diagonal
      return {pixels + last_row * pixel + last_column * stride, -pixel, -stride};
    case 8:  // to be turned counter-clockwise
      return {pixels + last_column * stride, pixel, -stride};
    default:
      return {pixels, stride, pixel};
  }
}

template <std::size_t kChannels>
void scatter(const std::uint8_t* strip, std::size_t strip_stride, unsigned rows,
             std::uint32_t width, const Placement& to) {
  for (std::uint32_t x = 0; x < width; ++x) {
    const std::uint8_t* from = strip + x * kChannels;
    std::uint8_t* out = to.first + static_cast<std::ptrdiff_t>(x) * to.column_step;
    for (unsigned y = 0; y < rows; ++y, from += strip_stride, out += to.row_step) {
      for (std::size_t i = 0; i < kChannels; ++i) out[i] = from[i];
    }
  }
}

/// Reads all rows, which cannot go straight to their place, by way of the strip.
void read_strips(JpegDecoder::State& s, Placement to) {
  const bool cmyk = s.cinfo.out_color_space == JCS_CMYK;
  const std::size_t strip_stride =
      std::size_t{s.info.width} * static_cast<unsigned>(s.cinfo.output_components);
  while (s.cinfo.output_scanline < s.cinfo.output_height) {
    const unsigned left = s.cinfo.output_height - s.cinfo.output_scanline;
    const unsigned count = left < kStripRows ? left : kStripRows;
    s.read_rows(s.rows.data(), count);
    for (unsigned y = 0; cmyk && y < count; ++y) {
      cmyk_to_rgb<3>(s.rows[y], s.info.width, s.cinfo.saw_Adobe_marker != FALSE);
      if (s.mode == PixelMode::kGray) rgb_to_gray(s.rows[y], s.info.width);
    }
    if (s.mode == PixelMode::kRgb) {
      scatter<3>(s.strip.data(), strip_stride, count, s.info.width, to);
    } else {
      scatter<1>(s.strip.data(), strip_stride, count, s.info.width, to);
    }
    to.first += static_cast<std::ptrdiff_t>(count) * to.row_step;
  }
}

}  // namespace

JpegDecoder::JpegDecoder(std::span<const std::uint8_t> data)
    : state_(std::make_unique<State>(data)) {}

JpegDecoder::~JpegDecoder() {
  if (state_->created) jpeg_destroy_decompress(&state_->cinfo);
}

const JpegInfo& JpegDecoder::info() const { return state_->info; }

Error JpegDecoder::open() {
  State& s = *state_;
  if (!s.guarded([&s] { s.read_header(); })) return s.error();
  const jpeg_decompress_struct& cinfo = s.cinfo;
  s.info.width = cinfo.image_width;
  s.info.height = cinfo.image_height;
  s.info.components = cinfo.num_components;
  s.info.color_space = name_of(cinfo.jpeg_color_space);
  s.info.progressive = cinfo.progressive_mode != FALSE;
  s.info.arithmetic = cinfo.arith_code != FALSE;
  s.info.subsampling = subsampling_of(cinfo);
  return {};
}

Error JpegDecoder::output_size(const JpegOptions& options, ImageSize* size) {
  State& s = *state_;
  const std::uint64_t pixels = std::uint64_t{s.info.width} * s.info.height;
  if (pixels > options.max_pixels) {
    return {ErrorCode::kTooManyPixels,
            std::to_string(s.info.width) + " x " + std::to_string(s.info.height) + " is " +
                std::to_string(pixels) +
                " pixels, more than max_pixels=" + std::to_string(options.max_pixels)};
  }
  if (s.cinfo.jpeg_color_space == JCS_UNKNOWN) {
    return {ErrorCode::kUnsupported,
            std::to_string(s.info.components) + " components of unknown meaning"};
  }
  if (options.apply_orientation) s.info.orientation = exif_orientation(s.data);
  *size = {s.info.height, s.info.width};
  if (options.apply_orientation && swaps_sides(s.info.orientation))
    std::swap(size->height, size->width);
  return {};
}

Error JpegDecoder::decode(const JpegOptions& options, std::uint8_t* pixels,
                          std::ptrdiff_t row_stride) {
  State& s = *state_;
  ImageSize size;
  if (Error error = output_size(options, &size); error) return error;
  s.configure(options, JCS_RGB);
  const bool cmyk = s.four_components();

  const int orientation = options.apply_orientation ? s.info.orientation : 1;
  const auto pixel = static_cast<std::ptrdiff_t>(channels_of(options.mode));
  const Placement to = place(orientation, pixels, row_stride, pixel, s.info);
  const bool straight = !cmyk && to.column_step == pixel;
  try {
    if (straight) {
      s.rows.resize(s.info.height);
      for (std::size_t y = 0; y < s.rows.size(); ++y)
        s.rows[y] = to.first + static_cast<std::ptrdiff_t>(y) * to.row_step;
    } else {
      const std::size_t stride =
          std::size_t{s.info.width} * (cmyk ? 4U : channels_of(options.mode));
      s.strip.resize(kStripRows * stride);
      s.rows.resize(kStripRows);
      for (std::size_t y = 0; y < kStripRows; ++y) s.rows[y] = s.strip.data() + y * stride;
    }
  } catch (const std::bad_alloc&) {
    return {ErrorCode::kOutOfMemory, "no memory for the rows of the image"};
  }
  const bool done = s.guarded([&s, &to, straight] {
    s.start();
    if (straight) {
      s.read_rows(s.rows.data(), s.cinfo.output_height);
    } else {
      read_strips(s, to);
    }
    // Reads on to the end-of-image marker, so that a missing one is noticed.
    jpeg_finish_decompress(&s.cinfo);
  });
  return done ? Error{} : s.error();
}

Error read_jpeg_info(std::span<const std::uint8_t> data, JpegInfo* info) {
  JpegDecoder decoder(data);
  if (Error error = decoder.open(); error) return error;
  *info = decoder.info();
  info->orientation = exif_orientation(data);
  return {};
}

}  // namespace stook::decode
