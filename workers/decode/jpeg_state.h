#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>  // jpeglib.h uses FILE and size_t without including their headers
#include <span>
#include <type_traits>
#include <vector>

#include <jpeglib.h>

#include "workers/decode/jpeg.h"

namespace stook::decode {

/// libjpeg's objects, and what its callbacks need; for the files that implement JpegDecoder.
///
/// libjpeg reports errors by calling back and expects not to be returned to, so `fail` jumps out of
/// it to the `guarded` frame. Between the two lie libjpeg's C frames, the callbacks and the guarded
/// steps: none of them may own anything with a destructor.
struct JpegDecoder::State {
  explicit State(std::span<const std::uint8_t> bytes) : data(bytes) {}

  std::span<const std::uint8_t> data;
  jpeg_decompress_struct cinfo{};
  jpeg_error_mgr errors{};
  jpeg_source_mgr source{};
  jpeg_progress_mgr progress{};
  std::jmp_buf escape{};
  JpegInfo info;
  PixelMode mode = PixelMode::kRgb;
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

  /// Why the last guarded step failed.
  Error error() const;

  /// Whether the image has four components, of which libjpeg makes CMYK and nothing else.
  bool four_components() const {
    return cinfo.jpeg_color_space == JCS_CMYK || cinfo.jpeg_color_space == JCS_YCCK;
  }

  /// Tells libjpeg what `options` say, and that RGB is to come as `rgb`.
  void configure(const JpegOptions& options, J_COLOR_SPACE rgb);

  /// Runs `step`, which may call libjpeg; false where it failed, with `code` and `text` set.
  template <typename Step>
  bool guarded(Step step) {
    static_assert(std::is_trivially_destructible_v<Step>);
    if (setjmp(escape) != 0) return false;
    step();
    return true;
  }

  // All that follows is for guarded steps and the callbacks alone.

  [[noreturn]] void fail(ErrorCode reason);

  /// Fails with the text of the message that libjpeg has prepared.
  [[noreturn]] void fail_with_message(ErrorCode reason);

  /// The data end here: an error, or from now on nothing that libjpeg complains of is news.
  void on_end_of_data();

  void read_header();

  void start();

  /// The next `count` rows, each to where `to` says.
  void read_rows(JSAMPROW* to, unsigned count);

  /// Looks, without decoding, for the end-of-image marker behind what libjpeg has read.
  void expect_end_of_image();

 private:
  static void on_error(j_common_ptr cinfo);
  static void on_message(j_common_ptr cinfo, int level);
  static void on_output(j_common_ptr) {}
  static void on_progress(j_common_ptr cinfo);
  static void ignore(j_decompress_ptr) {}
  static boolean on_more(j_decompress_ptr cinfo);
  static void on_skip(j_decompress_ptr cinfo, long count);
  void create();
  void feed_end_of_image();
};

}  // namespace stook::decode
