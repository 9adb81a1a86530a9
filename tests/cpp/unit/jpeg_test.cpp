#include "workers/decode/jpeg.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include <jpeglib.h>

#include "tests/cpp/unit/jpeg_recipes.h"
#include "workers/decode/exif.h"
#include "workers/decode/file.h"

namespace stook::decode {
namespace {

/// The frame that libjpeg's errors jump back to; it owns nothing itself.
bool plain_libjpeg(const Bytes& file, J_COLOR_SPACE space, Bytes& pixels) {
  jpeg_decompress_struct cinfo{};
  jpeg_error_mgr errors{};
  std::jmp_buf escape;
  cinfo.err = jpeg_std_error(&errors);
  errors.emit_message = [](j_common_ptr, int) {};
  errors.error_exit = [](j_common_ptr failed) {
    std::longjmp(*static_cast<std::jmp_buf*>(failed->client_data), 1);
  };
  cinfo.client_data = &escape;
  if (setjmp(escape) != 0) {
    jpeg_destroy_decompress(&cinfo);
    return false;
  }
  jpeg_create_decompress(&cinfo);
  jpeg_mem_src(&cinfo, file.data(), file.size());
  jpeg_read_header(&cinfo, TRUE);
  cinfo.out_color_space = space;
  jpeg_start_decompress(&cinfo);
  const std::size_t row_bytes =
      std::size_t{cinfo.output_width} * static_cast<unsigned>(cinfo.output_components);
  pixels.resize(row_bytes * cinfo.output_height);
  while (cinfo.output_scanline < cinfo.output_height) {
    JSAMPROW row = pixels.data() + row_bytes * cinfo.output_scanline;
    jpeg_read_scanlines(&cinfo, &row, 1);
  }
  jpeg_finish_decompress(&cinfo);
  jpeg_destroy_decompress(&cinfo);
  return true;
}

/// libjpeg by the book: its own memory source, one row at a time, warnings ignored. Empty where it
/// fails.
Bytes plain_libjpeg(const Bytes& file, J_COLOR_SPACE space) {
  Bytes pixels;
  return plain_libjpeg(file, space, pixels) ? pixels : Bytes{};
}

/// Memory whose last byte lies in front of a page that nobody may touch.
class Guarded {
 public:
  explicit Guarded(std::size_t size) : size_(size) {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    usable_ = (size + page - 1) / page * page;
    mapped_ = usable_ + page;
    void* const memory =
        ::mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(memory, MAP_FAILED);
    base_ = static_cast<std::uint8_t*>(memory);
    EXPECT_EQ(::mprotect(base_ + usable_, page, PROT_NONE), 0);
    std::memset(data(), kUntouched, size);
  }
  ~Guarded() { ::munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  static constexpr std::uint8_t kUntouched = 0xA5;
  std::uint8_t* data() { return base_ + usable_ - size_; }
  std::size_t size() const { return size_; }

 private:
  std::size_t size_;
  std::size_t usable_ = 0;
  std::size_t mapped_ = 0;
  std::uint8_t* base_ = nullptr;
};

struct Decoded {
  Error error;
  ImageSize size;
  Bytes pixels;
};

Decoded decode(const Bytes& file, const JpegOptions& options = {}) {
  // A heap copy of exactly the file's size, so that AddressSanitizer sees a read behind its end.
  const Bytes exact(file.begin(), file.end());
  Decoded result;
  JpegDecoder decoder(exact);
  result.error = decoder.open();
  if (!result.error) result.error = decoder.output_size(options, &result.size);
  if (result.error) return result;
  const std::size_t row = std::size_t{result.size.width} * channels_of(options.mode);
  Guarded memory(row * result.size.height);
  result.error = decoder.decode(options, memory.data(), static_cast<std::ptrdiff_t>(row));
  result.pixels.assign(memory.data(), memory.data() + memory.size());
  return result;
}

JpegOptions gray() {
  JpegOptions options;
  options.mode = PixelMode::kGray;
  return options;
}

JpegOptions truncation_allowed() {
  JpegOptions options;
  options.allow_truncated = true;
  return options;
}

/// Offset of the first segment with this marker.
std::size_t find_marker(const Bytes& file, std::uint8_t marker) {
  for (std::size_t i = 2; i + 1 < file.size(); ++i) {
    if (file[i] == 0xFF && file[i + 1] == marker) return i;
  }
  ADD_FAILURE() << "no marker " << int{marker};
  return 0;
}

Bytes with_size(Bytes file, unsigned width, unsigned height) {
  const std::size_t sof = find_marker(file, 0xC0);
  file[sof + 5] = static_cast<std::uint8_t>(height >> 8U);
  file[sof + 6] = static_cast<std::uint8_t>(height);
  file[sof + 7] = static_cast<std::uint8_t>(width >> 8U);
  file[sof + 8] = static_cast<std::uint8_t>(width);
  return file;
}

constexpr unsigned kSizes[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 33};
constexpr int kSamplings[][2] = {{1, 1}, {2, 1}, {1, 2}, {2, 2}, {4, 1}, {4, 2}};

enum class Coding { kBaseline, kProgressive, kArithmetic, kProgressiveArithmetic, kRestarts };

class EveryCoding : public ::testing::TestWithParam<Coding> {
 protected:
  static Recipe recipe() {
    Recipe recipe;
    recipe.progressive =
        GetParam() == Coding::kProgressive || GetParam() == Coding::kProgressiveArithmetic;
    recipe.arithmetic =
        GetParam() == Coding::kArithmetic || GetParam() == Coding::kProgressiveArithmetic;
    recipe.restart_rows = GetParam() == Coding::kRestarts ? 1 : 0;
    return recipe;
  }
};

INSTANTIATE_TEST_SUITE_P(Jpeg, EveryCoding,
                         ::testing::Values(Coding::kBaseline, Coding::kProgressive,
                                           Coding::kArithmetic, Coding::kProgressiveArithmetic,
                                           Coding::kRestarts));

TEST_P(EveryCoding, GivesThePixelsOfLibjpeg) {
  for (const auto& sampling : kSamplings) {
    for (const unsigned height : kSizes) {
      for (const unsigned width : kSizes) {
        Recipe r = recipe();
        r.width = width;
        r.height = height;
        r.h = sampling[0];
        r.v = sampling[1];
        const Bytes file = encode(r);
        SCOPED_TRACE(std::to_string(width) + "x" + std::to_string(height) + " sampled " +
                     std::to_string(r.h) + "x" + std::to_string(r.v));
        const Decoded rgb = decode(file);
        ASSERT_FALSE(rgb.error) << rgb.error.text;
        ASSERT_EQ(rgb.size.width, width);
        ASSERT_EQ(rgb.size.height, height);
        ASSERT_EQ(rgb.pixels, plain_libjpeg(file, JCS_RGB));
        const Decoded luma = decode(file, gray());
        ASSERT_FALSE(luma.error) << luma.error.text;
        ASSERT_EQ(luma.pixels, plain_libjpeg(file, JCS_GRAYSCALE));
      }
    }
  }
}

TEST_P(EveryCoding, EveryPrefixIsTruncated) {
  const Bytes file = encode(recipe());
  Bytes last;
  for (std::size_t cut = 0; cut < file.size(); ++cut) {
    SCOPED_TRACE(cut);
    const Bytes part(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(cut));
    const ErrorCode code = decode(part).error.code;
    ASSERT_EQ(code, cut == 0 ? ErrorCode::kEmpty : ErrorCode::kTruncated);
    // What can be kept is kept as soon as the header is whole.
    const Decoded kept = decode(part, truncation_allowed());
    JpegInfo info;
    ASSERT_EQ(kept.error.code, read_jpeg_info(part, &info).code) << kept.error.text;
    if (kept.error) continue;
    // libjpeg alone gives up where a table between two scans is cut off; nothing is new there.
    const Bytes pixels = plain_libjpeg(part, JCS_RGB);
    if (!pixels.empty()) last = pixels;
    ASSERT_EQ(kept.pixels, last);
  }
  EXPECT_FALSE(last.empty());
}

TEST_P(EveryCoding, DamagedBytesNeverDoMoreThanFail) {
  const Bytes file = encode(recipe());
  JpegOptions strict;
  strict.max_pixels = 1U << 20U;
  JpegOptions lenient = strict;
  lenient.allow_truncated = true;
  lenient.apply_orientation = true;
  std::size_t failed = 0;
  for (std::size_t at = 0; at < file.size(); ++at) {
    for (const std::uint8_t flip : {std::uint8_t{0x01}, std::uint8_t{0x80}, std::uint8_t{0xFF}}) {
      Bytes damaged = file;
      damaged[at] ^= flip;
      if (decode(damaged, strict).error) ++failed;
      static_cast<void>(decode(damaged, lenient));
    }
  }
  EXPECT_GT(failed, 0U);
}

TEST(Jpeg, GrayBecomesRgbByRepetition) {
  Recipe recipe;
  recipe.from = recipe.coded = JCS_GRAYSCALE;
  recipe.h = recipe.v = 1;
  const Bytes file = encode(recipe);
  const Decoded luma = decode(file, gray());
  ASSERT_FALSE(luma.error) << luma.error.text;
  EXPECT_EQ(luma.pixels, plain_libjpeg(file, JCS_GRAYSCALE));
  const Decoded rgb = decode(file);
  ASSERT_FALSE(rgb.error) << rgb.error.text;
  for (std::size_t i = 0; i < rgb.pixels.size(); ++i) {
    ASSERT_EQ(rgb.pixels[i], luma.pixels[i / 3]);
  }
}

TEST(Jpeg, RgbStoredAsRgb) {
  Recipe recipe;
  recipe.coded = JCS_RGB;
  recipe.h = recipe.v = 1;
  const Bytes file = encode(recipe);
  EXPECT_EQ(decode(file).pixels, plain_libjpeg(file, JCS_RGB));
  EXPECT_EQ(decode(file, gray()).pixels, plain_libjpeg(file, JCS_GRAYSCALE));
}

class FourComponents : public ::testing::TestWithParam<J_COLOR_SPACE> {};
INSTANTIATE_TEST_SUITE_P(Jpeg, FourComponents, ::testing::Values(JCS_CMYK, JCS_YCCK));

TEST_P(FourComponents, InvertedOnlyWithTheAdobeMarker) {
  Recipe recipe;
  recipe.from = JCS_CMYK;
  recipe.coded = GetParam();
  if (recipe.coded == JCS_CMYK) recipe.h = recipe.v = 1;
  // Without the marker libjpeg takes four components for CMYK.
  for (const bool adobe : {true, false}) {
    recipe.adobe_marker = adobe;
    const Bytes file = encode(recipe);
    const Bytes cmyk = plain_libjpeg(file, JCS_CMYK);
    const Decoded rgb = decode(file);
    const Decoded luma = decode(file, gray());
    ASSERT_FALSE(rgb.error) << rgb.error.text;
    ASSERT_FALSE(luma.error) << luma.error.text;
    for (std::size_t i = 0; i < cmyk.size() / 4; ++i) {
      const double k = adobe ? cmyk[i * 4 + 3] : 255 - cmyk[i * 4 + 3];
      double sum = 0.5;
      for (std::size_t c = 0; c < 3; ++c) {
        const double ink = adobe ? cmyk[i * 4 + c] : 255 - cmyk[i * 4 + c];
        const auto expected = static_cast<std::uint8_t>(ink * k / 255 + 0.5);
        ASSERT_EQ(rgb.pixels[i * 3 + c], expected);
        sum += expected * (c == 0 ? 0.299 : c == 1 ? 0.587 : 0.114);
      }
      ASSERT_NEAR(luma.pixels[i], sum - 0.5, 0.51);
    }
  }
}

/// Where `oriented` pixel (y, x) comes from, in words of the Exif table: what the row 0 and column
/// 0 of the stored image are.
ImageSize stored_position(int orientation, ImageSize stored, std::uint32_t y, std::uint32_t x) {
  const std::uint32_t bottom = stored.height - 1;
  const std::uint32_t right = stored.width - 1;
  switch (orientation) {
    case 2:
      return {y, right - x};
    case 3:
      return {bottom - y, right - x};
    case 4:
      return {bottom - y, x};
    case 5:
      return {x, y};
    case 6:
      return {bottom - x, y};
    case 7:
      return {bottom - x, right - y};
    case 8:
      return {x, right - y};
    default:
      return {y, x};
  }
}

void put(Bytes& to, std::initializer_list<int> bytes) {
  for (const int byte : bytes) to.push_back(static_cast<std::uint8_t>(byte));
}

/// An APP1 segment with one directory entry.
Bytes exif_segment(bool little, int type, int value, int directory = 8) {
  Bytes tiff;
  const auto u16 = [&](int n) {
    little ? put(tiff, {n & 255, n >> 8}) : put(tiff, {n >> 8, n & 255});
  };
  const auto u32 = [&](int n) {
    if (little) {
      u16(n & 0xFFFF), u16(n >> 16);
    } else {
      u16(n >> 16), u16(n & 0xFFFF);
    }
  };
  put(tiff, little ? std::initializer_list<int>{'I', 'I'} : std::initializer_list<int>{'M', 'M'});
  u16(42);
  u32(directory);
  u16(2);
  u16(0x010E), u16(2), u32(4), u32(0);
  u16(0x0112), u16(type), u32(1);
  if (type == 4) {
    u32(value);
  } else {
    u16(value), u16(0);
  }
  u32(0);
  Bytes segment;
  const int length = static_cast<int>(tiff.size()) + 8;
  put(segment, {0xFF, 0xE1, length >> 8, length & 255, 'E', 'x', 'i', 'f', 0, 0});
  segment.insert(segment.end(), tiff.begin(), tiff.end());
  return segment;
}

Bytes with_segment(const Bytes& file, const Bytes& segment) {
  Bytes result(file.begin(), file.begin() + 2);
  result.insert(result.end(), segment.begin(), segment.end());
  result.insert(result.end(), file.begin() + 2, file.end());
  return result;
}

TEST(Jpeg, TurnsAsTheOrientationSaysWhenAsked) {
  for (const J_COLOR_SPACE space : {JCS_YCbCr, JCS_CMYK}) {
    Recipe recipe;
    recipe.width = 37;
    recipe.height = 21;
    recipe.coded = space;
    if (space == JCS_CMYK) {
      recipe.from = JCS_CMYK;
      recipe.h = recipe.v = 1;
    }
    const Bytes upright = encode(recipe);
    for (int orientation = 1; orientation <= 8; ++orientation) {
      const Bytes file = with_segment(upright, exif_segment(orientation % 2 == 0, 3, orientation));
      for (const PixelMode mode : {PixelMode::kRgb, PixelMode::kGray}) {
        SCOPED_TRACE(orientation);
        JpegOptions options;
        options.mode = mode;
        const Decoded stored = decode(upright, options);
        const Decoded left_alone = decode(file, options);
        ASSERT_FALSE(left_alone.error) << left_alone.error.text;
        ASSERT_EQ(left_alone.pixels, stored.pixels);
        options.apply_orientation = true;
        const Decoded turned = decode(file, options);
        ASSERT_FALSE(turned.error) << turned.error.text;
        ASSERT_EQ(turned.size.height, orientation < 5 ? 21U : 37U);
        ASSERT_EQ(turned.size.width, orientation < 5 ? 37U : 21U);
        const std::size_t channels = channels_of(mode);
        for (std::uint32_t y = 0; y < turned.size.height; ++y) {
          for (std::uint32_t x = 0; x < turned.size.width; ++x) {
            const ImageSize from = stored_position(orientation, stored.size, y, x);
            for (std::size_t c = 0; c < channels; ++c) {
              ASSERT_EQ(turned.pixels[(std::size_t{y} * turned.size.width + x) * channels + c],
                        stored.pixels[(std::size_t{from.height} * 37 + from.width) * channels + c]);
            }
          }
        }
      }
    }
  }
}

TEST(Jpeg, LeavesTheGapsBetweenRowsAlone) {
  const Bytes file = encode({});
  const Bytes packed = decode(file).pixels;
  constexpr std::size_t kRow = 17 * 3;
  constexpr std::size_t kStride = kRow + 5;
  for (const bool upside_down : {false, true}) {
    Guarded memory(kStride * 12 + kRow);
    JpegDecoder decoder(file);
    ASSERT_FALSE(decoder.open());
    const auto stride = static_cast<std::ptrdiff_t>(kStride);
    ASSERT_FALSE(upside_down ? decoder.decode({}, memory.data() + 12 * kStride, -stride)
                             : decoder.decode({}, memory.data(), stride));
    for (std::size_t y = 0; y < 13; ++y) {
      const std::uint8_t* const row = memory.data() + (upside_down ? 12 - y : y) * kStride;
      for (std::size_t x = 0; x < kRow; ++x) ASSERT_EQ(row[x], packed[y * kRow + x]);
    }
    for (std::size_t y = 0; y < 12; ++y) {
      for (std::size_t x = kRow; x < kStride; ++x) {
        ASSERT_EQ(memory.data()[y * kStride + x], Guarded::kUntouched);
      }
    }
  }
}

TEST(Jpeg, SaysWhatTheHeaderSays) {
  Recipe recipe;
  recipe.width = 300;
  recipe.height = 20;
  recipe.progressive = true;
  recipe.h = 2;
  recipe.v = 1;
  JpegInfo info;
  ASSERT_FALSE(read_jpeg_info(with_segment(encode(recipe), exif_segment(true, 3, 7)), &info));
  EXPECT_EQ(info.width, 300U);
  EXPECT_EQ(info.height, 20U);
  EXPECT_EQ(info.components, 3);
  EXPECT_EQ(info.color_space, "YCbCr");
  EXPECT_EQ(info.subsampling, "4:2:2");
  EXPECT_TRUE(info.progressive);
  EXPECT_FALSE(info.arithmetic);
  EXPECT_EQ(info.orientation, 7);

  const struct {
    int h;
    int v;
    const char* name;
  } cases[] = {{1, 1, "4:4:4"}, {2, 1, "4:2:2"}, {1, 2, "4:4:0"}, {2, 2, "4:2:0"},
               {4, 1, "4:1:1"}, {1, 4, "4:4:1"}, {4, 2, "4:1:0"}, {3, 1, ""}};
  for (const auto& c : cases) {
    Recipe other;
    other.h = c.h;
    other.v = c.v;
    ASSERT_FALSE(read_jpeg_info(encode(other), &info));
    EXPECT_EQ(info.subsampling, c.name);
    EXPECT_FALSE(info.progressive);
  }
  Recipe arithmetic;
  arithmetic.from = arithmetic.coded = JCS_GRAYSCALE;
  arithmetic.arithmetic = true;
  ASSERT_FALSE(read_jpeg_info(encode(arithmetic), &info));
  EXPECT_EQ(info.components, 1);
  EXPECT_EQ(info.color_space, "grayscale");
  EXPECT_EQ(info.subsampling, "");
  EXPECT_TRUE(info.arithmetic);
}

TEST(Jpeg, NamesWhatItCannotDecode) {
  EXPECT_EQ(decode({}).error.code, ErrorCode::kEmpty);
  EXPECT_EQ(decode({0x89, 'P', 'N', 'G'}).error.code, ErrorCode::kNotJpeg);
  EXPECT_EQ(decode({0x89, 'P', 'N', 'G'}).error.text, "Not a JPEG file: starts with 0x89 0x50");

  const Bytes file = encode({});
  const std::size_t sof = find_marker(file, 0xC0);
  Bytes twelve_bits = file;
  twelve_bits[sof + 4] = 12;
  EXPECT_EQ(decode(twelve_bits).error.code, ErrorCode::kUnsupported);
  EXPECT_EQ(decode(with_size(file, 17, 0)).error.code, ErrorCode::kUnsupported);

  // Two components: SOF and SOS of a grey image, given a second one.
  Recipe recipe;
  recipe.from = recipe.coded = JCS_GRAYSCALE;
  recipe.h = recipe.v = 1;
  Bytes two = encode(recipe);
  const std::size_t gray_sof = find_marker(two, 0xC0);
  two[gray_sof + 3] = static_cast<std::uint8_t>(two[gray_sof + 3] + 3);
  two[gray_sof + 9] = 2;
  two.insert(two.begin() + static_cast<std::ptrdiff_t>(gray_sof) + 13, {2, 0x11, 0});
  const Decoded unknown = decode(two);
  EXPECT_EQ(unknown.error.code, ErrorCode::kUnsupported);
  EXPECT_EQ(unknown.error.text, "2 components of unknown meaning");
}

TEST(Jpeg, TellsDamageFromHarmlessOddities) {
  Recipe recipe;
  recipe.width = recipe.height = 64;
  recipe.restart_rows = 1;
  const Bytes file = encode(recipe);
  const Bytes pixels = decode(file).pixels;
  const auto inserted = [&](std::size_t at) {
    Bytes odd = file;
    odd.insert(odd.begin() + static_cast<std::ptrdiff_t>(at), {0x12, 0x34, 0x56});
    return decode(odd);
  };
  // Between segments, and in front of the end marker: cameras do that.
  const Decoded before_table = inserted(find_marker(file, 0xDB));
  EXPECT_FALSE(before_table.error) << before_table.error.text;
  EXPECT_EQ(before_table.pixels, pixels);
  EXPECT_EQ(inserted(find_marker(file, 0xD9)).pixels, pixels);
  // In front of a restart marker: the interval was not what it claimed to be.
  EXPECT_EQ(inserted(find_marker(file, 0xD0)).error.code, ErrorCode::kCorrupt);
  // A restart marker out of turn.
  Bytes out_of_turn = file;
  out_of_turn[find_marker(file, 0xD0) + 1] = 0xD3;
  EXPECT_EQ(decode(out_of_turn).error.code, ErrorCode::kCorrupt);
  EXPECT_EQ(decode(out_of_turn, truncation_allowed()).error.code, ErrorCode::kCorrupt);
  // What follows the end marker is not ours.
  Bytes tail = file;
  tail.insert(tail.end(), 1000, 0xFF);
  EXPECT_EQ(decode(tail).pixels, pixels);
}

TEST(Jpeg, AnEndMarkerThatComesTooEarlyIsTruncation) {
  Recipe recipe;
  recipe.width = recipe.height = 64;
  Bytes file = encode(recipe);
  file.erase(file.end() - 200, file.end());
  const Bytes cut = file;
  put(file, {0xFF, 0xD9});
  EXPECT_EQ(decode(file).error.code, ErrorCode::kTruncated);
  const Decoded kept = decode(file, truncation_allowed());
  EXPECT_FALSE(kept.error) << kept.error.text;
  EXPECT_EQ(kept.pixels, decode(cut, truncation_allowed()).pixels);
}

TEST(Jpeg, AMissingEndMarkerIsNoticedBehindTheImageData) {
  Bytes file = encode({});
  const Bytes pixels = decode(file).pixels;
  file.erase(file.end() - 2, file.end());
  put(file, {0xFF, 0xFE, 0, 4, 'n', 'o'});  // a comment, which ends the image data
  EXPECT_EQ(decode(file).error.code, ErrorCode::kTruncated);
  EXPECT_EQ(decode(file, truncation_allowed()).pixels, pixels);
  put(file, {0xFF, 0xD9});
  EXPECT_EQ(decode(file).pixels, pixels);
}

TEST(Jpeg, RefusesMorePixelsThanAllowed) {
  const Bytes file = encode({});
  JpegOptions options;
  options.max_pixels = 17 * 13;
  EXPECT_FALSE(decode(file, options).error);
  options.max_pixels = 17 * 13 - 1;
  const Decoded refused = decode(file, options);
  EXPECT_EQ(refused.error.code, ErrorCode::kTooManyPixels);
  EXPECT_EQ(refused.error.text, "17 x 13 is 221 pixels, more than max_pixels=220");
  // Width times height does not fit 32 bits.
  options.max_pixels = 178'956'970;
  EXPECT_EQ(decode(with_size(file, 65500, 65500), options).error.code, ErrorCode::kTooManyPixels);
}

/// A progressive file of 4 scans, and its last scan this many times more. Nothing forbids that as
/// long as every scan gives all bits.
Bytes with_scans(int repeated) {
  Recipe recipe;
  recipe.all_bits_scans = true;
  const Bytes file = encode(recipe);
  std::size_t last = 0;
  for (std::size_t i = 0; i + 1 < file.size(); ++i) {
    if (file[i] == 0xFF && file[i + 1] == 0xDA) last = i;
  }
  Bytes bomb(file.begin(), file.end() - 2);
  for (int i = 0; i < repeated; ++i) {
    bomb.insert(bomb.end(), file.begin() + static_cast<std::ptrdiff_t>(last), file.end() - 2);
  }
  put(bomb, {0xFF, 0xD9});
  return bomb;
}

TEST(Jpeg, RefusesMoreScansThanAllowed) {
  const Decoded most = decode(with_scans(96));
  EXPECT_FALSE(most.error) << most.error.text;
  EXPECT_EQ(most.pixels, decode(with_scans(0)).pixels);
  const Decoded refused = decode(with_scans(97));
  EXPECT_EQ(refused.error.code, ErrorCode::kTooManyScans);
  EXPECT_EQ(refused.error.text, "more than 100 scans");
  EXPECT_EQ(decode(with_scans(10'000), truncation_allowed()).error.code, ErrorCode::kTooManyScans);
  JpegOptions options;
  options.max_scans = 4;
  EXPECT_FALSE(decode(with_scans(0), options).error);
  EXPECT_EQ(decode(with_scans(1), options).error.code, ErrorCode::kTooManyScans);
}

TEST(Jpeg, RefusesMoreMemoryThanAllowed) {
  Recipe recipe;
  recipe.width = 640;
  recipe.height = 480;
  recipe.progressive = true;
  const Bytes file = encode(recipe);
  JpegOptions options;
  EXPECT_FALSE(decode(file, options).error);
  options.max_memory = 256U << 10U;
  const Decoded refused = decode(file, options);
  EXPECT_EQ(refused.error.code, ErrorCode::kMemoryLimit);
  EXPECT_EQ(refused.error.text, "decoding needs more than 262144 bytes of working memory");
  options.max_memory = 8U << 20U;
  EXPECT_FALSE(decode(file, options).error);
}

TEST(Jpeg, MemoryForThinImagesIsEnough) {
  // One column of whole MCUs: the padding is many times the image.
  Recipe recipe;
  recipe.width = 1;
  recipe.height = 20000;
  recipe.h = 4;
  recipe.v = 2;
  recipe.progressive = true;
  const Bytes file = encode(recipe);
  const Decoded thin = decode(file);
  ASSERT_FALSE(thin.error) << thin.error.text;
  EXPECT_EQ(thin.pixels, plain_libjpeg(file, JCS_RGB));
}

TEST(Jpeg, TablesOfOneImageAreNotUsedForTheNext) {
  Recipe recipe;
  ASSERT_FALSE(decode(encode(recipe)).error);
  recipe.tables = false;
  EXPECT_EQ(decode(encode(recipe)).error.code, ErrorCode::kCorrupt);
}

TEST(Jpeg, ThreadsDecodeAtTheSameTime) {
  const Bytes good = encode({});
  const Bytes expected = plain_libjpeg(good, JCS_RGB);
  const Bytes cut(good.begin(), good.end() - 20);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        if (decode(good).pixels != expected) ++wrong;
        if (decode(cut).error.code != ErrorCode::kTruncated) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

Bytes minimal(const Bytes& segment) { return with_segment({0xFF, 0xD8, 0xFF, 0xD9}, segment); }

TEST(Exif, ReadsBothByteOrdersAndTypes) {
  for (const bool little : {false, true}) {
    for (const int type : {3, 4}) {
      for (int value = 1; value <= 8; ++value) {
        EXPECT_EQ(exif_orientation(minimal(exif_segment(little, type, value))), value);
      }
    }
  }
}

TEST(Exif, AnythingElseIsUpright) {
  EXPECT_EQ(exif_orientation({}), 1);
  EXPECT_EQ(exif_orientation(minimal({})), 1);
  EXPECT_EQ(exif_orientation(minimal(exif_segment(true, 3, 0))), 1);
  EXPECT_EQ(exif_orientation(minimal(exif_segment(true, 3, 9))), 1);
  EXPECT_EQ(exif_orientation(minimal(exif_segment(true, 4, 0x10006))), 1);
  EXPECT_EQ(exif_orientation(minimal(exif_segment(true, 5, 6))), 1);              // not a number
  EXPECT_EQ(exif_orientation(minimal(exif_segment(true, 3, 6, 0x7FFFFFFF))), 1);  // far outside
  for (const std::uint8_t length : {std::uint8_t{0}, std::uint8_t{1}}) {
    Bytes impossible = exif_segment(true, 3, 6);  // a segment shorter than its own length field
    impossible[2] = 0;
    impossible[3] = length;
    EXPECT_EQ(exif_orientation(minimal(impossible)), 1);
  }
  Bytes late = encode({});
  const Bytes segment = exif_segment(true, 3, 6);
  late.insert(late.end() - 2, segment.begin(), segment.end());
  EXPECT_EQ(exif_orientation(late), 1) << "behind the image data it does not count";
}

TEST(Exif, TheFirstExifSegmentCounts) {
  Bytes both = exif_segment(true, 3, 6);
  const Bytes second = exif_segment(true, 3, 3);
  both.insert(both.end(), second.begin(), second.end());
  EXPECT_EQ(exif_orientation(minimal(both)), 6);
  Bytes xmp;
  put(xmp, {0xFF, 0xE1, 0, 10, 'h', 't', 't', 'p', ':', '/', '/', 'n'});
  xmp.insert(xmp.end(), second.begin(), second.end());
  EXPECT_EQ(exif_orientation(minimal(xmp)), 3);
}

TEST(Exif, DamageIsHarmless) {
  const Bytes good = minimal(exif_segment(false, 3, 6));
  for (std::size_t cut = 0; cut < good.size(); ++cut) {
    const Bytes part(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(cut));
    const int orientation = exif_orientation(part);
    EXPECT_TRUE(orientation == 1 || orientation == 6);
  }
  for (std::size_t at = 0; at < good.size(); ++at) {
    for (int value = 0; value < 256; ++value) {
      Bytes damaged = good;
      damaged[at] = static_cast<std::uint8_t>(value);
      const int orientation = exif_orientation(damaged);
      EXPECT_GE(orientation, 1);
      EXPECT_LE(orientation, 8);
    }
  }
}

class Files : public ::testing::Test {
 protected:
  Files() {
    std::string pattern = (std::filesystem::temp_directory_path() / "jpeg_test.XXXXXX").string();
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  ~Files() override { std::filesystem::remove_all(folder_); }

  std::string path(const char* name) const { return folder_ + "/" + name; }

  std::string folder_;
};

TEST_F(Files, ReadsWholeFilesAndBeginnings) {
  Bytes content(300'000);
  for (std::size_t i = 0; i < content.size(); ++i) content[i] = static_cast<std::uint8_t>(i % 251);
  std::ofstream(path("a"), std::ios::binary)
      .write(reinterpret_cast<const char*>(content.data()), 300'000);
  FileReader reader;
  ASSERT_EQ(reader.read(path("a").c_str(), 1000), 0);
  EXPECT_EQ(reader.bytes().size(), 1000U);
  EXPECT_FALSE(reader.at_end());
  ASSERT_EQ(reader.read(path("a").c_str()), 0);
  EXPECT_TRUE(reader.at_end());
  FileReader exact;
  ASSERT_EQ(exact.read(path("a").c_str(), content.size()), 0);
  EXPECT_TRUE(exact.at_end()) << "a file that gave all it promised is at its end";
  EXPECT_EQ(Bytes(reader.bytes().begin(), reader.bytes().end()), content);
}

TEST_F(Files, SaysWhyItCannotRead) {
  EXPECT_EQ(FileReader().read(path("missing").c_str()), ENOENT);
  EXPECT_EQ(FileReader().read(folder_.c_str()), EISDIR);
  std::ofstream(path("huge")).put('x');
  std::filesystem::resize_file(path("huge"), FileReader::kMaxBytes + 1);
  EXPECT_EQ(FileReader().read(path("huge").c_str()), EFBIG);
  // What does not say how long it is ends at the limit all the same.
  FileReader endless(100'000);
  EXPECT_EQ(endless.read("/dev/zero"), EFBIG);
  EXPECT_EQ(endless.bytes().size(), 100'000U);
  std::ofstream(path("empty")).flush();
  FileReader empty;
  EXPECT_EQ(empty.read(path("empty").c_str()), 0);
  EXPECT_TRUE(empty.at_end());
  EXPECT_TRUE(empty.bytes().empty());
}

TEST_F(Files, ReadsPipesAndGoesOnAfterSignals) {
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  struct sigaction quiet{};
  quiet.sa_handler = [](int) {};  // without SA_RESTART
  struct sigaction before{};
  ASSERT_EQ(::sigaction(SIGUSR1, &quiet, &before), 0);
  std::atomic<bool> interrupted{false};
  Bytes got;
  std::thread thread([&] {
    FileReader reader;
    int error = 0;
    while ((error = reader.read(path("pipe").c_str())) == EINTR) interrupted = true;
    EXPECT_EQ(error, 0);
    got.assign(reader.bytes().begin(), reader.bytes().end());
  });
  while (!interrupted) {  // until one signal found it blocked in open()
    ::pthread_kill(thread.native_handle(), SIGUSR1);
    std::this_thread::yield();
  }
  const int fd = ::open(path("pipe").c_str(), O_WRONLY);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::write(fd, "abc", 3), 3);
  interrupted = false;
  while (!interrupted) {  // and one in read()
    ::pthread_kill(thread.native_handle(), SIGUSR1);
    std::this_thread::yield();
  }
  ASSERT_EQ(::write(fd, "def", 3), 3);
  ::close(fd);
  thread.join();
  EXPECT_EQ(got, (Bytes{'a', 'b', 'c', 'd', 'e', 'f'}));
  ASSERT_EQ(::sigaction(SIGUSR1, &before, nullptr), 0);
}

}  // namespace
}  // namespace stook::decode
