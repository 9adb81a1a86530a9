#include "workers/decode/jpeg.h"

#include <csetjmp>
#include <cstdio>  // jpeglib.h uses FILE and size_t without including their headers
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include <jpeglib.h>

#include <jerror.h>

#include "workers/decode/exif.h"

namespace stook::decode {
namespace {

constexpr int kEoi = 0xD9;
constexpr JOCTET kEndOfImage[2] = {0xFF, kEoi};

// Rows decoded at a time where they cannot go straight to their place. Enough that turning an image
// by 90 degrees writes 48 neighbouring bytes per column, few enough that the strip of a
// 10-megapixel image stays in cache.
constexpr unsigned kStripRows = 16;

// Coefficients take 2 bytes each, at most 4 components, and whole MCUs: up to 32 pixels more in
// each direction, at most 65,500 pixels long. The constant covers that padding and libjpeg's
// strips.
constexpr std::uint64_t kCoefficientBytesPerPixel = 8;
constexpr std::uint64_t kMemoryBesides = std::uint64_t{64} << 20U;

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

ErrorCode code_of(int message) {
  switch (message) {
    case JERR_INPUT_EMPTY:
      return ErrorCode::kEmpty;
    case JERR_NO_SOI:
      return ErrorCode::kNotJpeg;
    case JERR_OUT_OF_MEMORY:
      return ErrorCode::kOutOfMemory;
    case JERR_NO_BACKING_STORE:
      return ErrorCode::kMemoryLimit;
    case JERR_ARITH_NOTIMPL:
    case JERR_BAD_J_COLORSPACE:
    case JERR_BAD_PRECISION:
    case JERR_CCIR601_NOTIMPL:
    case JERR_COMPONENT_COUNT:
    case JERR_CONVERSION_NOTIMPL:
    case JERR_EMPTY_IMAGE:  // height 0: given later by a DNL marker
    case JERR_FRACT_SAMPLE_NOTIMPL:
    case JERR_IMAGE_TOO_BIG:
    case JERR_NOTIMPL:
    case JERR_NOT_COMPILED:
    case JERR_SOF_UNSUPPORTED:
      return ErrorCode::kUnsupported;
    default:
      return ErrorCode::kCorrupt;
  }
}

/// Whether after this warning every pixel is still what the encoder meant: oddities of headers, and
/// bytes between segments, which cameras do write. Bytes left over in front of a restart marker
/// are another thing: what was decoded before it came out too short.
bool harmless(const jpeg_error_mgr& errors) {
  constexpr int kRst0 = 0xD0;
  constexpr int kRst7 = 0xD7;
  switch (errors.msg_code) {
    case JWRN_ADOBE_XFORM:
    case JWRN_BOGUS_ICC:
    case JWRN_JFIF_MAJOR:
    case JWRN_NOT_SEQUENTIAL:
      return true;
    case JWRN_EXTRANEOUS_DATA: {
      const int marker = errors.msg_parm.i[1];
      return marker < kRst0 || marker > kRst7;
    }
    default:
      return false;
  }
}

/// round(a * b / 255)
constexpr std::uint8_t scaled(unsigned a, unsigned b) {
  return static_cast<std::uint8_t>((a * b + 127) / 255);
}

/// CMYK to RGB in place. Files with an Adobe marker hold inverted values (255: no ink), others
/// plain ones.
void cmyk_to_rgb(std::uint8_t* row, std::uint32_t width, bool inverted) {
  const unsigned flip = inverted ? 0 : 0xFF;
  const std::uint8_t* from = row;
  std::uint8_t* to = row;
  for (std::uint32_t x = 0; x < width; ++x, from += 4, to += 3) {
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
void rgb_to_gray(std::uint8_t* row, std::uint32_t width) {
  for (std::uint32_t x = 0; x < width; ++x) {
    const std::uint8_t* const p = row + std::size_t{3} * x;
    row[x] =
        static_cast<std::uint8_t>((19595U * p[0] + 38470U * p[1] + 7471U * p[2] + 32768U) >> 16U);
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

}  // namespace

/// libjpeg's objects, and what its callbacks need. libjpeg reports errors by calling back and
/// expects not to be returned to, so `fail` jumps out of it to the `guarded` frame. Between the two
/// lie libjpeg's C frames, the callbacks and the guarded steps: none of them may own anything with
/// a destructor.
struct JpegDecoder::State {
  explicit State(std::span<const std::uint8_t> bytes) : data(bytes) {}

  std::span<const std::uint8_t> data;
  jpeg_decompress_struct cinfo{};
  jpeg_error_mgr errors{};
  jpeg_source_mgr source{};
  jpeg_progress_mgr progress{};
  std::jmp_buf escape{};
  JpegInfo info;
  int max_scans = 0;
  bool created = false;
  bool allow_truncated = false;
  bool truncated = false;
  ErrorCode code = ErrorCode::kOk;
  char text[JMSG_LENGTH_MAX + 64] = {};
  std::vector<JSAMPROW> rows;
  std::vector<JSAMPLE> strip;

  static State& of(j_common_ptr cinfo) { return *static_cast<State*>(cinfo->client_data); }
  static State& of(j_decompress_ptr cinfo) { return *static_cast<State*>(cinfo->client_data); }

  Error error() const { return {code, text}; }

  /// Runs `step`, which may call libjpeg; false where it failed, with `code` and `text` set.
  template <typename Step>
  bool guarded(Step step) {
    static_assert(std::is_trivially_destructible_v<Step>);
    if (setjmp(escape) != 0) return false;
    step();
    return true;
  }

  [[noreturn]] void fail(ErrorCode reason) {
    code = reason;
    std::longjmp(escape, 1);
  }

  /// Fails with the text of the message that libjpeg has prepared.
  [[noreturn]] void fail_with_message(ErrorCode reason) {
    errors.format_message(reinterpret_cast<j_common_ptr>(&cinfo), text);
    fail(reason);
  }

  /// The data end here: an error, or from now on nothing that libjpeg complains of is news.
  void on_end_of_data() {
    if (truncated) return;
    if (!allow_truncated) fail_with_message(ErrorCode::kTruncated);
    truncated = true;
  }

  static void on_error(j_common_ptr cinfo) {
    of(cinfo).fail_with_message(code_of(cinfo->err->msg_code));
  }

  static void on_message(j_common_ptr cinfo, int level) {
    if (level >= 0) return;  // a trace message
    State& self = of(cinfo);
    const int message = cinfo->err->msg_code;
    if (self.truncated || harmless(*cinfo->err)) return;
    const bool ended = (message == JWRN_HIT_MARKER && self.cinfo.unread_marker == kEoi) ||
                       (message == JWRN_MUST_RESYNC && cinfo->err->msg_parm.i[0] == kEoi);
    if (ended) return self.on_end_of_data();
    self.fail_with_message(ErrorCode::kCorrupt);
  }

  static void on_output(j_common_ptr) {}

  static void on_progress(j_common_ptr cinfo) {
    State& self = of(cinfo);
    if (self.cinfo.input_scan_number <= self.max_scans) return;
    std::snprintf(self.text, sizeof(self.text), "more than %d scans", self.max_scans);
    self.fail(ErrorCode::kTooManyScans);
  }

  static void ignore(j_decompress_ptr) {}

  // All bytes are there from the start, so libjpeg asks for more only behind their end. As
  // libjpeg's own sources do, it then gets an end-of-image marker. That would be taken for content
  // in the middle of a table, though (unread_marker names the segment being read), so there it is
  // suspended instead.
  static boolean on_more(j_decompress_ptr cinfo) {
    State& self = of(cinfo);
    if (self.data.empty()) {
      self.errors.msg_code = JERR_INPUT_EMPTY;
      self.fail_with_message(ErrorCode::kEmpty);
    }
    self.errors.msg_code = JWRN_JPEG_EOF;
    self.on_end_of_data();
    if (cinfo->unread_marker != 0) return FALSE;
    self.feed_end_of_image();
    return TRUE;
  }

  void feed_end_of_image() {
    source.next_input_byte = kEndOfImage;
    source.bytes_in_buffer = sizeof(kEndOfImage);
  }

  static void on_skip(j_decompress_ptr cinfo, long count) {
    State& self = of(cinfo);
    if (count <= 0) return;
    const auto wanted = static_cast<std::size_t>(count);
    const std::size_t there = self.source.bytes_in_buffer;
    const std::size_t skipped = wanted < there ? wanted : there;
    self.source.next_input_byte += skipped;
    self.source.bytes_in_buffer -= skipped;
  }

  void create() {
    cinfo.err = jpeg_std_error(&errors);
    errors.error_exit = on_error;
    errors.emit_message = on_message;
    errors.output_message = on_output;
    cinfo.client_data = this;
    jpeg_create_decompress(&cinfo);
    created = true;
    source.init_source = ignore;
    source.fill_input_buffer = on_more;
    source.skip_input_data = on_skip;
    source.resync_to_restart = jpeg_resync_to_restart;
    source.term_source = ignore;
    source.next_input_byte = data.data();
    source.bytes_in_buffer = data.size();
    cinfo.src = &source;
    progress.progress_monitor = on_progress;
    cinfo.progress = &progress;
  }

  void read_header() {
    create();
    jpeg_read_header(&cinfo, TRUE);
    if (cinfo.data_precision != 8) {  // newer libraries get this far with 12 and 16 bits
      std::snprintf(text, sizeof(text), "unsupported JPEG data precision %d", cinfo.data_precision);
      fail(ErrorCode::kUnsupported);
    }
  }

  void start() {
    if (jpeg_start_decompress(&cinfo) != FALSE) return;
    // Suspended in a segment between two scans that is cut off: the scans before it are the image.
    cinfo.unread_marker = 0;
    feed_end_of_image();
    if (jpeg_start_decompress(&cinfo) == FALSE) fail_with_message(ErrorCode::kTruncated);
  }

  void read_rows(unsigned first, unsigned count) {
    while (count > 0) {
      const unsigned got = jpeg_read_scanlines(&cinfo, rows.data() + first, count);
      if (got == 0) {  // libjpeg suspended, which this source never asks for
        std::snprintf(text, sizeof(text), "the decoder stopped at row %u", cinfo.output_scanline);
        fail(ErrorCode::kCorrupt);
      }
      first += got;
      count -= got;
    }
  }

  void read_strips(PixelMode mode, Placement to) {
    const bool cmyk = cinfo.out_color_space == JCS_CMYK;
    const std::size_t strip_stride =
        std::size_t{info.width} * static_cast<unsigned>(cinfo.output_components);
    while (cinfo.output_scanline < cinfo.output_height) {
      const unsigned left = cinfo.output_height - cinfo.output_scanline;
      const unsigned count = left < kStripRows ? left : kStripRows;
      read_rows(0, count);
      for (unsigned y = 0; cmyk && y < count; ++y) {
        cmyk_to_rgb(rows[y], info.width, cinfo.saw_Adobe_marker != FALSE);
        if (mode == PixelMode::kGray) rgb_to_gray(rows[y], info.width);
      }
      if (mode == PixelMode::kRgb) {
        scatter<3>(strip.data(), strip_stride, count, info.width, to);
      } else {
        scatter<1>(strip.data(), strip_stride, count, info.width, to);
      }
      to.first += static_cast<std::ptrdiff_t>(count) * to.row_step;
    }
  }
};

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
  jpeg_decompress_struct& cinfo = s.cinfo;
  const bool cmyk = cinfo.jpeg_color_space == JCS_CMYK || cinfo.jpeg_color_space == JCS_YCCK;
  cinfo.out_color_space = options.mode == PixelMode::kRgb ? JCS_RGB : JCS_GRAYSCALE;
  if (cmyk)
    cinfo.out_color_space = JCS_CMYK;  // the only thing that libjpeg makes of four components
  s.allow_truncated = options.allow_truncated;
  s.max_scans = options.max_scans;
  const std::uint64_t memory =
      options.max_memory != 0
          ? options.max_memory
          : std::uint64_t{s.info.width} * s.info.height * kCoefficientBytesPerPixel +
                kMemoryBesides;
  cinfo.mem->max_memory_to_use = static_cast<long>(memory);

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
  const bool done = s.guarded([&s, &options, &to, straight] {
    s.start();
    if (straight) {
      s.read_rows(0, s.cinfo.output_height);
    } else {
      s.read_strips(options.mode, to);
    }
    // Reads on to the end-of-image marker, so that a missing one is noticed.
    jpeg_finish_decompress(&s.cinfo);
  });
  if (!done && s.code == ErrorCode::kMemoryLimit) {
    return {s.code,
            "decoding needs more than " + std::to_string(memory) + " bytes of working memory"};
  }
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
