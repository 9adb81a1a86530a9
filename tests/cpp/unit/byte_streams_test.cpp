// Reading that signals interrupt goes on where it stopped, and ends where the bytes end.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "workers/decode/bytes.h"
#include "workers/decode/npy.h"
#include "workers/decode/tar.h"
#include "workers/decode/zip.h"

namespace stook::decode {
namespace {

using Content = std::vector<std::uint8_t>;

Content content_of(const std::string& text) { return {text.begin(), text.end()}; }

/// Memory whose reads are interrupted after every few bytes, now and then before the first.
class Interrupted final : public ByteSource {
 public:
  explicit Interrupted(Content content) : content_(std::move(content)) {}

  std::uint64_t size() const override { return content_.size(); }

  Error read(std::uint64_t offset, std::span<std::uint8_t> to, std::size_t* done) override {
    const std::uint64_t there = content_.size() - std::min<std::uint64_t>(offset, content_.size());
    if (to.size() > there) return ends_early(there, to.size());
    const std::size_t left = to.size() - *done;
    // Two calls of five get through: what is read anew after an interruption needs them in a row.
    const unsigned call = ++calls_ % 5;
    const std::size_t count = call >= 3 ? left : std::min<std::size_t>(left, call * 500);
    std::copy_n(content_.begin() + static_cast<std::ptrdiff_t>(offset + *done), count,
                to.begin() + static_cast<std::ptrdiff_t>(*done));
    *done += count;
    if (*done == to.size()) return {};
    ++interruptions_;
    return system_error(EINTR);
  }

  int interruptions() const { return interruptions_; }

 private:
  Content content_;
  unsigned calls_ = 0;
  int interruptions_ = 0;
};

/// The error of a step, taken again after each EINTR.
Error again(const std::function<Error()>& step) {
  Error error;
  do {
    error = step();
  } while (error.code == ErrorCode::kSystem && error.system_errno == EINTR);
  return error;
}

constexpr std::size_t kItems = 5000;

/// 5,000 numbers of two bytes, behind a header of `padding` blanks more than it needs.
Content npy_file(std::size_t padding, char version = 1) {
  std::string header = "{'descr': '<u2', 'fortran_order': False, 'shape': (5000,), }";
  header += std::string(padding, ' ') + "\n";
  std::string file = "\x93NUMPY";
  file += {version, '\0'};
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i)
    file += static_cast<char>(header.size() >> 8 * i & 0xFF);
  file += header;
  for (std::size_t i = 0; i < kItems; ++i) {
    file += static_cast<char>(i & 0xFF);
    file += static_cast<char>(i >> 8);
  }
  return content_of(file);
}

void expect_items(ByteStream& stream) {
  NpyReader reader(stream);
  NpyHeader header;
  Error error = again([&] { return reader.open(&header); });
  ASSERT_FALSE(error) << error.text;
  EXPECT_EQ(header.shape, std::vector<std::uint64_t>{kItems});
  std::uint64_t size = 0;
  ASSERT_FALSE(reader.data_size(header, 2, &size));
  ASSERT_EQ(size, 2 * kItems);
  std::vector<std::uint16_t> items(kItems);
  const std::span<std::uint8_t> all(reinterpret_cast<std::uint8_t*>(items.data()), size);
  for (const auto piece : {all.first(3001), all.subspan(3001)}) {
    std::size_t done = 0;
    error = again([&] { return reader.read(piece, &done); });
    ASSERT_FALSE(error) << error.text;
  }
  std::vector<std::uint16_t> expected(kItems);
  std::iota(expected.begin(), expected.end(), std::uint16_t{0});
  EXPECT_EQ(items, expected);
  error = again([&] { return stream.finish(); });
  EXPECT_FALSE(error) << error.text;
}

TEST(NpyReader, GoesOnAfterInterruptions) {
  for (const char version : {'\1', '\2', '\3'}) {
    Interrupted bytes(npy_file(4000, version));
    PlainStream stream(bytes);
    expect_items(stream);
    EXPECT_GE(bytes.interruptions(), 2);
    EXPECT_EQ(stream.left(), 0U);
  }
}

void append(Content* to, std::uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) to->push_back(static_cast<std::uint8_t>(value >> 8 * i & 0xFF));
}

