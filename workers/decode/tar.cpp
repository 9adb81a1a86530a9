#include "workers/decode/tar.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>

#include "workers/decode/npy_header.h"

namespace stook::decode {
namespace {

constexpr std::size_t kBlock = 512;
using Block = std::array<std::uint8_t, kBlock>;

// Of a name or of pax records. Linux has paths of 4 KiB; pax records may hold other things, too.
constexpr std::uint64_t kMaxText = std::uint64_t{1} << 20U;

struct Field {
  std::size_t at;
  std::size_t size;
};
constexpr Field kName = {0, 100};
constexpr Field kSize = {124, 12};
constexpr Field kChecksum = {148, 8};
constexpr std::size_t kType = 156;
constexpr Field kTarget = {157, 100};
constexpr Field kMagic = {257, 6};
constexpr Field kPrefix = {345, 155};

constexpr std::uint64_t padded(std::uint64_t size) { return (size + kBlock - 1) / kBlock * kBlock; }

std::span<const std::uint8_t> bytes_of(const Block& block, Field field) {
  return std::span(block).subspan(field.at, field.size);
}

/// Up to the first zero byte.
std::string_view text_of(const Block& block, Field field) {
  const std::span<const std::uint8_t> bytes = bytes_of(block, field);
  const auto end = std::find(bytes.begin(), bytes.end(), 0);
  return {reinterpret_cast<const char*>(bytes.data()),
          static_cast<std::size_t>(end - bytes.begin())};
}

/// Octal digits between blanks, or (GNU) a big-endian number behind a byte of 0x80.
std::optional<std::uint64_t> number_of(const Block& block, Field field) {
  std::span<const std::uint8_t> bytes = bytes_of(block, field);
  std::uint64_t value = 0;
  if (bytes[0] >= 0x80) {
    if (bytes[0] != 0x80) return {};  // negative, or larger than anything
    for (const std::uint8_t byte : bytes.subspan(1)) {
      if (value >> 55U != 0) return {};
      value = value << 8U | byte;
    }
    return value;
  }
  while (!bytes.empty() && bytes.front() == ' ') bytes = bytes.subspan(1);
  while (!bytes.empty() && (bytes.back() == ' ' || bytes.back() == 0))
    bytes = bytes.first(bytes.size() - 1);
  for (const std::uint8_t byte : bytes) {
    if (byte < '0' || byte > '7') return {};
    value = value << 3U | static_cast<std::uint64_t>(byte - '0');
  }
  return value;
}

/// The sum of all bytes with blanks for the field of the sum itself. Old programs added signed
/// ones.
bool checksum_is_right(const Block& block) {
  const std::optional<std::uint64_t> said = number_of(block, kChecksum);
  if (!said) return false;
  std::int64_t sum = 0;
  std::int64_t signed_sum = 0;
  for (std::size_t i = 0; i < kBlock; ++i) {
    const bool own = i >= kChecksum.at && i < kChecksum.at + kChecksum.size;
    const std::uint8_t byte = own ? std::uint8_t{' '} : block[i];
    sum += byte;
    signed_sum += static_cast<std::int8_t>(byte);
  }
  const auto expected = static_cast<std::int64_t>(*said);
  return expected == sum || expected == signed_sum;
}

Error bad(std::uint64_t at, const std::string& problem) {
  return {ErrorCode::kBadHeader,
          "bad tar archive: " + problem + " (header at byte " + std::to_string(at) + ")"};
}

Error cut(std::uint64_t at) {
  return {ErrorCode::kEndsEarly,
          "the tar archive ends early, at byte " + std::to_string(at) + ", without its end marker"};
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c; }

}  // namespace

struct TarReader::Header {
  Block block{};
  std::uint64_t size = 0;
  char type = '0';
  bool end = false;
};

std::string_view TarMembers::name(std::size_t member) const {
  const auto begin = static_cast<std::size_t>(member == 0 ? 0 : name_ends[member - 1]);
  return std::string_view(names).substr(begin, static_cast<std::size_t>(name_ends[member]) - begin);
}

Error TarReader::read(std::size_t headers) {
  for (; headers > 0 && !at_end_; --headers) {
    Header header;
    if (Error error = read_header(&header); error) return error;
    if (header.end) {
      at_end_ = true;
      break;
    }
    if (Error error = take(header); error) return error;
  }
  return {};
}

Error TarReader::read_header(Header* header) {
  const std::uint64_t size = bytes_.size();
  if (size == 0) return {ErrorCode::kEmpty, "empty: 0 bytes"};
  Block& block = header->block;
  std::size_t done = 0;
  const std::size_t there = static_cast<std::size_t>(std::min<std::uint64_t>(size - at_, kBlock));
  if (Error error = bytes_.read(at_, std::span(block).first(there), &done); error) return error;
  if (at_ == 0) {
    const bool gzip = block[0] == 0x1F && block[1] == 0x8B;
    const bool zstd = block[0] == 0x28 && block[1] == 0xB5 && block[2] == 0x2F && block[3] == 0xFD;
    const bool xz = block[0] == 0xFD && block[1] == '7' && block[2] == 'z';
    const bool bzip2 = block[0] == 'B' && block[1] == 'Z' && block[2] == 'h';
    if (gzip || zstd || xz || bzip2) {
      return {ErrorCode::kUnsupported,
              std::string("compressed (") +
                  (gzip   ? "gzip"
                   : zstd ? "zstd"
                   : xz   ? "xz"
                          : "bzip2") +
                  "): the members of a compressed archive cannot be read from anywhere; "
                  "decompress it first"};
    }
  }
  if (there < kBlock) return cut(size);
  if (std::all_of(block.begin(), block.end(), [](std::uint8_t byte) { return byte == 0; })) {
    header->end = true;
    return {};
  }
  if (!checksum_is_right(block)) {
    return bad(at_,
               at_ == 0 ? "no tar archive, or a damaged one: wrong checksum" : "wrong checksum");
  }
  const std::optional<std::uint64_t> content = number_of(block, kSize);
  if (!content) return bad(at_, "the size of a member is no number");
  header->size = *content;
  header->type = static_cast<char>(block[kType]);
  return {};
}

Error TarReader::read_text(std::uint64_t size, std::string* text) {
  if (size > kMaxText) return bad(at_, "an extended header of " + std::to_string(size) + " bytes");
  if (bytes_.size() - at_ - kBlock < size) return cut(bytes_.size());
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(size));
  std::size_t done = 0;
  if (Error error = bytes_.read(at_ + kBlock, bytes, &done); error) return error;
  text->assign(bytes.begin(), bytes.end());
  return {};
}

