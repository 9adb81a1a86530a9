// Manager: results in. What a worker publishes is copied before it is read, and believed only as
// far as the leases that the arena grants.
#include <algorithm>
#include <cstring>
#include <utility>

#include "shm/error.h"
#include "shm/segment.h"
#include "workers/manager.h"
#include "workers/worker.h"

namespace stook::workers {

namespace {

// A caller that is slower than its workers never sleeps, and would not hear of those that died. So
// often it looks nevertheless; one that sleeps now and then never comes so far.
constexpr std::uint32_t kPollsPerNews = 512;

std::span<const BlockRef> block_refs(const std::byte* bytes, std::uint32_t count) {
  return {reinterpret_cast<const BlockRef*>(bytes), count};
}

OutcomeKind outcome_kind(ResultKind kind) {
  switch (kind) {
    case ResultKind::kError:
      return OutcomeKind::kError;
    case ResultKind::kSkipped:
      return OutcomeKind::kSkipped;
    default:
      return OutcomeKind::kElement;
  }
}

// Of an element that nobody takes: the segments that go with it.
void unlink_segments(std::span<const std::byte> payload, std::uint32_t count) {
  const std::uint64_t bytes = count * std::uint64_t{sizeof(SegmentName)};
  if (bytes > payload.size()) return;
  for (const std::byte* at = payload.data() + payload.size() - bytes;
       at != payload.data() + payload.size(); at += sizeof(SegmentName)) {
    SegmentName name;
    std::memcpy(&name, at, sizeof name);
    name.text[sizeof name.text - 1] = '\0';
    try {
      shm::unlink_segment(name.text);
    } catch (const shm::Error&) {
      // Swept with its owner, once that has ended.
    }
  }
}

}  // namespace

Manager::State Manager::poll(bool ordered) {
  ordered_ = ordered;
  // While workers start, elements may come without a sleep that would hear of it.
  if (unannounced_ != 0 && broken_.empty()) handle_messages();
  if (++polls_since_news_ >= kPollsPerNews && broken_.empty()) look_for_news();
  if (timer_.is_open()) kill_overdue();
  if (awaited_is_ready(ordered) || startup_error_) return State::kReady;
  if (produced_ == delivered_) {
    if (!broken_.empty()) fail_broken(broken_);
    return State::kIdle;
  }
  if (!broken_.empty()) fail_broken(broken_);
  return State::kPending;
}

bool Manager::awaited_is_ready(bool ordered) {
  if (ordered) {
    if (delivered_ == produced_) return false;
    JobRecord& next = record(delivered_);
    if (next.state == JobState::kReady) return true;
    const std::uint64_t claimer =
        claim_claimer(channel_->control().job(delivered_).claim.load(std::memory_order_relaxed));
    // Unclaimed: 0, or more than there are workers.
    if (claimer == kUnclaimed || claimer > workers_.size()) return false;
    drain(static_cast<std::uint32_t>(claimer - 1));
    return next.state == JobState::kReady;
  }
  if (!ready_.empty()) return true;
  for (std::uint32_t worker = 0; worker < workers_.size(); ++worker) drain(worker);
  return !ready_.empty();
}

void Manager::drain(std::uint32_t index) {
  WorkerRecord& worker = workers_[index];
  if (!worker.results) return;
  while (const ResultSlot* slot = worker.results->front()) {
    receive(index, *slot);
    worker.results->pop();
  }
}

void Manager::receive(std::uint32_t index, const ResultSlot& shared) {
  WorkerRecord& worker = workers_[index];
  worker.has_published = true;
  startup_deaths_ = 0;
  // What is checked below must not change afterwards: read from the copy alone.
  constexpr std::size_t kHead = offsetof(ResultSlot, bytes);
  const std::uint64_t job = shared.job;
  JobRecord& job_record = record(job);
  const bool wanted = job != kNoJob && job < produced_ && job_record.number == job &&
                      job_record.state == JobState::kUnderWay;
  ResultSlot scratch;
  ResultSlot& slot = wanted ? job_record.slot : scratch;
  std::memcpy(&slot, &shared, kHead);
  const std::uint64_t refs = slot.block_count * std::uint64_t{sizeof(BlockRef)};
  const std::uint64_t inline_bytes =
      slot.external != 0 ? sizeof(BlockRef) : refs + slot.payload_bytes;
  // The size alone first: beyond the arena, the sums of it wrap round.
  if (slot.job != job || slot.payload_bytes > arena_layout_.total_bytes ||
      inline_bytes > kResultInlineBytes) {
    fail_broken("a worker published a malformed result");
  }
  std::memcpy(slot.bytes, shared.bytes, inline_bytes);
  worker.received_bytes += slot.handed_bytes;

  std::vector<BlockRef> scratch_blocks;
  std::vector<std::byte> scratch_payload;
  std::vector<BlockRef>& blocks = wanted ? job_record.blocks : scratch_blocks;
  std::vector<std::byte>& external = wanted ? job_record.external_payload : scratch_payload;
  if (!lease_blocks(index, slot, blocks, external)) {
    fail_broken("a worker published a block that it cannot have");
  }
  const std::span<const std::byte> payload =
      slot.external != 0 ? std::span<const std::byte>(external)
                         : std::span<const std::byte>(slot.bytes + refs, slot.payload_bytes);

  if (slot.kind == ResultKind::kStartupError) {
    startup_payload_.assign(payload.begin(), payload.end());
    for (const BlockRef& block : blocks) worker.arena->release(block.id);
    startup_error_.emplace();
    startup_error_->kind = OutcomeKind::kStartupError;
    startup_error_->worker = index;
    startup_error_->payload = startup_payload_;
    return;
  }
  if (!wanted) {  // of a pass that was given up
    unlink_segments(payload, slot.segments);
    for (const BlockRef& block : blocks) worker.arena->release(block.id);
    const auto stale = stale_.find(job);
    if (stale != stale_.end()) {
      free_arguments(stale->second.arguments);
      stale_.erase(stale);
    }
    return;
  }
  Outcome outcome;
  outcome.kind = outcome_kind(slot.kind);
  outcome.worker = index;
  outcome.arena = worker.arena;
  outcome.blocks = blocks;
  outcome.payload = payload;
  outcome.array_bytes = slot.array_bytes;
  for (const BlockRef& block : blocks) ready_bytes_ += block.bytes;
  outcome.moved = slot.moved;
  outcome.copied = slot.copied;
  outcome.segments = slot.segments;
  outcome.failed = slot.failed;
  outcome.consumed = slot.consumed;
  finish(job_record, outcome);
}

bool Manager::lease_blocks(std::uint32_t index, const ResultSlot& slot,
                           std::vector<BlockRef>& blocks, std::vector<std::byte>& external) {
  const WorkerRecord& worker = workers_[index];
  blocks.clear();
  const std::byte* refs = slot.bytes;
  BlockRef envelope{};
  if (slot.external != 0) {
    std::memcpy(&envelope, slot.bytes, sizeof envelope);
    const std::uint64_t expected =
        slot.block_count * std::uint64_t{sizeof(BlockRef)} + slot.payload_bytes;
    if (envelope.bytes != expected ||
        !worker.arena->lease(envelope.id, envelope.offset, envelope.bytes)) {
      return false;
    }
    leased_bytes_ += envelope.bytes;
    ledger_->count_lease(index, envelope.bytes);
    const std::byte* begin = worker.arena->memory().data() + envelope.offset;
    external.assign(begin, begin + envelope.bytes);
    worker.arena->release(envelope.id);
    refs = external.data();
  }
  for (const BlockRef& shared : block_refs(refs, slot.block_count)) {
    BlockRef block;
    std::memcpy(&block, &shared, sizeof block);
    if (!worker.arena->lease(block.id, block.offset, block.bytes)) {
      for (const BlockRef& leased : blocks) worker.arena->release(leased.id);
      return false;
    }
    leased_bytes_ += block.bytes;
    ledger_->count_lease(index, block.bytes);
    blocks.push_back(block);
  }
  if (slot.external != 0) {
    external.erase(external.begin(), external.begin() + static_cast<std::ptrdiff_t>(
                                                            slot.block_count * sizeof(BlockRef)));
  }
  return true;
}

void Manager::finish(JobRecord& job, Outcome outcome) {
  outcome.job = job.number;
  outcome.epoch = job.epoch;
  outcome.position = job.position;
  job.outcome = outcome;
  job.state = JobState::kReady;
  if (!ordered_) ready_.push_back(job.number);
}

Outcome Manager::take(bool ordered) {
  const bool has_element =
      ordered ? delivered_ < produced_ && record(delivered_).state == JobState::kReady
              : !ready_.empty();
  if (!has_element) return *startup_error_;
  const std::uint64_t number = ordered ? delivered_ : ready_.front();
  if (!ordered) ready_.pop_front();
  JobRecord& job = record(number);
  job.state = JobState::kDelivered;
  for (const BlockRef& block : job.outcome.blocks) ready_bytes_ -= block.bytes;
  free_arguments(job.arguments);
  job.arguments.clear();
  ++taken_since_wake_;
  --in_flight_;
  if (job.claimants != kUnclaimed) --bound_;
  advance_delivered();
  return job.outcome;
}

void Manager::advance_delivered() {
  // A record of another number: of a later job, or of an older one that lets this be left out.
  while (delivered_ < produced_ && (record(delivered_).state == JobState::kDelivered ||
                                    record(delivered_).number != delivered_)) {
    ++delivered_;
  }
  channel_->control().header().delivered.store(delivered_, std::memory_order_relaxed);
}

bool Manager::should_copy_out(const Outcome& outcome) const {
  const ControlHeader& header = channel_->control().header();
  const std::uint64_t released = header.released_bytes.load(std::memory_order_relaxed);
  // Half of the limit for what the user keeps, so that half is left for what is under way: were it
  // all kept, the workers would run one at a time.
  const std::uint64_t kept = leased_bytes_ - std::min(leased_bytes_, released + ready_bytes_);
  if (kept > header.memory_limit / 2) return true;
  return outcome.arena != nullptr && outcome.arena->held_blocks() > shm::kMaxBlocks / 2;
}

void Manager::release_ready(JobRecord& job) {
  for (const BlockRef& block : job.outcome.blocks) {
    ready_bytes_ -= block.bytes;
    job.outcome.arena->release(block.id);
  }
  unlink_segments(job.outcome.payload, job.outcome.segments);
  job.outcome = {};
}

void Manager::abandon() {
  // Otherwise results of passes that were left early could pile up in a ring that nobody reads.
  try {
    for (std::uint32_t worker = 0; worker < workers_.size(); ++worker) drain(worker);
  } catch (const shm::Error&) {
    // Called from destructors. The pool is broken, and the next poll() says so.
  }
  for (JobRecord& job : jobs_) {
    const std::uint64_t number = job.number;
    if (job.state == JobState::kUnderWay) {
      JobSlot& slot = channel_->control().job(number);
      if (!cancel_job(slot, number)) {
        const std::uint64_t claimer = claim_claimer(slot.claim.load(std::memory_order_relaxed));
        stale_[number] = {static_cast<std::uint32_t>(claimer - 1), std::move(job.arguments)};
        job.arguments.clear();
      }
    } else if (job.state == JobState::kReady) {
      release_ready(job);
    }
    free_arguments(job.arguments);
    job.arguments.clear();
    job.state = JobState::kDelivered;
  }
  ready_.clear();
  in_flight_ = 0;
  bound_ = 0;
  advance_delivered();
}

}  // namespace stook::workers
