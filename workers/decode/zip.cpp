#include "workers/decode/zip.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <string_view>

#include <zlib.h>

#include "workers/decode/npy_header.h"

namespace stook::decode {
namespace {

constexpr std::uint16_t kStored = 0;
constexpr std::uint16_t kDeflated = 8;

// Sizes of the records without what varies.
constexpr std::size_t kEndSize = 22;
constexpr std::size_t kEnd64Size = 56;
constexpr std::size_t kLocatorSize = 20;
constexpr std::size_t kEntrySize = 46;
constexpr std::size_t kHeaderSize = 30;

constexpr std::uint32_t kEndMark = 0x06054b50;
constexpr std::uint32_t kEnd64Mark = 0x06064b50;
constexpr std::uint32_t kLocatorMark = 0x07064b50;
constexpr std::uint32_t kEntryMark = 0x02014b50;
constexpr std::uint32_t kHeaderMark = 0x04034b50;

constexpr std::size_t kMaxComment = 0xFFFF;
constexpr std::uint16_t kZip64 = 1;  // tag of the extra field with the long sizes
constexpr std::uint32_t kInZip64 = 0xFFFFFFFF;

// What deflate can make of a byte at most (zlib's manual, "Maximum Compression Factor"), rounded
// up.
constexpr std::uint64_t kMaxInflation = 1040;

// Small enough that what was read is still in the second-level cache when its CRC is computed.
constexpr std::size_t kBlock = std::size_t{256} << 10U;
constexpr std::size_t kInput = std::size_t{64} << 10U;

/// A number of `kBytes` bytes, least significant first; the caller has checked that it is there.
template <std::size_t kBytes>
std::uint64_t number(std::span<const std::uint8_t> from, std::size_t at) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < kBytes; ++i) value |= std::uint64_t{from[at + i]} << 8U * i;
  return value;
}

std::uint16_t u16(std::span<const std::uint8_t> from, std::size_t at) {
  return static_cast<std::uint16_t>(number<2>(from, at));
}

std::uint32_t u32(std::span<const std::uint8_t> from, std::size_t at) {
  return static_cast<std::uint32_t>(number<4>(from, at));
}

std::uint64_t u64(std::span<const std::uint8_t> from, std::size_t at) {
  return number<8>(from, at);
}

Error bad(const std::string& problem) {
  return {ErrorCode::kBadHeader, "bad zip archive: " + problem};
}

Error bad_member(const std::string& problem) { return {ErrorCode::kCorrupt, problem}; }

/// Sizes and the place of a member that do not fit into 32 bits. False where the extra field is
/// damaged.
bool read_zip64(std::span<const std::uint8_t> extra, ZipMember* member) {
  while (extra.size() >= 4) {
    const std::uint16_t tag = u16(extra, 0);
    const std::size_t size = u16(extra, 2);
    if (size > extra.size() - 4) return false;
    if (tag == kZip64) {
      std::span<const std::uint8_t> values = extra.subspan(4, size);
      for (std::uint64_t* value : {&member->size, &member->stored_size, &member->header_at}) {
        if (*value != kInZip64) continue;
        if (values.size() < 8) return false;
        *value = u64(values, 0);
        values = values.subspan(8);
      }
      return true;
    }
    extra = extra.subspan(4 + size);
  }
  return true;
}

}  // namespace

