#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "workers/decode/bytes.h"
#include "workers/decode/error.h"

namespace stook::decode {

/// A member of a zip archive, as the central directory describes it.
struct ZipMember {
  std::string name{};
  bool utf8 = false;  // how `name` is to be read; code page 437 where not
  bool encrypted = false;
  std::uint16_t method = 0;  // 0: stored, 8: deflated
  std::uint32_t crc = 0;
  std::uint64_t stored_size = 0;  // in the archive
  std::uint64_t size = 0;         // of the content
  std::uint64_t header_at = 0;    // of the member's own header
};

/// The members of a zip archive (PKWARE's APPNOTE.TXT, with zip64; one volume; what stands in front
/// of the archive is skipped). Refused: a directory that contradicts itself or the archive's size,
/// members that overlap, and a directory longer than kMaxDirectory.
///
/// `bytes` must stay. One thread at a time; needs no GIL; blocks as `bytes` does.
class ZipDirectory {
 public:
  static constexpr std::uint64_t kMaxDirectory = std::uint64_t{64} << 20U;

  explicit ZipDirectory(ByteSource& bytes) : bytes_(bytes) {}

  /// Reads the directory; from the beginning where EINTR ended it.
  Error open();

  const std::vector<ZipMember>& members() const { return members_; }

 private:
  friend class ZipStream;
  Error read_entries(std::span<const std::uint8_t> directory, std::uint64_t count);
  Error check_places() const;

  ByteSource& bytes_;
  std::vector<ZipMember> members_;
  std::uint64_t begin_ = 0;         // of the archive, behind what stands in front of it
  std::uint64_t directory_at_ = 0;  // which is where the last member ends at the latest
};

/// The content of a member, checked against its size and its CRC-32. Errors do not name the member.
///
/// The directory must stay. One thread at a time; needs no GIL; blocks as the bytes do.
class ZipStream final : public ByteStream {
 public:
  ZipStream(const ZipDirectory& directory, const ZipMember& member);
  ~ZipStream() override;

  /// Checks what can be checked before anything is read; `left` counts from then on. After EINTR it
  /// may be called again.
  Error open();

  std::uint64_t left() const override { return left_; }
  Error read(std::span<std::uint8_t> to, std::size_t* done) override;
  Error finish() override;

 private:
  struct Inflater;

  Error read_stored(std::span<std::uint8_t> to, std::size_t* done);
  Error inflate_some(std::span<std::uint8_t> to, std::size_t* done);

  ByteSource& bytes_;
  const ZipMember& member_;
  std::uint64_t begin_;
  std::uint64_t limit_;
  std::uint64_t at_ = 0;      // of the next byte of the archive
  std::uint64_t end_ = 0;     // behind the member's last
  std::uint64_t left_ = 0;    // of the content
  std::size_t refilled_ = 0;  // of the input that EINTR kept from being complete
  unsigned long crc_ = 0;
  std::unique_ptr<Inflater> inflater_;
};

}  // namespace stook::decode
