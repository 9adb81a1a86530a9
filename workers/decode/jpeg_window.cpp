#include <algorithm>
#include <cstring>

#include "workers/decode/colors.h"
#include "workers/decode/jpeg.h"
#include "workers/decode/jpeg_state.h"

#include <jerror.h>

namespace stook::decode {
namespace {

// libjpeg-turbo's upsampling of colour, where it is vectorised, gives wrong pixels to windows of
// one or two (2.1.5); that of whole images is not chosen for so few.
constexpr std::uint32_t kLeastWidth = 16;

constexpr JDIMENSION kSmoothingReach = 2;

constexpr std::uint8_t kMarker = 0xFF;
constexpr std::uint8_t kTem = 0x01;
constexpr std::uint8_t kRst0 = 0xD0;
constexpr std::uint8_t kRst7 = 0xD7;
constexpr std::uint8_t kSoi = 0xD8;
constexpr std::uint8_t kEoi = 0xD9;

/// Whether an end-of-image marker comes, beyond coded data and segments that are skipped by what
/// they say is their length.
bool end_follows(const std::uint8_t* at, const std::uint8_t* end) {
  while (at < end) {
    at = static_cast<const std::uint8_t*>(
        std::memchr(at, kMarker, static_cast<std::size_t>(end - at)));
    if (at == nullptr || end - at < 2) return false;
    const std::uint8_t code = at[1];
    if (code == kEoi) return true;
    if (code == kMarker) {  // a fill byte
      ++at;
      continue;
    }
    at += 2;
    const bool bare = code == 0 || code == kTem || code == kSoi || (code >= kRst0 && code <= kRst7);
    if (bare) continue;
    if (end - at < 2) return false;
    const std::ptrdiff_t length = at[0] << 8 | at[1];
    if (length > end - at) return false;
    at += length;
  }
  return false;
}

/// Whether the scans of a progressive image leave bits of coefficients open, so that libjpeg
/// guesses them from the blocks around.
bool is_smoothed(const jpeg_decompress_struct& cinfo) {
  if (cinfo.coef_bits == nullptr || cinfo.do_block_smoothing == FALSE) return false;
  for (int c = 0; c < cinfo.num_components; ++c) {
    for (const int bits : cinfo.coef_bits[c]) {
      if (bits != 0) return true;
    }
  }
  return false;
}

#if JPEG_LIB_VERSION >= 70
int block_side(const jpeg_component_info& component) { return component.DCT_h_scaled_size; }
int least_side(const jpeg_decompress_struct& cinfo) { return cinfo.min_DCT_h_scaled_size; }
#else
int block_side(const jpeg_component_info& component) { return component.DCT_scaled_size; }
int least_side(const jpeg_decompress_struct& cinfo) { return cinfo.min_DCT_scaled_size; }
#endif

/// Whether libjpeg can leave out columns. Where colour is shrunk less than luma and still has to be
/// upsampled, as with 4x2 sampling and a divisor of 2, it takes the wrong ones (2.1.5).
bool can_crop(const jpeg_decompress_struct& cinfo) {
  const int least = least_side(cinfo);
  for (int c = 0; c < cinfo.num_components; ++c) {
    const jpeg_component_info& component = cinfo.comp_info[c];
    const int side = block_side(component);
    const bool full = component.h_samp_factor * side == cinfo.max_h_samp_factor * least &&
                      component.v_samp_factor * side == cinfo.max_v_samp_factor * least;
    if (side != least && !full) return false;
  }
  return true;
}

}  // namespace

void JpegDecoder::State::expect_end_of_image() {
  // A file of several scans has been read to its end before the first row.
  if (truncated || jpeg_input_complete(&cinfo) != FALSE || cinfo.unread_marker == kEoi) return;
  const std::uint8_t* const at = source.next_input_byte;
  if (end_follows(at, at + source.bytes_in_buffer)) return;
  errors.msg_code = JWRN_JPEG_EOF;
  on_end_of_data();
}

Error JpegDecoder::begin_window(const JpegOptions& options, const JpegWindow& window,
                                WindowRows* rows) {
  State& s = *state_;
  ImageSize size;
  if (Error error = output_size(options, &size); error) return error;
  s.configure(options, JCS_EXT_RGBX);
  s.cinfo.scale_num = 1;
  s.cinfo.scale_denom = window.denominator;
  JDIMENSION from = 0;
  const bool done = s.guarded([&s, &from, &window] {
    s.start();
    // One pixel more on each side: upsampling of colour looks at neighbours, and would find an edge
    // of the image where only the window ends. Smoothing looks two blocks far.
    JDIMENSION margin = 1;
    if (is_smoothed(s.cinfo))
      margin += kSmoothingReach * DCTSIZE * static_cast<unsigned>(s.cinfo.max_h_samp_factor);
    from = window.left > margin ? window.left - margin : 0;
    JDIMENSION wide = std::max(window.right + margin - from, kLeastWidth);
    wide = std::min(wide, s.cinfo.output_width - from);
    if (can_crop(s.cinfo)) {
      jpeg_crop_scanline(&s.cinfo, &from, &wide);
    } else {
      from = 0;
    }
    // One skip, at the start: later ones have given stale rows in some versions of libjpeg-turbo.
    if (window.top > 0) jpeg_skip_scanlines(&s.cinfo, window.top);
  });
  if (!done) return s.error();
  rows->pixel_bytes = options.mode == PixelMode::kRgb ? 4 : 1;
  rows->bytes =
      std::size_t{s.cinfo.output_width} * static_cast<unsigned>(s.cinfo.output_components);
  rows->skip = (window.left - from) * rows->pixel_bytes;
  return {};
}

Error JpegDecoder::read_window(std::uint8_t* const* rows, unsigned count) {
  State& s = *state_;
  const bool done = s.guarded([&s, rows, count] {
    s.read_rows(const_cast<JSAMPROW*>(rows), count);
    for (unsigned y = 0; s.four_components() && y < count; ++y) {
      const bool inverted = s.cinfo.saw_Adobe_marker != FALSE;
      if (s.mode == PixelMode::kRgb) {
        cmyk_to_rgb<4>(rows[y], s.cinfo.output_width, inverted);
      } else {
        cmyk_to_rgb<3>(rows[y], s.cinfo.output_width, inverted);
        rgb_to_gray(rows[y], s.cinfo.output_width);
      }
    }
  });
  return done ? Error{} : s.error();
}

Error JpegDecoder::end_window() {
  State& s = *state_;
  const bool done = s.guarded([&s] {
    if (s.cinfo.output_scanline == s.cinfo.output_height) {
      jpeg_finish_decompress(&s.cinfo);
    } else {
      s.expect_end_of_image();
    }
  });
  return done ? Error{} : s.error();
}

}  // namespace stook::decode