Content deflated(const Content& content) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 0, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY), Z_OK);
  Content to(deflateBound(&stream, static_cast<uLong>(content.size())));
  Content from = content;
  stream.next_in = from.data();
  stream.avail_in = static_cast<uInt>(from.size());
  stream.next_out = to.data();
  stream.avail_out = static_cast<uInt>(to.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  to.resize(stream.total_out);
  deflateEnd(&stream);
  return to;
}

/// An archive with one member, "a.npy".
Content archive(const Content& content, std::uint64_t method) {
  const Content stored = method == 0 ? content : deflated(content);
  const std::uint64_t crc = crc32_z(0, content.data(), content.size());
  const std::string name = "a.npy";
  const auto common = [&](Content* to) {
    append(to, 20, 2);
    append(to, 0, 2);
    append(to, method, 2);
    append(to, 0, 4);
    append(to, crc, 4);
    append(to, stored.size(), 4);
    append(to, content.size(), 4);
    append(to, name.size(), 2);
    append(to, 0, 2);
  };
  Content file;
  append(&file, 0x04034b50, 4);
  common(&file);
  file.insert(file.end(), name.begin(), name.end());
  file.insert(file.end(), stored.begin(), stored.end());
  const std::size_t directory = file.size();
  append(&file, 0x02014b50, 4);
  append(&file, 20, 2);
  common(&file);
  append(&file, 0, 8);
  append(&file, 0, 6);
  file.insert(file.end(), name.begin(), name.end());
  const std::size_t end = file.size();
  append(&file, 0x06054b50, 4);
  append(&file, 0, 4);
  append(&file, 1, 2);
  append(&file, 1, 2);
  append(&file, end - directory, 4);
  append(&file, directory, 4);
  append(&file, 0, 2);
  return file;
}

TEST(ZipStream, GoesOnAfterInterruptions) {
  for (const std::uint64_t method : {0, 8}) {
    // Level 0 of deflate stores, so that there is something to be interrupted in.
    Interrupted bytes(archive(npy_file(0), method));
    ZipDirectory directory(bytes);
    Error error;
    // The directory is read from its beginning each time, in pieces that get through at times.
    error = again([&] { return directory.open(); });
    ASSERT_FALSE(error) << error.text;
    ASSERT_EQ(directory.members().size(), 1U);
    EXPECT_EQ(directory.members()[0].name, "a.npy");
    ZipStream stream(directory, directory.members()[0]);
    error = again([&] { return stream.open(); });
    ASSERT_FALSE(error) << error.text;
    const int before = bytes.interruptions();
    expect_items(stream);
    EXPECT_GE(bytes.interruptions() - before, 1);
  }
}

TEST(ZipStream, ChangedContentIsNoticedAtItsEnd) {
  Content file = archive(npy_file(0), 0);
  file[9000] ^= 1;
  MemoryBytes bytes(file);
  ZipDirectory directory(bytes);
  ASSERT_FALSE(directory.open());
  ZipStream stream(directory, directory.members()[0]);
  ASSERT_FALSE(stream.open());
  Content all(stream.left());
  std::size_t done = 0;
  ASSERT_FALSE(stream.read(all, &done));
  EXPECT_EQ(stream.finish().code, ErrorCode::kCorrupt);
}

Content tar_header(const std::string& name, std::size_t size, char type = '0') {
  Content block(512);
  std::copy(name.begin(), name.end(), block.begin());
  std::snprintf(reinterpret_cast<char*>(block.data()) + 124, 12, "%011zo", size);
  block[156] = static_cast<std::uint8_t>(type);
  std::fill_n(block.begin() + 148, 8, std::uint8_t{' '});
  const unsigned sum = std::accumulate(block.begin(), block.end(), 0U);
  std::snprintf(reinterpret_cast<char*>(block.data()) + 148, 8, "%06o", sum);
  return block;
}

