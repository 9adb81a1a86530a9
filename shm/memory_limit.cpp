#include "shm/memory_limit.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <optional>
#include <string_view>
#include <utility>

namespace stook::shm {
namespace {

// The file's text; empty if it cannot be read.
std::string read_text(const std::string& path) {
  std::string text;
  int fd;
  do {
    fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return text;
  char buffer[4096];
  for (;;) {
    const ::ssize_t count = ::read(fd, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    text.append(buffer, static_cast<std::size_t>(count));
  }
  ::close(fd);
  return text;
}

std::string_view next_line(std::string_view& text) {
  const std::size_t end = text.find('\n');
  const std::string_view line = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  return line;
}

std::string_view next_word(std::string_view& line) {
  const std::size_t start = line.find_first_not_of(" \t");
  if (start == std::string_view::npos) {
    line = {};
    return {};
  }
  line.remove_prefix(start);
  const std::size_t end = line.find_first_of(" \t");
  const std::string_view word = line.substr(0, end);
  line.remove_prefix(end == std::string_view::npos ? line.size() : end);
  return word;
}

// Digits and nothing else; too many of them are the largest number.
std::optional<std::uint64_t> parse_number(std::string_view word) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (word.empty() || end != word.data() + word.size()) return std::nullopt;
  if (error == std::errc::result_out_of_range) return kUnlimited;
  if (error != std::errc{}) return std::nullopt;
  return value;
}

// A file of one number. "max", an empty or a malformed file give nothing.
std::optional<std::uint64_t> read_number(const std::string& path) {
  const std::string text = read_text(path);
  std::string_view rest = text;
  std::string_view line = next_line(rest);
  const std::optional<std::uint64_t> number = parse_number(next_word(line));
  return next_word(line).empty() ? number : std::nullopt;
}

// The number behind `name`, in a file of lines "name 123" or "Name:   123 kB".
std::optional<std::uint64_t> find_number(const std::string& text, std::string_view name) {
  std::string_view rest = text;
  while (!rest.empty()) {
    std::string_view line = next_line(rest);
    if (next_word(line) != name) continue;
    const std::optional<std::uint64_t> number = parse_number(next_word(line));
    if (!number) return std::nullopt;
    const std::uint64_t unit = next_word(line) == "kB" ? 1024 : 1;
    return *number > kUnlimited / unit ? kUnlimited : *number * unit;
  }
  return std::nullopt;
}

std::uint64_t subtract(std::uint64_t from, std::uint64_t what) {
  return from > what ? from - what : 0;
}

std::uint64_t add(std::uint64_t a, std::uint64_t b) {
  return a > kUnlimited - b ? kUnlimited : a + b;
}

// mountinfo writes blanks and backslashes in paths as three octal digits.
std::string unescape(std::string_view text) {
  const auto is_octal = [](char c) { return c >= '0' && c <= '7'; };
  std::string path;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size() && is_octal(text[i + 1]) && is_octal(text[i + 2]) &&
        is_octal(text[i + 3])) {
      path += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                                (text[i + 3] - '0'));
      i += 3;
    } else {
      path += text[i];
    }
  }
  return path;
}

// Is `name` among the comma-separated `list`?
bool lists(std::string_view list, std::string_view name) {
  while (!list.empty()) {
    const std::size_t end = list.find(',');
    if (list.substr(0, end) == name) return true;
    if (end == std::string_view::npos) return false;
    list.remove_prefix(end + 1);
  }
  return false;
}

std::uint64_t resource_limit(decltype(RLIMIT_AS) resource) {
  ::rlimit limit{};
  if (::getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
    return kUnlimited;
  }
  return limit.rlim_cur;
}

const MemoryLimits& this_process() {
  static const MemoryLimits limits;
  return limits;
}

}  // namespace

