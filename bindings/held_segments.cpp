#include "bindings/held_segments.h"

#include <exception>
#include <iterator>

#include "shm/segment.h"

namespace stook::bindings {

void SentSegments::append(SentSegments&& more) {
  const auto move_all = [](std::vector<OwnedRef>& from, std::vector<OwnedRef>& to) {
    to.insert(to.end(), std::move_iterator(from.begin()), std::move_iterator(from.end()));
    from.clear();
  };
  move_all(more.transferred, transferred);
  move_all(more.others, others);
  move_all(more.moved_arrays, moved_arrays);
}

std::vector<OwnedRef> SentSegments::finish(bool published) {
  for (const OwnedRef& object : transferred) {
    shm::Segment* segment = segment_in(object.get());
    if (published) {
      segment->keep_on_release();
      continue;
    }
    try {
      segment->unlink_on_release();
    } catch (const std::exception&) {
      // It stays until this process's segments are swept.
    }
  }
  transferred.clear();
  moved_arrays.clear();
  std::erase_if(others, [](const OwnedRef& object) {
    return !segment_in(object.get())->unlinks_on_release();
  });
  return std::exchange(others, {});
}

void HeldSegments::hold(std::uint64_t job, std::vector<OwnedRef> segments) {
  for (OwnedRef& segment : segments) held_.emplace_back(job, std::move(segment));
}

}  // namespace stook::bindings
