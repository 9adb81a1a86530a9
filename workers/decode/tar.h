#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "workers/decode/bytes.h"
#include "workers/decode/error.h"

namespace stook::decode {

/// Where the files of a tar archive lie in it, in their order. A table of columns: a shard has
/// millions of members at times, and a struct with a string for each takes several times as much.
struct TarMembers {
  std::string names{};                    // one after the other
  std::vector<std::int64_t> name_ends{};  // in `names`
  std::vector<std::int64_t> offsets{};    // in the archive's bytes
  std::vector<std::int64_t> sizes{};

  std::size_t count() const { return sizes.size(); }
  std::string_view name(std::size_t member) const;
};

/// Samples in the manner of WebDataset: neighbours whose names agree up to the first dot of the
/// last path component, and what follows that dot tells them apart.
struct TarSamples {
  std::vector<std::int64_t> members{};  // of all samples, one sample after the other
  std::vector<std::int64_t> ends{};     // in `members`
};

/// Reads the headers of a tar archive: v7, ustar, GNU (long names, long sizes) and pax.
///
/// Folders, symbolic links, devices and pipes are passed over; a hard link is the file that it
/// leads to. Refused: sparse files, whose content does not lie in the archive in one piece;
/// compressed archives; anything whose checksum is wrong.
///
/// `bytes` must stay. One thread at a time; needs no GIL; blocks as `bytes` does.
class TarReader {
 public:
  explicit TarReader(ByteSource& bytes) : bytes_(bytes) {}

  /// Reads up to `headers` more. To be called until `at_end`; after EINTR as well.
  Error read(std::size_t headers);
  bool at_end() const { return at_end_; }

  /// The members so far. After an error: those that were whole before it, but for hard links.
  const TarMembers& members() const { return members_; }

  /// To be called once behind the last `read`: gives hard links the place of what they lead to.
  /// Of an archive that was cut, links to what is missing are left out.
  Error resolve_links(bool allow_missing);

 private:
  struct Header;

  Error read_header(Header* header);
  Error read_text(std::uint64_t size, std::string* text);
  Error read_pax(std::string_view records);
  Error take(const Header& header);
  void add(std::string_view name, std::int64_t offset, std::int64_t size);

  struct Link {
    std::size_t member = 0;
    std::string target{};
  };

  /// Something that is no file, and so not among the members, in front of one of them.
  struct PassedOver {
    std::size_t member = 0;
    std::string name{};
  };

  ByteSource& bytes_;
  TarMembers members_;
  std::vector<Link> links_;
  std::vector<PassedOver> passed_over_;
  std::uint64_t at_ = 0;  // of the next header
  bool at_end_ = false;
  // What extended headers say of the member that follows them.
  std::optional<std::string> next_name_;
  std::optional<std::string> next_target_;
  std::optional<std::uint64_t> next_size_;
};

/// Puts members together to samples. Members without a dot in their names, or with nothing in front
/// of it, belong to none. Two of one sample with the same ending (in ASCII lower case) are
/// kBadHeader.
Error group_samples(const TarMembers& members, TarSamples* samples);

/// Where the key of a member ends and its ending begins, behind the dot; nothing where it has none.
std::optional<std::size_t> dot_of(std::string_view name);

}  // namespace stook::decode