/// "<length of all of it> <key>=<value>\n", again and again.
Error TarReader::read_pax(std::string_view records) {
  while (!records.empty()) {
    std::size_t length = 0;
    const char* const end = records.data() + records.size();
    const auto [after, problem] = std::from_chars(records.data(), end, length);
    const auto digits = static_cast<std::size_t>(after - records.data());
    if (problem != std::errc() || length > records.size() || length < digits + 2 || *after != ' ' ||
        records[length - 1] != '\n')
      return bad(at_, "damaged pax records");
    const std::string_view record = records.substr(digits + 1, length - digits - 2);
    records.remove_prefix(length);
    const std::size_t equals = record.find('=');
    if (equals == std::string_view::npos) return bad(at_, "a pax record without a value");
    const std::string_view key = record.substr(0, equals);
    const std::string_view value = record.substr(equals + 1);
    if (key == "path") {
      next_name_ = value;
    } else if (key == "linkpath") {
      next_target_ = value;
    } else if (key == "size") {
      std::uint64_t number = 0;
      const auto [last, wrong] = std::from_chars(value.data(), value.data() + value.size(), number);
      if (wrong != std::errc() || last != value.data() + value.size())
        return bad(at_, "the size of a member is no number");
      next_size_ = number;
    } else if (key.substr(0, 11) == "GNU.sparse.") {
      return {ErrorCode::kUnsupported,
              "holds a sparse file (header at byte " + std::to_string(at_) +
                  "), whose content is not in one piece; pack it without --sparse"};
    }
  }
  return {};
}

