#include "workers/decode/resized_crop.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "tests/cpp/unit/jpeg_recipes.h"
#include "workers/decode/batch.h"

namespace stook::decode {
namespace {

struct Image {
  Error error;
  ImageSize size;
  Bytes pixels;
};

Image decode_whole(const Bytes& file, const JpegOptions& options = {}) {
  Image image;
  JpegDecoder decoder(file);
  image.error = decoder.open();
  if (!image.error) image.error = decoder.output_size(options, &image.size);
  if (image.error) return image;
  const std::size_t row = std::size_t{image.size.width} * channels_of(options.mode);
  image.pixels.resize(row * image.size.height);
  image.error = decoder.decode(options, image.pixels.data(), static_cast<std::ptrdiff_t>(row));
  return image;
}

/// Into memory of exactly the right size, so that AddressSanitizer sees a write behind its end.
Image crop(const Bytes& file, std::optional<CropBox> box, const ResizedCropOptions& options,
           bool flip = false, const Kernels& kernels = best_kernels()) {
  const Bytes exact(file.begin(), file.end());
  Image image;
  image.size = options.size;
  const std::size_t row =
      std::size_t{options.size.width} * channels_of(options.jpeg.mode) * size_of(options.type);
  image.pixels.resize(row * options.size.height);
  const CropTarget target{image.pixels.data(), static_cast<std::ptrdiff_t>(row), 0};
  image.error = decode_resized_crop(exact, box, flip, options, target, kernels);
  return image;
}

ResizedCropOptions sized(std::uint32_t height, std::uint32_t width) {
  ResizedCropOptions options;
  options.size = {height, width};
  options.scaled_decode = false;
  return options;
}

Bytes part_of(const Image& image, std::size_t channels, unsigned left, unsigned top, unsigned right,
              unsigned bottom) {
  Bytes part;
  for (std::size_t y = top; y < bottom; ++y) {
    const auto row =
        image.pixels.begin() + static_cast<std::ptrdiff_t>(y * image.size.width * channels);
    part.insert(part.end(), row + static_cast<std::ptrdiff_t>(left * channels),
                row + static_cast<std::ptrdiff_t>(right * channels));
  }
  return part;
}

std::vector<Recipe> recipes() {
  std::vector<Recipe> all;
  constexpr int kSamplings[][2] = {{1, 1}, {2, 1}, {1, 2}, {2, 2}, {4, 1}, {4, 2}, {1, 4}};
  for (const auto& sampling : kSamplings) {
    for (const int coding : {0, 1, 2, 3}) {
      Recipe r;
      r.width = 75;
      r.height = 58;
      r.h = sampling[0];
      r.v = sampling[1];
      r.progressive = coding == 1;
      r.arithmetic = coding == 2;
      r.restart_rows = coding == 3 ? 1 : 0;
      all.push_back(r);
    }
  }
  Recipe gray;
  gray.width = 75;
  gray.height = 58;
  gray.from = gray.coded = JCS_GRAYSCALE;
  gray.h = gray.v = 1;
  all.push_back(gray);
  Recipe rgb = gray;
  rgb.from = rgb.coded = JCS_RGB;
  all.push_back(rgb);
  for (const J_COLOR_SPACE coded : {JCS_CMYK, JCS_YCCK}) {
    for (const bool adobe : {true, false}) {
      Recipe cmyk = gray;
      cmyk.from = JCS_CMYK;
      cmyk.coded = coded;
      cmyk.adobe_marker = adobe || coded == JCS_YCCK;
      all.push_back(cmyk);
    }
  }
  return all;
}

TEST(ResizedCrop, AtItsOwnSizeABoxIsAPartOfTheWholeImage) {
  std::mt19937 random(5);
  for (const Recipe& recipe : recipes()) {
    const Bytes file = encode(recipe);
    for (const PixelMode mode : {PixelMode::kRgb, PixelMode::kGray}) {
      JpegOptions plain;
      plain.mode = mode;
      const Image whole = decode_whole(file, plain);
      ASSERT_FALSE(whole.error) << whole.error.text;
      for (int i = 0; i < 40; ++i) {
        unsigned x[2] = {static_cast<unsigned>(random() % 76),
                         static_cast<unsigned>(random() % 76)};
        unsigned y[2] = {static_cast<unsigned>(random() % 59),
                         static_cast<unsigned>(random() % 59)};
        if (i >= 30) x[1] = x[0] + 1 + static_cast<unsigned>(i) % 2;  // narrow
        if (i == 3) x[0] = 0, x[1] = 1, y[0] = 0, y[1] = 4;
        if (x[1] > 75) continue;
        if (i == 0) x[0] = y[0] = 0, x[1] = 75, y[1] = 58;
        if (i == 1) x[0] = y[0] = 0, x[1] = 1, y[1] = 1;
        if (i == 2) x[0] = 74, y[0] = 57, x[1] = 75, y[1] = 58;
        if (x[0] > x[1]) std::swap(x[0], x[1]);
        if (y[0] > y[1]) std::swap(y[0], y[1]);
        if (x[0] == x[1] || y[0] == y[1]) continue;
        ResizedCropOptions options = sized(y[1] - y[0], x[1] - x[0]);
        options.jpeg = plain;
        const CropBox box{1.0 * x[0], 1.0 * y[0], 1.0 * x[1], 1.0 * y[1]};
        const Image part = crop(file, box, options);
        ASSERT_FALSE(part.error) << part.error.text;
        ASSERT_EQ(part.pixels, part_of(whole, channels_of(mode), x[0], y[0], x[1], y[1]))
            << x[0] << ", " << y[0] << ", " << x[1] << ", " << y[1] << " of " << recipe.h << "x"
            << recipe.v << (recipe.progressive ? " progressive" : "");
      }
    }
  }
}

TEST(ResizedCrop, WhereScansAreMissingABoxIsSmoothedAsTheWhole) {
  for (const int sampling : {1, 2}) {
    Recipe recipe;
    recipe.width = 130;
    recipe.height = 70;
    recipe.h = recipe.v = sampling;
    recipe.progressive = true;
    const Bytes file = encode(recipe);
    for (std::size_t part = 3; part < 8; ++part) {
      const auto cut = static_cast<std::ptrdiff_t>(file.size() * part / 8);
      const Bytes some(file.begin(), file.begin() + cut);
      JpegOptions lenient;
      lenient.allow_truncated = true;
      const Image whole = decode_whole(some, lenient);
      ASSERT_FALSE(whole.error) << whole.error.text;
      for (unsigned left = 1; left < 120; left += 9) {
        ResizedCropOptions options = sized(40, 7);
        options.jpeg = lenient;
        const CropBox box{1.0 * left, 20, left + 7.0, 60};
        ASSERT_EQ(crop(some, box, options).pixels, part_of(whole, 3, left, 20, left + 7, 60))
            << left << " of the first " << part << "/8";
      }
    }
  }
}

/// Mean of the squared differences, as a ratio to the largest possible in dB.
double psnr(const Bytes& a, const Bytes& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(a[i] - b[i], 2);
  return sum == 0 ? INFINITY : 10 * std::log10(255.0 * 255 * static_cast<double>(a.size()) / sum);
}

Bytes smooth_file(unsigned width, unsigned height) {
  Recipe recipe;
  recipe.width = width;
  recipe.height = height;
  recipe.smooth = true;
  return encode(recipe);
}

TEST(ResizedCrop, ScaledDecodingGivesNearlyTheSame) {
  const Bytes file = smooth_file(640, 480);
  for (const std::uint32_t size : {300U, 200U, 100U, 50U, 20U}) {
    ResizedCropOptions options = sized(size * 3 / 4, size);
    const Image unscaled = crop(file, {}, options);
    options.scaled_decode = true;
    const Image scaled = crop(file, {}, options);
    ASSERT_FALSE(scaled.error) << scaled.error.text;
    EXPECT_GT(psnr(scaled.pixels, unscaled.pixels), 40) << size;
    EXPECT_NE(scaled.pixels, unscaled.pixels) << size;
  }
}

TEST(ResizedCrop, ScalesOnlyWhereAsManyPixelsAreLeft) {
  const Bytes file = smooth_file(640, 480);
  for (const auto& [height, width] : {std::pair{241U, 10U}, {10U, 321U}}) {
    ResizedCropOptions options = sized(height, width);
    const Image unscaled = crop(file, {}, options);
    options.scaled_decode = true;
    EXPECT_EQ(crop(file, {}, options).pixels, unscaled.pixels);
  }
}

TEST(ResizedCrop, FlippedIsMirrored) {
  Recipe recipe;
  recipe.width = 90;
  recipe.height = 70;
  const Bytes file = encode(recipe);
  const CropBox box{3.5, 2.25, 81.75, 66};
  const ResizedCropOptions options = sized(33, 29);
  const Image straight = crop(file, box, options);
  const Image flipped = crop(file, box, options, true);
  for (std::size_t y = 0; y < 33; ++y) {
    for (std::size_t x = 0; x < 29; ++x) {
      for (std::size_t c = 0; c < 3; ++c) {
        ASSERT_EQ(flipped.pixels[(y * 29 + x) * 3 + c], straight.pixels[(y * 29 + 28 - x) * 3 + c]);
      }
    }
  }
}

TEST(ResizedCrop, AllKernelsGiveTheSame) {
  if (avx2_kernels() == nullptr) GTEST_SKIP() << "this processor has no AVX2 and F16C";
  const Bytes file = smooth_file(300, 200);
  for (const PixelMode mode : {PixelMode::kRgb, PixelMode::kGray}) {
    for (const ElementType type :
         {ElementType::kUint8, ElementType::kFloat32, ElementType::kFloat16}) {
      for (const std::uint32_t size : {1U, 30U, 223U, 500U}) {
        ResizedCropOptions options = sized(size, size + 1);
        options.jpeg.mode = mode;
        options.type = type;
        options.scale.scale[1] = 0.01F;
        const CropBox box{10.3, 20, 290, 199.5};
        ASSERT_EQ(crop(file, box, options, true, *avx2_kernels()).pixels,
                  crop(file, box, options, true, portable_kernels()).pixels);
      }
    }
  }
}

TEST(ResizedCrop, ABoxMustLieWithinTheImage) {
  Recipe recipe;
  const Bytes file = encode(recipe);  // 17 x 13
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  const CropBox bad[] = {{0, 0, 18, 13},   {0, 0, 17, 14},      {-0.001, 0, 17, 13},
                         {0, -1, 17, 13},  {5, 0, 5, 13},       {6, 0, 5, 13},
                         {0, 7, 17, 7},    {0, 0, 17.001, 1},   {kNan, 0, 17, 13},
                         {0, 0, kNan, 13}, {0, 0, INFINITY, 13}};
  for (const CropBox& box : bad) {
    const Image image = crop(file, box, sized(2, 2));
    ASSERT_EQ(image.error.code, ErrorCode::kBadBox) << box.left << ", " << box.right;
    ASSERT_NE(image.error.text.find("within 17 x 13"), std::string::npos) << image.error.text;
  }
  for (const CropBox& box :
       {CropBox{16.999, 12.999, 17, 13}, {0, 0, 1e-300, 1e-300}, {0, 0, 17, 13}})
    ASSERT_FALSE(crop(file, box, sized(2, 2)).error);
}

TEST(ResizedCrop, CutAnywhereItIsTruncatedWhateverTheBox) {
  for (const bool progressive : {false, true}) {
    Recipe recipe;
    recipe.width = 40;
    recipe.height = 40;
    recipe.progressive = progressive;
    const Bytes file = encode(recipe);
    for (const CropBox& box : {CropBox{0, 0, 40, 1}, {0, 0, 40, 40}, {5, 35, 9, 36}}) {
      for (std::size_t cut = 0; cut < file.size(); ++cut) {
        const Bytes part(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(cut));
        ASSERT_EQ(crop(part, box, sized(4, 4)).error.code,
                  cut == 0 ? ErrorCode::kEmpty : ErrorCode::kTruncated)
            << cut;
        ResizedCropOptions options = sized(4, 4);
        options.jpeg.allow_truncated = true;
        JpegInfo info;
        ASSERT_EQ(crop(part, box, options).error.code, read_jpeg_info(part, &info).code) << cut;
      }
      ASSERT_FALSE(crop(file, box, sized(4, 4)).error);
      Bytes followed = file;
      followed.insert(followed.end(), 100, 0xFF);
      ASSERT_FALSE(crop(followed, box, sized(4, 4)).error);
    }
  }
}

TEST(ResizedCrop, TheEndBelowTheBoxIsFoundFromMarkerToMarker) {
  Recipe recipe;
  recipe.width = recipe.height = 64;
  const Bytes file = encode(recipe);
  const Bytes coded(file.begin(), file.end() - 2);
  const auto code_with = [&coded](std::initializer_list<int> tail) {
    Bytes some = coded;
    for (const int byte : tail) some.push_back(static_cast<std::uint8_t>(byte));
    return crop(some, CropBox{0, 0, 64, 8}, sized(4, 4)).error.code;
  };
  EXPECT_EQ(code_with({0xFF, 0xD9}), ErrorCode::kOk);
  EXPECT_EQ(code_with({0xFF, 0xFF, 0xFF, 0xD9}), ErrorCode::kOk);                    // fill bytes
  EXPECT_EQ(code_with({0xFF, 0x01, 0xFF, 0xD3, 0xFF, 0xD9}), ErrorCode::kOk);        // no lengths
  EXPECT_EQ(code_with({0xFF, 0xFE, 0, 4, 0xFF, 0xD9, 0xFF, 0xD9}), ErrorCode::kOk);  // a comment
  EXPECT_EQ(code_with({0xFF, 0xFE, 0, 4, 0xFF, 0xD9}), ErrorCode::kTruncated);
  EXPECT_EQ(code_with({0xFF, 0xFE, 0, 9, 0xFF, 0xD9}), ErrorCode::kTruncated);
  EXPECT_EQ(code_with({0xFF, 0xFE, 0, 0, 0xFF, 0xD9}), ErrorCode::kOk);  // a length that is none
  EXPECT_EQ(code_with({0xFF, 0xFE, 0}), ErrorCode::kTruncated);
  EXPECT_EQ(code_with({0xFF}), ErrorCode::kTruncated);
}

TEST(ResizedCrop, OfATruncatedImageTheRowsThatAreThereAreKept) {
  Recipe recipe;
  recipe.width = recipe.height = 64;
  const Bytes file = encode(recipe);
  const Bytes half(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(file.size() / 2));
  ResizedCropOptions options = sized(8, 64);
  options.jpeg.allow_truncated = true;
  EXPECT_EQ(crop(half, CropBox{0, 0, 64, 8}, options).pixels,
            crop(file, CropBox{0, 0, 64, 8}, options).pixels);
}

TEST(ResizedCrop, DamagedBytesNeverDoMoreThanFail) {
  for (const bool progressive : {false, true}) {
    Recipe recipe;
    recipe.width = 40;
    recipe.height = 30;
    recipe.progressive = progressive;
    const Bytes file = encode(recipe);
    std::size_t failed = 0;
    for (std::size_t at = 0; at < file.size(); ++at) {
      for (const std::uint8_t flip : {std::uint8_t{0x01}, std::uint8_t{0x80}, std::uint8_t{0xFF}}) {
        Bytes damaged = file;
        damaged[at] ^= flip;
        ResizedCropOptions options = sized(5, 7);
        options.jpeg.max_pixels = 1U << 20U;
        options.jpeg.allow_truncated = at % 2 == 0;
        options.scaled_decode = at % 3 == 0;
        if (crop(damaged, CropBox{3, 4, 38, 28}, options).error) ++failed;
      }
    }
    EXPECT_GT(failed, 0U);
  }
}

TEST(ResizedCrop, TooManyPixelsAreRefusedFirst) {
  Bytes file = encode(Recipe{});
  ResizedCropOptions options = sized(4, 4);
  options.jpeg.max_pixels = 17 * 13 - 1;
  EXPECT_EQ(crop(file, CropBox{0, 0, 1, 1}, options).error.code, ErrorCode::kTooManyPixels);
  options.jpeg.max_pixels = 17 * 13;
  EXPECT_FALSE(crop(file, CropBox{0, 0, 1, 1}, options).error);
}

// ---- batches

class Batch : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = ::testing::TempDir() + "stook_batch_" + std::to_string(::getpid()) + ".jpg";
    std::FILE* const file = std::fopen(path_.c_str(), "wb");
    ASSERT_NE(file, nullptr);
    ASSERT_EQ(std::fwrite(good_.data(), 1, good_.size(), file), good_.size());
    ASSERT_EQ(std::fclose(file), 0);
  }
  void TearDown() override { std::remove(path_.c_str()); }