TEST(TarReader, GoesOnAfterInterruptions) {
  Content file;
  const auto add = [&file](const Content& bytes) {
    file.insert(file.end(), bytes.begin(), bytes.end());
    file.resize((file.size() + 511) / 512 * 512);
  };
  const std::string long_name(3000, 'n');
  for (int i = 0; i < 5; ++i) {
    add(tar_header("././@LongLink", long_name.size() + 3, 'L'));
    add(content_of(long_name + std::to_string(i) + ".a"));
    add(tar_header("cut", 700));
    add(Content(700));
  }
  file.resize(file.size() + 1024);
  Interrupted bytes(file);
  TarReader reader(bytes);
  while (!reader.at_end()) {
    const Error error = reader.read(2);
    if (error.code == ErrorCode::kSystem) continue;
    ASSERT_FALSE(error) << error.text;
  }
  EXPECT_GE(bytes.interruptions(), 5);
  ASSERT_EQ(reader.members().count(), 5U);
  for (std::size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(reader.members().name(i), long_name + std::to_string(i) + ".a");
    EXPECT_EQ(reader.members().sizes[i], 700);
  }
}

class AFile : public ::testing::Test {
 protected:
  AFile() {
    path_ = std::filesystem::temp_directory_path() / ("stook-bytes-" + std::to_string(::getpid()));
    std::ofstream(path_) << "0123456789";
  }
  ~AFile() override { std::filesystem::remove(path_); }
  const char* path() const { return path_.c_str(); }

 private:
  std::filesystem::path path_;
};

TEST_F(AFile, IsReadInPartsAndNotBeyondThem) {
  FileBytes file;
  ASSERT_FALSE(file.open(path(), {3, 4}));
  EXPECT_EQ(file.size(), 4U);
  Content to(3);
  std::size_t done = 0;
  ASSERT_FALSE(file.read(1, to, &done));
  EXPECT_EQ(to, content_of("456"));
  done = 0;
  EXPECT_EQ(file.read(2, to, &done).code, ErrorCode::kEndsEarly);
  EXPECT_EQ(file.read(UINT64_MAX, to, &done).code, ErrorCode::kEndsEarly);
}

TEST_F(AFile, ThatHasNoSuchPartIsAnError) {
  for (const FilePart part : {FilePart{7, 4}, FilePart{11, 1}, FilePart{INT64_MAX, INT64_MAX}}) {
    FileBytes file;
    EXPECT_EQ(file.open(path(), part).code, ErrorCode::kOutsideFile);
  }
}

TEST_F(AFile, ThatBecomesShorterEndsEarly) {
  FileBytes file;
  ASSERT_FALSE(file.open(path()));
  ASSERT_EQ(::truncate(path(), 4), 0);
  Content to(10);
  std::size_t done = 0;
  EXPECT_EQ(file.read(0, to, &done).code, ErrorCode::kEndsEarly);
  EXPECT_EQ(done, 4U);
}

TEST_F(AFile, ReaderOfAPartStopsAtItsEnd) {
  FileReader reader;
  reader.set_part({2, 5});
  ASSERT_EQ(reader.read(path(), 3), 0);
  EXPECT_EQ(Content(reader.bytes().begin(), reader.bytes().end()), content_of("234"));
  EXPECT_FALSE(reader.at_end());
  ASSERT_EQ(reader.read(path()), 0);
  EXPECT_EQ(Content(reader.bytes().begin(), reader.bytes().end()), content_of("23456"));
  EXPECT_TRUE(reader.at_end());
  EXPECT_FALSE(reader.is_short());
}

TEST(FileBytes, KnowsWhatHasASize) {
  EXPECT_FALSE(FileBytes::has_size("/dev/null"));
  EXPECT_FALSE(FileBytes::has_size("/proc/self/status"));
  EXPECT_FALSE(FileBytes::has_size("/"));
  EXPECT_TRUE(FileBytes::has_size("/proc/self/exe"));
  EXPECT_TRUE(FileBytes::has_size("/no/such/file"));
}

}  // namespace
}  // namespace stook::decode