Error TarReader::take(const Header& header) {
  const Block& block = header.block;
  std::uint64_t size = header.size;
  const bool extended = header.type == 'x' || header.type == 'X' || header.type == 'L' ||
                        header.type == 'K' || header.type == 'g';
  if (!extended && next_size_) size = *next_size_;
  const bool has_content = !(header.type >= '1' && header.type <= '6');
  if (!has_content) size = 0;
  const std::uint64_t content_at = at_ + kBlock;
  if (size > bytes_.size() - content_at) return cut(bytes_.size());

  if (extended) {
    std::string text;
    if (header.type != 'g') {
      if (Error error = read_text(size, &text); error) return error;
    }
    if (header.type == 'L' || header.type == 'K') {
      text.resize(std::min(text.find('\0'), text.size()));
      (header.type == 'L' ? next_name_ : next_target_) = std::move(text);
    } else if (header.type != 'g') {
      if (Error error = read_pax(text); error) return error;
    }
  } else {
    if (header.type == 'S') {
      return {ErrorCode::kUnsupported,
              "holds a sparse file (header at byte " + std::to_string(at_) +
                  "), whose content is not in one piece; pack it without --sparse"};
    }
    std::string name;
    if (next_name_) {
      name = std::move(*next_name_);
    } else {
      const std::string_view prefix = text_of(block, kPrefix);
      // GNU's magic is "ustar " and its prefix another thing.
      if (text_of(block, kMagic) == "ustar" && !prefix.empty()) name = std::string(prefix) + "/";
      name += text_of(block, kName);
    }
    const bool folder = !name.empty() && name.back() == '/';
    if ((header.type == '0' || header.type == '\0' || header.type == '7') && !folder) {
      add(name, static_cast<std::int64_t>(content_at), static_cast<std::int64_t>(size));
    } else if (header.type == '1') {
      links_.push_back({members_.count(), next_target_ ? std::move(*next_target_)
                                                       : std::string(text_of(block, kTarget))});
      add(name, -1, 0);
    } else if (header.type >= '2' && header.type <= '6') {
      passed_over_.push_back({members_.count(), name});
    }
    next_name_.reset();
    next_target_.reset();
    next_size_.reset();
  }
  // The last member of an archive that was cut may lack its padding.
  at_ = content_at + padded(size);
  if (at_ > bytes_.size()) at_ = bytes_.size();
  return {};
}

void TarReader::add(std::string_view name, std::int64_t offset, std::int64_t size) {
  members_.names += name;
  members_.name_ends.push_back(static_cast<std::int64_t>(members_.names.size()));
  members_.offsets.push_back(offset);
  members_.sizes.push_back(size);
}

Error TarReader::resolve_links(bool allow_missing) {
  if (links_.empty()) return {};
  // By name, the latest in front of the link. Names are copied, for those of `members_` may move.
  // Links to what is no file, such as to a symbolic link, are none either.
  constexpr std::size_t kNoFile = SIZE_MAX;
  std::unordered_map<std::string, std::size_t> places;
  TarMembers kept;
  std::swap(kept, members_);
  std::size_t link = 0;
  std::size_t passed = 0;
  for (std::size_t member = 0; member < kept.count(); ++member) {
    for (; passed < passed_over_.size() && passed_over_[passed].member <= member; ++passed)
      places[passed_over_[passed].name] = kNoFile;
    std::int64_t offset = kept.offsets[member];
    std::int64_t size = kept.sizes[member];
    if (link < links_.size() && links_[link].member == member) {
      const std::string& target = links_[link++].target;
      const auto found = places.find(target);
      if (found == places.end()) {
        if (allow_missing) continue;
        return {ErrorCode::kBadHeader, "bad tar archive: " + quoted(kept.name(member)) +
                                           " is a hard link to " + quoted(target) +
                                           ", which is not in front of it"};
      }
      if (found->second == kNoFile) {
        places[std::string(kept.name(member))] = kNoFile;
        continue;
      }
      offset = members_.offsets[found->second];
      size = members_.sizes[found->second];
    }
    add(kept.name(member), offset, size);
    places[std::string(kept.name(member))] = members_.count() - 1;
  }
  links_.clear();
  passed_over_.clear();
  return {};
}

std::optional<std::size_t> dot_of(std::string_view name) {
  const std::size_t slash = name.rfind('/');
  const std::size_t base = slash == std::string_view::npos ? 0 : slash + 1;
  const std::size_t dot = name.find('.', base);
  if (dot == std::string_view::npos || dot == base) return {};
  return dot;
}

Error group_samples(const TarMembers& members, TarSamples* samples) {
  std::string_view key;
  std::set<std::string> endings;
  for (std::size_t member = 0; member < members.count(); ++member) {
    const std::string_view name = members.name(member);
    const std::optional<std::size_t> dot = dot_of(name);
    if (!dot) continue;
    if (samples->ends.empty() || name.substr(0, *dot) != key) {
      key = name.substr(0, *dot);
      endings.clear();
      samples->ends.push_back(static_cast<std::int64_t>(samples->members.size()));
    }
    std::string ending(name.substr(*dot + 1));
    std::transform(ending.begin(), ending.end(), ending.begin(), lower);
    if (!endings.insert(std::move(ending)).second) {
      return {ErrorCode::kBadHeader,
              "two members of sample " + quoted(key) + " have the ending of " + quoted(name)};
    }
    samples->members.push_back(static_cast<std::int64_t>(member));
    ++samples->ends.back();
  }
  return {};
}

}  // namespace stook::decode
