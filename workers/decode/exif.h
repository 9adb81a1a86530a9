#pragma once

#include <cstdint>
#include <span>

namespace stook::decode {

/// Orientation (1 to 8, Exif 2.32 section 4.6.5, tag 0x0112) named by the first Exif segment in
/// front of the image data.
///
/// 1, which means "as stored", where there is no such segment, no such tag, a value outside 1 to 8,
/// or anything damaged: metadata that cannot be read never makes an image unreadable.
/// Every offset is checked against its segment; any thread may call; never blocks or allocates.
int exif_orientation(std::span<const std::uint8_t> jpeg) noexcept;

}  // namespace stook::decode