MemoryLimits::MemoryLimits(std::string proc, std::string root) : proc_(std::move(proc)) {
  // 35 32 0:32 /docker/1 /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
  const std::string text = read_text(proc_ + "/self/mountinfo");
  std::string_view rest = text;
  while (!rest.empty()) {
    std::string_view line = next_line(rest);
    for (int skipped = 0; skipped < 3; ++skipped) next_word(line);
    const std::string mounted = unescape(next_word(line));
    const std::string mount_point = unescape(next_word(line));
    std::string_view word = next_word(line);
    while (!word.empty() && word != "-") word = next_word(line);
    const std::string_view type = next_word(line);
    next_word(line);
    const std::string_view options = next_word(line);
    if (type == "cgroup2") {
      hierarchies_.push_back({Version::kV2, root + mount_point, mounted});
    } else if (type == "cgroup" && lists(options, "memory")) {
      hierarchies_.push_back({Version::kV1, root + mount_point, mounted});
    }
  }
  if (hierarchies_.empty()) {
    // Where they are on every distribution; where they are not, nothing is read there.
    hierarchies_.push_back({Version::kV2, root + "/sys/fs/cgroup", "/"});
    hierarchies_.push_back({Version::kV1, root + "/sys/fs/cgroup/memory", "/"});
  }
}

std::vector<MemoryLimits::Group> MemoryLimits::groups() const {
  // Lines "4:memory:/path" of version 1 and "0::/path" of version 2.
  std::string path_v1 = "/";
  std::string path_v2 = "/";
  const std::string text = read_text(proc_ + "/self/cgroup");
  std::string_view rest = text;
  while (!rest.empty()) {
    const std::string_view line = next_line(rest);
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string_view::npos ? first : line.find(':', first + 1);
    if (second == std::string_view::npos) continue;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    const std::string_view path = line.substr(second + 1);
    if (path.empty() || path.front() != '/') continue;
    if (controllers.empty()) {
      path_v2 = path;
    } else if (lists(controllers, "memory")) {
      path_v1 = path;
    }
  }

  std::vector<Group> groups;
  for (const Hierarchy& hierarchy : hierarchies_) {
    std::string path = hierarchy.version == Version::kV1 ? path_v1 : path_v2;
    // In a container the mount may show a part of the hierarchy only; what the path means there is
    // relative to that part. A path outside it ("/../..") leaves the mount point itself.
    if (hierarchy.mounted != "/") {
      const std::string& mounted = hierarchy.mounted;
      const bool inside = path.compare(0, mounted.size(), mounted) == 0 &&
                          (path.size() == mounted.size() || path[mounted.size()] == '/');
      path = inside ? path.substr(mounted.size()) : "";
    }
    if (path.find("/..") != std::string::npos) path.clear();
    while (!path.empty() && path.back() == '/') path.pop_back();
    for (;;) {
      groups.push_back({hierarchy.version, hierarchy.mount_point + path});
      if (path.empty()) break;
      path.resize(path.rfind('/'));
      // Version 1 lets an ancestor count its own processes only.
      if (hierarchy.version == Version::kV1 &&
          read_number(hierarchy.mount_point + path + "/memory.use_hierarchy") == 0) {
        break;
      }
    }
  }
  return groups;
}

std::uint64_t MemoryLimits::machine_memory() const {
  std::uint64_t memory = kUnlimited;
  if (const auto total = find_number(read_text(proc_ + "/meminfo"), "MemTotal:")) {
    memory = *total;
  } else {
    struct ::sysinfo info{};
    if (::sysinfo(&info) == 0) memory = std::uint64_t{info.totalram} * info.mem_unit;
  }
  for (const Group& group : groups()) {
    if (group.version == Version::kV2) {
      memory = std::min({memory, read_number(group.directory + "/memory.max").value_or(kUnlimited),
                         read_number(group.directory + "/memory.high").value_or(kUnlimited)});
    } else {
      const auto limit = read_number(group.directory + "/memory.limit_in_bytes");
      // Knows the ancestors that a container does not see.
      const auto inherited =
          find_number(read_text(group.directory + "/memory.stat"), "hierarchical_memory_limit");
      memory = std::min({memory, limit.value_or(kUnlimited), inherited.value_or(kUnlimited)});
    }
  }
  return memory;
}