Error ZipDirectory::open() {
  members_.clear();
  const std::uint64_t size = bytes_.size();
  if (size == 0) return {ErrorCode::kEmpty, "empty: 0 bytes"};
  // The end record and everything that may belong to it, in one piece.
  const std::uint64_t tail_size =
      std::min<std::uint64_t>(size, kEnd64Size + kLocatorSize + kEndSize + kMaxComment);
  std::vector<std::uint8_t> tail(tail_size);
  std::size_t done = 0;
  if (Error error = bytes_.read(size - tail_size, tail, &done); error) return error;
  std::size_t end = tail.size();  // where the end record is, or nowhere
  for (std::size_t at = tail.size() < kEndSize ? 0 : tail.size() - kEndSize + 1; at-- > 0;) {
    if (u32(tail, at) == kEndMark && u16(tail, at + 20) <= tail.size() - at - kEndSize) {
      end = at;
      break;
    }
  }
  if (end == tail.size()) {
    const std::string_view start(reinterpret_cast<const char*>(tail.data()),
                                 std::min<std::size_t>(tail.size(), 4));
    if (tail_size == size && start != "PK\x03\x04")
      return {ErrorCode::kBadHeader, "no zip archive: begins with " + quoted(start)};
    return {ErrorCode::kEndsEarly,
            "no zip archive, or one that ends early: its directory is missing"};
  }
  std::uint64_t count = u16(tail, end + 10);
  std::uint64_t directory_size = u32(tail, end + 12);
  std::uint64_t directory_offset = u32(tail, end + 16);
  std::uint64_t disk = u16(tail, end + 4);
  std::uint64_t directory_end = size - tail_size + end;
  if (end >= kLocatorSize + kEnd64Size && u32(tail, end - kLocatorSize) == kLocatorMark) {
    const std::size_t end64 = end - kLocatorSize - kEnd64Size;
    if (u32(tail, end64) != kEnd64Mark)
      return bad("its zip64 end record is not where it should be");
    disk = u32(tail, end64 + 16);
    count = u64(tail, end64 + 32);
    directory_size = u64(tail, end64 + 40);
    directory_offset = u64(tail, end64 + 48);
    directory_end -= kLocatorSize + kEnd64Size;
  }
  if (disk != 0) return bad("a part of several volumes");
  if (directory_size > directory_end || directory_offset > directory_end - directory_size)
    return bad("its directory does not fit in front of its end");
  if (directory_size > kMaxDirectory)
    return bad("a directory of " + std::to_string(directory_size) + " bytes");
  directory_at_ = directory_end - directory_size;
  begin_ = directory_at_ - directory_offset;
  std::vector<std::uint8_t> directory(directory_size);
  done = 0;
  if (Error error = bytes_.read(directory_at_, directory, &done); error) return error;
  return read_entries(directory, count);
}

Error ZipDirectory::read_entries(std::span<const std::uint8_t> directory, std::uint64_t count) {
  while (!directory.empty()) {
    if (directory.size() < kEntrySize || u32(directory, 0) != kEntryMark)
      return bad("damaged directory");
    const std::size_t name_size = u16(directory, 28);
    const std::size_t extra_size = u16(directory, 30);
    const std::size_t entry_size = kEntrySize + name_size + extra_size + u16(directory, 32);
    if (entry_size > directory.size()) return bad("damaged directory");
    ZipMember member;
    const std::uint16_t flags = u16(directory, 8);
    member.encrypted = (flags & 1U) != 0;
    member.utf8 = (flags & 0x800U) != 0;
    member.method = u16(directory, 10);
    member.crc = u32(directory, 16);
    member.stored_size = u32(directory, 20);
    member.size = u32(directory, 24);
    member.header_at = u32(directory, 42);
    member.name.assign(reinterpret_cast<const char*>(directory.data()) + kEntrySize, name_size);
    if (!read_zip64(directory.subspan(kEntrySize + name_size, extra_size), &member))
      return bad("damaged sizes of member " + quoted(member.name));
    members_.push_back(std::move(member));
    directory = directory.subspan(entry_size);
  }
  if (members_.size() != count) {
    return bad("its directory has " + std::to_string(members_.size()) + " members, its end says " +
               std::to_string(count));
  }
  return check_places();
}

/// Whether every member has bytes of its own. Where they are shared, a small archive promises any
/// amount of content.
Error ZipDirectory::check_places() const {
  std::vector<const ZipMember*> in_order;
  in_order.reserve(members_.size());
  for (const ZipMember& member : members_) in_order.push_back(&member);
  std::sort(in_order.begin(), in_order.end(),
            [](const auto* a, const auto* b) { return a->header_at < b->header_at; });
  for (std::size_t i = 1; i < in_order.size(); ++i) {
    const ZipMember& member = *in_order[i - 1];
    const std::uint64_t room = in_order[i]->header_at - member.header_at;
    if (room < kHeaderSize || member.stored_size > room - kHeaderSize) {
      return bad("members " + quoted(member.name) + " and " + quoted(in_order[i]->name) +
                 " overlap");
    }
  }
  return {};
}

/// zlib's state and the compressed bytes that it has not taken yet.
struct ZipStream::Inflater {
  z_stream stream{};
  bool created = false;
  bool ended = false;
  std::array<std::uint8_t, kInput> input;

  Inflater() = default;
  ~Inflater() {
    if (created) inflateEnd(&stream);
  }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
};

ZipStream::ZipStream(const ZipDirectory& directory, const ZipMember& member)
    : bytes_(directory.bytes_),
      member_(member),
      begin_(directory.begin_),
      limit_(directory.directory_at_) {}

ZipStream::~ZipStream() = default;

