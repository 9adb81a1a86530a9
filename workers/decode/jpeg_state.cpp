#include "workers/decode/jpeg_state.h"

#include <string>

#include <jerror.h>

namespace stook::decode {
namespace {

constexpr int kEoi = 0xD9;
constexpr int kRst0 = 0xD0;
constexpr int kRst7 = 0xD7;
constexpr JOCTET kEndOfImage[2] = {0xFF, kEoi};

// Coefficients take 2 bytes each, at most 4 components, and whole MCUs: up to 32 pixels more in
// each direction, at most 65,500 pixels long. The constant covers that padding and libjpeg's
// strips.
constexpr std::uint64_t kCoefficientBytesPerPixel = 8;
constexpr std::uint64_t kMemoryBesides = std::uint64_t{64} << 20U;

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
}  // namespace

Error JpegDecoder::State::error() const {
  if (code != ErrorCode::kMemoryLimit) return {code, text};
  return {code, "decoding needs more than " + std::to_string(cinfo.mem->max_memory_to_use) +
                    " bytes of working memory"};
}

void JpegDecoder::State::configure(const JpegOptions& options, J_COLOR_SPACE rgb) {
  mode = options.mode;
  cinfo.out_color_space = mode == PixelMode::kRgb ? rgb : JCS_GRAYSCALE;
  if (four_components()) cinfo.out_color_space = JCS_CMYK;
  allow_truncated = options.allow_truncated;
  max_scans = options.max_scans;
  const std::uint64_t memory =
      options.max_memory != 0
          ? options.max_memory
          : std::uint64_t{info.width} * info.height * kCoefficientBytesPerPixel + kMemoryBesides;
  cinfo.mem->max_memory_to_use = static_cast<long>(memory);
}

void JpegDecoder::State::fail(ErrorCode reason) {
  code = reason;
  std::longjmp(escape, 1);
}

void JpegDecoder::State::fail_with_message(ErrorCode reason) {
  errors.format_message(reinterpret_cast<j_common_ptr>(&cinfo), text);
  fail(reason);
}

void JpegDecoder::State::on_end_of_data() {
  if (truncated) return;
  if (!allow_truncated) fail_with_message(ErrorCode::kTruncated);
  truncated = true;
}

void JpegDecoder::State::on_error(j_common_ptr cinfo) {
  of(cinfo).fail_with_message(code_of(cinfo->err->msg_code));
}

void JpegDecoder::State::on_message(j_common_ptr cinfo, int level) {
  if (level >= 0) return;  // a trace message
  State& self = of(cinfo);
  const int message = cinfo->err->msg_code;
  if (self.truncated || harmless(*cinfo->err)) return;
  const bool ended = (message == JWRN_HIT_MARKER && self.cinfo.unread_marker == kEoi) ||
                     (message == JWRN_MUST_RESYNC && cinfo->err->msg_parm.i[0] == kEoi);
  if (ended) return self.on_end_of_data();
  self.fail_with_message(ErrorCode::kCorrupt);
}

void JpegDecoder::State::on_progress(j_common_ptr cinfo) {
  State& self = of(cinfo);
  if (self.cinfo.input_scan_number <= self.max_scans) return;
  std::snprintf(self.text, sizeof(self.text), "more than %d scans", self.max_scans);
  self.fail(ErrorCode::kTooManyScans);
}

// All bytes are there from the start, so libjpeg asks for more only behind their end. As libjpeg's
// own sources do, it then gets an end-of-image marker. That would be taken for content in the
// middle of a table, though (unread_marker names the segment being read), so there it is suspended
// instead.
boolean JpegDecoder::State::on_more(j_decompress_ptr cinfo) {
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

void JpegDecoder::State::feed_end_of_image() {
  source.next_input_byte = kEndOfImage;
  source.bytes_in_buffer = sizeof(kEndOfImage);
}

void JpegDecoder::State::on_skip(j_decompress_ptr cinfo, long count) {
  State& self = of(cinfo);
  if (count <= 0) return;
  const auto wanted = static_cast<std::size_t>(count);
  const std::size_t there = self.source.bytes_in_buffer;
  const std::size_t skipped = wanted < there ? wanted : there;
  self.source.next_input_byte += skipped;
  self.source.bytes_in_buffer -= skipped;
}

void JpegDecoder::State::create() {
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

void JpegDecoder::State::read_header() {
  create();
  jpeg_read_header(&cinfo, TRUE);
  if (cinfo.data_precision != 8) {  // newer libraries get this far with 12 and 16 bits
    std::snprintf(text, sizeof(text), "unsupported JPEG data precision %d", cinfo.data_precision);
    fail(ErrorCode::kUnsupported);
  }
}

void JpegDecoder::State::start() {
  if (jpeg_start_decompress(&cinfo) != FALSE) return;
  // Suspended in a segment between two scans that is cut off: the scans before it are the image.
  cinfo.unread_marker = 0;
  feed_end_of_image();
  if (jpeg_start_decompress(&cinfo) == FALSE) fail_with_message(ErrorCode::kTruncated);
}

void JpegDecoder::State::read_rows(JSAMPROW* to, unsigned count) {
  while (count > 0) {
    const unsigned got = jpeg_read_scanlines(&cinfo, to, count);
    if (got == 0) {  // libjpeg suspended, which this source never asks for
      std::snprintf(text, sizeof(text), "the decoder stopped at row %u", cinfo.output_scanline);
      fail(ErrorCode::kCorrupt);
    }
    to += got;
    count -= got;
  }
}

}  // namespace stook::decode