std::uint64_t MemoryLimits::memory_left() const {
  std::uint64_t left = kUnlimited;
  const std::string meminfo = read_text(proc_ + "/meminfo");
  if (const auto available = find_number(meminfo, "MemAvailable:")) {
    left = *available;
  } else if (const auto free = find_number(meminfo, "MemFree:")) {
    // Kernels before 3.14. Shared memory is part of "Cached", and cannot be dropped.
    left = add(*free, subtract(find_number(meminfo, "Cached:").value_or(0),
                               find_number(meminfo, "Shmem:").value_or(0)));
  } else {
    struct ::sysinfo info{};
    if (::sysinfo(&info) == 0) left = std::uint64_t{info.freeram} * info.mem_unit;
  }

  for (const Group& group : groups()) {
    const bool v2 = group.version == Version::kV2;
    // Above memory.high nobody is killed, but everybody is slowed down until hardly anything moves.
    std::uint64_t limit =
        v2 ? std::min(read_number(group.directory + "/memory.max").value_or(kUnlimited),
                      read_number(group.directory + "/memory.high").value_or(kUnlimited))
           : read_number(group.directory + "/memory.limit_in_bytes").value_or(kUnlimited);
    const std::string stat = read_text(group.directory + "/memory.stat");
    if (!v2) {
      limit = std::min(limit, find_number(stat, "hierarchical_memory_limit").value_or(kUnlimited));
    }
    if (limit == kUnlimited) continue;
    const std::uint64_t usage =
        read_number(group.directory + (v2 ? "/memory.current" : "/memory.usage_in_bytes"))
            .value_or(0);
    // The two file lists hold no shared memory: that is on the anonymous ones.
    const char* const reclaimable_v2[] = {"inactive_file", "active_file", "slab_reclaimable"};
    const char* const reclaimable_v1[] = {"total_inactive_file", "total_active_file"};
    std::uint64_t reclaimable = 0;
    if (v2) {
      for (const char* name : reclaimable_v2) {
        reclaimable = add(reclaimable, find_number(stat, name).value_or(0));
      }
    } else {
      for (const char* name : reclaimable_v1) {
        reclaimable = add(reclaimable, find_number(stat, name).value_or(0));
      }
    }
    left = std::min(left, subtract(limit, subtract(usage, reclaimable)));
  }
  return left;
}

std::uint64_t MemoryLimits::address_space_left(std::uint64_t limit) const {
  if (limit == kUnlimited) return kUnlimited;
  return subtract(limit, find_number(read_text(proc_ + "/self/status"), "VmSize:").value_or(0));
}

std::uint64_t MemoryLimits::oom_kill_count() const {
  // Of each hierarchy the process's own group comes first, and is the only one looked at: ancestors
  // count the kills of others too.
  const std::vector<Group> all = groups();
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (i > 0 && all[i - 1].version == all[i].version) continue;
    const char* const file =
        all[i].version == Version::kV2 ? "/memory.events" : "/memory.oom_control";
    if (const auto count = find_number(read_text(all[i].directory + file), "oom_kill")) {
      return *count;
    }
  }
  return find_number(read_text(proc_ + "/vmstat"), "oom_kill").value_or(0);
}

std::uint64_t machine_memory() { return this_process().machine_memory(); }
std::uint64_t memory_left() { return this_process().memory_left(); }
std::uint64_t oom_kill_count() { return this_process().oom_kill_count(); }
std::uint64_t address_space_left() {
  return this_process().address_space_left(resource_limit(RLIMIT_AS));
}
std::uint64_t file_size_limit() { return resource_limit(RLIMIT_FSIZE); }

}  // namespace stook::shm
