#include "workers/decode/exif.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>

namespace stook::decode {
namespace {

using Bytes = std::span<const std::uint8_t>;

constexpr std::uint8_t kMarkerPrefix = 0xFF;
constexpr std::uint8_t kTem = 0x01;
constexpr std::uint8_t kRst0 = 0xD0;
constexpr std::uint8_t kSoi = 0xD8;
constexpr std::uint8_t kEoi = 0xD9;
constexpr std::uint8_t kSos = 0xDA;
constexpr std::uint8_t kApp1 = 0xE1;
constexpr std::array<std::uint8_t, 6> kExifSignature = {'E', 'x', 'i', 'f', 0, 0};

constexpr unsigned kOrientationTag = 0x0112;
constexpr unsigned kTypeShort = 3;
constexpr unsigned kTypeLong = 4;
constexpr std::size_t kEntrySize = 12;

/// A TIFF structure: numbers in the byte order it declares, nothing outside its bytes.
class TiffView {
 public:
  static std::optional<TiffView> open(Bytes bytes) {
    if (bytes.size() < 8) return std::nullopt;
    const bool little = bytes[0] == 'I' && bytes[1] == 'I';
    const bool big = bytes[0] == 'M' && bytes[1] == 'M';
    if (!little && !big) return std::nullopt;
    const TiffView view(bytes, little);
    if (view.u16(2) != 42U) return std::nullopt;
    return view;
  }

  std::optional<unsigned> u16(std::size_t at) const {
    if (at > bytes_.size() || bytes_.size() - at < 2) return std::nullopt;
    const unsigned first = bytes_[at];
    const unsigned second = bytes_[at + 1];
    return little_ ? (second << 8U) | first : (first << 8U) | second;
  }

  std::optional<std::uint32_t> u32(std::size_t at) const {
    if (at > bytes_.size() || bytes_.size() - at < 4) return std::nullopt;
    const std::uint32_t low = *u16(little_ ? at : at + 2);
    const std::uint32_t high = *u16(little_ ? at + 2 : at);
    return (high << 16U) | low;
  }

 private:
  TiffView(Bytes bytes, bool little) : bytes_(bytes), little_(little) {}

  Bytes bytes_;
  bool little_;
};

/// The orientation in the first directory of the TIFF structure, if it names a valid one.
std::optional<int> tiff_orientation(Bytes bytes) {
  const auto tiff = TiffView::open(bytes);
  if (!tiff) return std::nullopt;
  const std::size_t directory = tiff->u32(4).value_or(0);
  const auto entries = tiff->u16(directory);
  if (!entries) return std::nullopt;
  for (std::size_t i = 0; i < *entries; ++i) {
    const std::size_t entry = directory + 2 + i * kEntrySize;
    const auto tag = tiff->u16(entry);
    if (!tag) return std::nullopt;  // the directory runs out of its segment
    if (*tag != kOrientationTag) continue;
    const unsigned type = tiff->u16(entry + 2).value_or(0);
    const std::uint32_t count = tiff->u32(entry + 4).value_or(0);
    std::uint32_t value = 0;
    if (count == 1 && type == kTypeShort) value = tiff->u16(entry + 8).value_or(0);
    if (count == 1 && type == kTypeLong) value = tiff->u32(entry + 8).value_or(0);
    if (value < 1 || value > 8) return std::nullopt;
    return static_cast<int>(value);
  }
  return std::nullopt;
}

}  // namespace

int exif_orientation(Bytes jpeg) noexcept {
  std::size_t at = 0;
  while (true) {
    // As libjpeg does: skip whatever is not a marker, and any number of fill bytes in front of one.
    while (at < jpeg.size() && jpeg[at] != kMarkerPrefix) ++at;
    while (at < jpeg.size() && jpeg[at] == kMarkerPrefix) ++at;
    if (at >= jpeg.size()) return 1;
    const std::uint8_t marker = jpeg[at++];
    if (marker == kSos || marker == kEoi) return 1;
    if (marker == 0 || marker == kTem || (marker >= kRst0 && marker <= kSoi)) continue;
    if (jpeg.size() - at < 2) return 1;
    const std::size_t length = (static_cast<std::size_t>(jpeg[at]) << 8U) | jpeg[at + 1];
    if (length < 2 || jpeg.size() - at < length) return 1;
    const Bytes body = jpeg.subspan(at + 2, length - 2);
    at += length;
    if (marker != kApp1 || body.size() < kExifSignature.size()) continue;
    if (!std::equal(kExifSignature.begin(), kExifSignature.end(), body.begin())) continue;
    return tiff_orientation(body.subspan(kExifSignature.size())).value_or(1);
  }
}

}  // namespace stook::decode