Error ZipStream::open() {
  if (member_.encrypted) return {ErrorCode::kUnsupported, "encrypted"};
  if (member_.method != kStored && member_.method != kDeflated) {
    return {ErrorCode::kUnsupported, "compressed by method " + std::to_string(member_.method) +
                                         "; 0 (stored) and 8 (deflated) are known"};
  }
  const auto outside = [] { return bad_member("lies outside of its archive"); };
  const std::uint64_t room = limit_ - begin_;
  if (room < kHeaderSize || member_.header_at > room - kHeaderSize) return outside();
  std::array<std::uint8_t, kHeaderSize> header;
  std::size_t done = 0;
  if (Error error = bytes_.read(begin_ + member_.header_at, header, &done); error) return error;
  if (u32(header, 0) != kHeaderMark) return bad_member("is not where the directory says");
  at_ = begin_ + member_.header_at + kHeaderSize + u16(header, 26) + u16(header, 28);
  if (at_ > limit_ || member_.stored_size > limit_ - at_) return outside();
  end_ = at_ + member_.stored_size;
  const bool possible = member_.method == kStored
                            ? member_.size == member_.stored_size
                            : member_.size / kMaxInflation <= member_.stored_size;
  if (!possible) {
    return bad_member("cannot have " + std::to_string(member_.size) + " bytes of content in " +
                      std::to_string(member_.stored_size));
  }
  if (member_.method == kDeflated && !inflater_) {
    inflater_ = std::make_unique<Inflater>();
    if (inflateInit2(&inflater_->stream, -MAX_WBITS) != Z_OK)
      return {ErrorCode::kOutOfMemory, "no memory to inflate"};
    inflater_->created = true;
  }
  left_ = member_.size;
  return {};
}

Error ZipStream::read(std::span<std::uint8_t> to, std::size_t* done) {
  // `left_` counts what was handed out for good: whole calls.
  if (to.size() > left_) return ends_early(left_, to.size());
  while (*done < to.size()) {
    if (Error error = inflater_ ? inflate_some(to, done) : read_stored(to, done); error)
      return error;
  }
  left_ -= to.size();
  return {};
}

Error ZipStream::read_stored(std::span<std::uint8_t> to, std::size_t* done) {
  const std::size_t count = std::min(kBlock, to.size() - *done);
  const std::span<std::uint8_t> block = to.subspan(*done, count);
  const std::size_t before = refilled_;
  Error error = bytes_.read(at_, block, &refilled_);
  crc_ = crc32_z(crc_, block.data() + before, refilled_ - before);
  if (error) return error;
  refilled_ = 0;
  at_ += count;
  *done += count;
  return {};
}

Error ZipStream::inflate_some(std::span<std::uint8_t> to, std::size_t* done) {
  z_stream& stream = inflater_->stream;
  if (inflater_->ended) return bad_member("has less content than its header says");
  if (stream.avail_in == 0 && at_ < end_) {
    const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(kInput, end_ - at_));
    const std::span<std::uint8_t> input = std::span(inflater_->input).first(count);
    if (Error error = bytes_.read(at_, input, &refilled_); error) return error;
    refilled_ = 0;
    at_ += count;
    stream.next_in = input.data();
    stream.avail_in = static_cast<uInt>(count);
  }
  std::uint8_t* const from = to.data() + *done;
  const std::size_t room = std::min(kBlock, to.size() - *done);
  stream.next_out = from;
  stream.avail_out = static_cast<uInt>(room);
  const int result = inflate(&stream, Z_NO_FLUSH);
  const std::size_t got = room - stream.avail_out;
  crc_ = crc32_z(crc_, from, got);
  *done += got;
  if (result == Z_STREAM_END) {
    inflater_->ended = true;
    return {};
  }
  if (result == Z_MEM_ERROR) return {ErrorCode::kOutOfMemory, "no memory to inflate"};
  if (result == Z_OK) return {};
  if (result == Z_BUF_ERROR) return bad_member("has less content than its header says");
  return bad_member(std::string("cannot be inflated: ") +
                    (stream.msg != nullptr ? stream.msg : "damaged data"));
}

Error ZipStream::finish() {
  if (left_ != 0) return bad_member("has more content than its .npy header says");
  if (inflater_ && !inflater_->ended) {
    // The end of the compressed data comes behind the last byte of content.
    std::uint8_t none = 0;
    std::size_t done = 0;
    while (done == 0 && !inflater_->ended) {
      Error error = inflate_some({&none, 1}, &done);
      if (error) return error;
    }
    if (done != 0) return bad_member("has more content than its header says");
  }
  if (inflater_ && (at_ != end_ || inflater_->stream.avail_in != 0))
    return bad_member("has bytes behind its compressed data");
  if (crc_ != member_.crc) return bad_member("is damaged: its CRC-32 is wrong");
  return {};
}

}  // namespace stook::decode