  static BatchItem of(const Bytes& bytes) {
    BatchItem item;
    item.bytes = bytes;
    return item;
  }
  static BatchItem of(const char* path) {
    BatchItem item;
    item.path = path;
    return item;
  }

  Bytes good_ = encode(Recipe{});
  std::string path_;
};

TEST_F(Batch, OneThatFailsLeavesZerosAndHoldsUpNoOther) {
  const Bytes bad = {1, 2, 3};
  std::vector<BatchItem> items = {of(good_), of(bad), of(path_.c_str()), of("/nonexistent"),
                                  of(good_)};
  items[4].box = CropBox{1, 2, 9, 10};
  items[4].flip = true;
  const ResizedCropOptions options = sized(6, 5);
  const std::size_t row = 15 + 1;  // with a gap
  const std::size_t image = 6 * row + 4;
  Bytes pixels(5 * image, 0xA5);
  BatchDecoder decoder(items, options);
  ASSERT_EQ(decoder.run({pixels.data(), static_cast<std::ptrdiff_t>(row), 0},
                        static_cast<std::ptrdiff_t>(image)),
            0);
  ASSERT_EQ(decoder.outcomes().size(), 5U);
  EXPECT_EQ(decoder.outcomes()[1].error.code, ErrorCode::kNotJpeg);
  EXPECT_EQ(decoder.outcomes()[3].system_error, ENOENT);
  const Bytes whole = crop(good_, {}, options).pixels;
  const Bytes boxed = crop(good_, CropBox{1, 2, 9, 10}, options, true).pixels;
  const Bytes none(whole.size(), 0);
  const Bytes* const expected[] = {&whole, &none, &whole, &none, &boxed};
  for (std::size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(decoder.outcomes()[i].failed(), i == 1 || i == 3) << i;
    for (std::size_t y = 0; y < 6; ++y) {
      for (std::size_t x = 0; x < 15; ++x)
        ASSERT_EQ(pixels[i * image + y * row + x], (*expected[i])[y * 15 + x]) << i;
      ASSERT_EQ(pixels[i * image + y * row + 15], 0xA5);
    }
  }
}

TEST_F(Batch, PlanesOfOneThatFailsAreZeros) {
  const Bytes bad = {1, 2, 3};
  const ResizedCropOptions options = sized(4, 5);
  Bytes pixels(3 * 30, 0xA5);
  BatchDecoder decoder({of(bad)}, options);
  ASSERT_EQ(decoder.run({pixels.data(), 6, 30}, 0), 0);
  for (std::size_t i = 0; i < pixels.size(); ++i)
    ASSERT_EQ(pixels[i], i % 30 < 24 && i % 6 < 5 ? 0 : 0xA5) << i;
}

}  // namespace
}  // namespace stook::decode
