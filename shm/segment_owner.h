// Who uses which named segments, so that those of killed processes can be told from those in use.
//
// A segment of ours is named stook_<token>_<number>, where the token is that of the process that
// created it. Each such process keeps a marker file of that token beside its segments
// (stook_<token>), and holds a shared flock on it for as long as it lives; so does, through one
// descriptor per owner and not per segment, every process that has one of its segments mapped.
//
//   marker there, locked        somebody lives who owns or uses the segments: hands off
//   marker there, not locked    owner and attachers were killed, or ended without leave_segments():
//                               leftovers, to be swept
//   no marker                   the owner left in good order: its segments are kept until somebody
//                               unlinks them
//
// Locks end with their holder, whatever ends it; so age and process ids, which lie (a pid is used
// again, a clock is set), decide nothing. Segments that a process is to unlink when it is done with
// them, its own or another's (adopt), are listed in its marker: they go with it, whether it leaves
// or is killed. So do the names of segments that nobody was told.
//
// Any thread. In a forked child the parent's identity is not the child's: it gets one of its own
// when it first needs one. (The child holds the parent's locks on, since flock belongs to the open
// file; that only delays a sweep until it has ended too.)
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace stook::shm {

// The name of a new segment of this process; makes the process an owner at its first call. A secret
// one goes when the process leaves, until it is told or forgotten. Throws Error(kSystem).
std::string new_segment_name(bool secret = false);

// Secret names are secret no more: somebody else was told the name, or it is gone. Nothing for
// other names.
void forget_secret_name(std::string_view name) noexcept;

// The token in a segment's name, or nothing if the name is not one of ours.
std::string_view segment_token(std::string_view name) noexcept;

// Whether this is the name of a marker, which is no segment.
bool is_marker(std::string_view name) noexcept;

// While one exists, the owner of `name` counts as used: a shared lock on its marker, counted per
// owner within the process. Nothing for names that are not ours, or whose owner has left.
class OwnerHold {
 public:
  OwnerHold() = default;
  // Waits while a sweep of that owner is going on. Throws Error(kSystem).
  explicit OwnerHold(std::string_view name);
  OwnerHold(OwnerHold&& other) noexcept;
  OwnerHold& operator=(OwnerHold&& other) noexcept;
  ~OwnerHold();

 private:
  void* entry_ = nullptr;
  std::uint64_t generation_ = 0;
};

// From now on `name` is unlinked when this process leaves, and swept if it is killed, whoever
// created it. `disown` takes it back. Constant time and no system call but at the first call (and
// where the list grows). Throws Error(kSystem).
void adopt_segment(std::string_view name);
void disown_segment(std::string_view name) noexcept;

// Removes what killed processes of this user left: their segments, adopted ones, markers. Touches
// nothing of other users, nothing that is in use, and no file that is not named as ours are.
// Returns how many segments were removed. Throws nothing: what cannot be read is left alone.
std::uint64_t sweep_leftover_segments() noexcept;

// The process leaves in good order: adopted segments and those of secret names are unlinked, the
// others that it created are kept, its marker goes. Also for tests, which then have no descriptor
// of it left. A later segment makes it an owner anew.
void leave_segments() noexcept;

}  // namespace stook::shm
