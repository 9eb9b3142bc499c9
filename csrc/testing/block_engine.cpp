// Compile without ThreadSanitizer instrumentation (-fno-sanitize=thread): the engine's own
// bookkeeping is shared by all fibers on purpose and must not order, or appear to race with, the
// kernel's memory accesses.
#include "testing/block_engine.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <utility>
#include <vector>

#include "testing/shared_arrays.h"

#if defined(__SANITIZE_ADDRESS__)
#define ARD_EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ARD_EMU_ASAN 1
#endif
#endif
#if defined(ARD_EMU_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// This file is not instrumented, so the build says by -DARD_EMU_TSAN=1 that the kernels are.
#if defined(ARD_EMU_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace ard::emu {
namespace {

constexpr int kWarp = 32;
constexpr std::size_t kMaxThreads = 1024;
constexpr unsigned kMaxCluster = 8;                  // what every device with clusters can run
constexpr std::size_t kMaxSharedBytes = 227 * 1024;  // of sm_90; what a kernel may opt in to
#if defined(ARD_EMU_ASAN) || defined(ARD_EMU_TSAN)
constexpr std::size_t kStackBytes = 128 * 1024;
#else
constexpr std::size_t kStackBytes = 64 * 1024;
#endif

enum class State { kReady, kAtBarrier, kInWarp, kAtCluster, kDone };

struct Fiber;
struct Block;

struct Thread {
  Dim3 index{0, 0, 0};
  int linear = 0;
  State state = State::kReady;
  Site site{nullptr, 0};
  bool is_exchange = false;  // in a shuffle, not a __syncwarp
  std::uint32_t mask = 0;
  int source = 0;
  std::uint64_t value = 0;
  Fiber* fiber = nullptr;
  // Number of completed __syncwarp calls, and those of the other lanes at the last one.
  unsigned warp_syncs = 0;
  std::uint32_t parities = 0;
  // Addresses that stand for synchronisation objects of the lane (see barrier_sync).
  char warp_sync[2] = {0, 0};
  Block* block = nullptr;
  // Halves of cluster barriers passed; the second half of one that was skipped waits for nothing.
  unsigned cluster_arrivals = 0, cluster_waits = 0;
  bool skipped_arrival = false;
};

struct Block {
  Dim3 index;
  Thread* first = nullptr;  // of its threads
  std::unique_ptr<char[]> shared;
  std::size_t at_barrier = 0, finished = 0;
  unsigned barriers_done = 0;
  Site barrier_site{nullptr, 0};
  // Stands for a synchronisation object. Barriers alternate between two of them, so that a thread
  // leaving one barrier does not inherit what others did before the next.
  char barrier_sync[2] = {0, 0};
};

struct Fiber {
  ucontext_t context{};
  char* mapping = nullptr;
  std::size_t mapping_bytes = 0;
  char* stack = nullptr;
  Thread* thread = nullptr;
  void* tsan = nullptr;
  void* fake_stack = nullptr;

  Fiber();
  ~Fiber();
};

std::string text(const Dim3& d) {
  std::ostringstream out;
  out << '(' << d.x << ", " << d.y << ", " << d.z << ')';
  return out.str();
}

std::string text(Site site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

bool same(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

class Engine {
 public:
  void run_grid(Dim3 grid, unsigned cluster, Dim3 block, std::size_t shared_bytes,
                void (*body)(const void*), const void* arguments);
  void fiber_main();
  void block_barrier(Site site);
  void cluster_arrive(Site site);
  void cluster_wait(Site site);
  void* in_block(void* mine, unsigned block);
  std::uint64_t warp_operation(std::uint32_t mask, std::uint64_t value, int source, Site site,
                               bool is_exchange);

  Order order = Order::kForward;
  std::mt19937_64 random;
  std::uint64_t seed = 0;
  int skipped_barrier = -1;
  std::vector<Site> sites;  // of __syncthreads, in order of first arrival

  Thread* current = nullptr;
  Dim3 block_size, grid_size;
  unsigned cluster_size = 1;
  std::size_t block_rank() const {
    return static_cast<std::size_t>(current->block - blocks_.data());
  }

 private:
  void run_cluster(std::size_t first_block);
  void check_static_arrays() const;
  void run_thread(Thread* thread);
  Thread* take_unstarted();
  void resume(Fiber* fiber);
  void leave();
  void order_before_scheduler(const Fiber& fiber);
  [[noreturn]] void stop(const std::string& message);
  std::string stuck_report() const;
  bool skips(Site site);
  template <typename T>
  void arrange(std::vector<T>& items);

  std::vector<Thread> threads_;
  std::vector<int> start_order_;
  std::vector<Thread*> ready_, next_ready_;
  std::vector<Block> blocks_;  // of the cluster that is running
  std::size_t started_ = 0, finished_ = 0;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  Fiber* running_ = nullptr;
  std::size_t shared_bytes_ = 0;
  std::size_t at_cluster_ = 0;  // threads that have arrived at the cluster's barrier
  unsigned cluster_barriers_done_ = 0;
  Site cluster_site_{nullptr, 0};
  std::string error_;
  Dim3 failed_block_;
  void (*body_)(const void*) = nullptr;
  const void* arguments_ = nullptr;
  bool found_shared_arrays_ = false;
  std::vector<std::pair<unsigned char*, std::size_t>> shared_arrays_;

  ucontext_t scheduler_{};
  [[maybe_unused]] void* scheduler_tsan_ = nullptr;
  [[maybe_unused]] void* scheduler_fake_stack_ = nullptr;
  [[maybe_unused]] const void* scheduler_stack_ = nullptr;
  [[maybe_unused]] std::size_t scheduler_stack_bytes_ = 0;
  [[maybe_unused]] char start_sync_ = 0, end_sync_ = 0;
  [[maybe_unused]] char cluster_sync_[2] = {0, 0};
};

Engine* make_engine() {
  auto* const out = new Engine;
  out->sites.reserve(1024);
  if (const char* skip = std::getenv("ARD_EMU_SKIP_BARRIER"))
    out->skipped_barrier = std::atoi(skip);
  return out;
}

// Never destroyed: fibers may be suspended at exit.
Engine* const engine_instance = make_engine();

Engine& engine() { return *engine_instance; }

void tsan_acquire([[maybe_unused]] void* address) {
#if defined(ARD_EMU_TSAN)
  __tsan_acquire(address);
#endif
}

void tsan_release([[maybe_unused]] void* address) {
#if defined(ARD_EMU_TSAN)
  __tsan_release(address);
#endif
}

void fiber_entry() { engine().fiber_main(); }

Fiber::Fiber() {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  mapping_bytes = kStackBytes + page;  // the lowest page stays inaccessible: an overflow faults
  void* memory = mmap(nullptr, mapping_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {
    throw LaunchError("emulator: no memory for the stack of a thread");
  }
  mapping = static_cast<char*>(memory);
  stack = mapping + page;
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, fiber_entry, 0);
#if defined(ARD_EMU_TSAN)
  tsan = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#if defined(ARD_EMU_TSAN)
  __tsan_destroy_fiber(tsan);
#endif
#if defined(ARD_EMU_ASAN)
  ASAN_UNPOISON_MEMORY_REGION(stack, kStackBytes);  // it may be suspended half way
#endif
  munmap(mapping, mapping_bytes);
}

template <typename T>
void Engine::arrange(std::vector<T>& items) {
  if (order == Order::kReverse) std::reverse(items.begin(), items.end());
  if (order == Order::kShuffled) std::shuffle(items.begin(), items.end(), random);
}

void Engine::run_grid(Dim3 grid, unsigned cluster, Dim3 block, std::size_t shared_bytes,
                      void (*body)(const void*), const void* arguments) {
  if (current) throw LaunchError("launch: a kernel cannot launch another");
  const std::size_t threads = block.count();
  if (threads == 0 || threads > kMaxThreads || block.z > 64) {
    throw LaunchError("launch: a block has 1 to 1024 threads, 64 at most along z, got " +
                      text(block));
  }
  if (grid.count() == 0 || grid.x > 0x7fffffffu || grid.y > 65535u || grid.z > 65535u) {
    throw LaunchError("launch: a grid has 1 to (2147483647, 65535, 65535) blocks, got " +
                      text(grid));
  }
  if (shared_bytes > kMaxSharedBytes) {
    throw LaunchError("launch: at most " + std::to_string(kMaxSharedBytes) +
                      " bytes of dynamic shared memory, got " + std::to_string(shared_bytes));
  }
  if (cluster == 0 || cluster > kMaxCluster || grid.x % cluster != 0) {
    throw LaunchError(
        "launch: a cluster has 1 to 8 blocks, and they divide those of the grid along x, got " +
        std::to_string(cluster) + " for a grid of " + text(grid));
  }
  if (!found_shared_arrays_) {
    shared_arrays_ = find_shared_arrays();
    found_shared_arrays_ = true;
  }
  grid_size = grid;
  block_size = block;
  cluster_size = cluster;
  shared_bytes_ = shared_bytes;
  body_ = body;
  arguments_ = arguments;
  random.seed(seed);
#if defined(ARD_EMU_TSAN)
  scheduler_tsan_ = __tsan_get_current_fiber();
#endif

  std::vector<std::size_t> clusters(grid.count() / cluster);
  for (std::size_t i = 0; i < clusters.size(); ++i) clusters[i] = i;
  arrange(clusters);
  for (const std::size_t c : clusters) run_cluster(c * cluster);
}

// A plain loop, not memset: the range covers red zones that AddressSanitizer guards.
__attribute__((no_sanitize("address"), noinline)) void fill_garbage(unsigned char* data,
                                                                    std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) {
    *const_cast<volatile unsigned char*>(data + i) = 0xff;
  }
}

__attribute__((no_sanitize("address"), noinline)) bool is_garbage(const unsigned char* data,
                                                                  std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) {
    if (*const_cast<const volatile unsigned char*>(data + i) != 0xff) return false;
  }
  return true;
}

// The stand-in for a static __shared__ array is one for all blocks.
void Engine::check_static_arrays() const {
  for (const auto& [data, bytes] : shared_arrays_) {
    if (!is_garbage(data, bytes)) {
      throw LaunchError(
          "a kernel in clusters wrote to a static __shared__ array, which its blocks would share "
          "here: use dynamic shared memory");
    }
  }
}

// The blocks of one cluster, together; without clusters, one block.
void Engine::run_cluster(std::size_t first_block) {
  const std::size_t block_threads = block_size.count();
  const std::size_t count = block_threads * cluster_size;
  threads_.assign(count, Thread{});
  blocks_.clear();
  blocks_.resize(cluster_size);
  for (std::size_t b = 0; b < blocks_.size(); ++b) {
    Block& block = blocks_[b];
    const std::size_t index = first_block + b;
    block.index = Dim3(static_cast<unsigned>(index % grid_size.x),
                       static_cast<unsigned>(index / grid_size.x % grid_size.y),
                       static_cast<unsigned>(index / grid_size.x / grid_size.y));
    block.first = &threads_[b * block_threads];
    // Of the exact size, so that AddressSanitizer sees its end.
    block.shared.reset(new char[shared_bytes_]);
    std::memset(block.shared.get(), 0xff, shared_bytes_);
  }
  for (const auto& [data, bytes] : shared_arrays_) fill_garbage(data, bytes);
  start_order_.resize(count);
  // Fibers append to these: no allocation there, which ThreadSanitizer would see.
  for (auto* list : {&ready_, &next_ready_}) list->reserve(count);
  idle_.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    Thread& t = threads_[i];
    const std::size_t linear = i % block_threads;
    t.block = &blocks_[i / block_threads];
    t.linear = static_cast<int>(linear);
    t.index = Dim3(static_cast<unsigned>(linear % block_size.x),
                   static_cast<unsigned>(linear / block_size.x % block_size.y),
                   static_cast<unsigned>(linear / block_size.x / block_size.y));
    start_order_[i] = static_cast<int>(i);
  }
  arrange(start_order_);
  ready_.clear();
  next_ready_.clear();
  started_ = finished_ = at_cluster_ = 0;
  cluster_barriers_done_ = 0;
  failed_block_ = blocks_[0].index;
  error_.clear();
  idle_.clear();
  for (const auto& fiber : fibers_) idle_.push_back(fiber.get());
  tsan_release(&start_sync_);

  while (finished_ < count && error_.empty()) {
    if (Thread* fresh = take_unstarted()) {
      if (idle_.empty()) {
        fibers_.push_back(std::make_unique<Fiber>());
        idle_.push_back(fibers_.back().get());
      }
      Fiber* fiber = idle_.back();
      idle_.pop_back();
      fiber->thread = fresh;
      fresh->fiber = fiber;
      resume(fiber);
      continue;
    }
    if (ready_.empty()) {
      ready_.swap(next_ready_);
      arrange(ready_);
      std::reverse(ready_.begin(), ready_.end());  // taken from the back
    }
    if (ready_.empty()) {
      error_ = stuck_report();
      break;
    }
    Thread* next = ready_.back();
    ready_.pop_back();
    resume(next->fiber);
  }
  current = nullptr;
  if (!error_.empty()) {
    // Suspended fibers cannot be continued; drop them all.
    for (const auto& fiber : fibers_) order_before_scheduler(*fiber);
    idle_.clear();
    fibers_.clear();
  }
  tsan_acquire(&end_sync_);
  if (!error_.empty()) {
    throw LaunchError("block " + text(failed_block_) + " of " + text(grid_size) + ", " +
                      std::to_string(block_threads) + " threads: " + error_);
  }
  if (cluster_size > 1) check_static_arrays();
}

Thread* Engine::take_unstarted() {
  if (started_ == start_order_.size()) return nullptr;
  return &threads_[static_cast<std::size_t>(start_order_[started_++])];
}

void Engine::run_thread(Thread* thread) {
  current = thread;
  tsan_acquire(&start_sync_);
  try {
    body_(arguments_);
  } catch (const std::exception& problem) {
    error_ = "thread " + text(thread->index) + ": " + problem.what();
    failed_block_ = thread->block->index;
  }
  tsan_release(&end_sync_);
  thread->state = State::kDone;
  ++thread->block->finished;
  ++finished_;
}

void Engine::fiber_main() {
#if defined(ARD_EMU_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  Fiber* const self = running_;
  for (;;) {
    run_thread(self->thread);
    // A thread that never waited leaves its fiber free for the next one, without a switch: a kernel
    // without barriers runs as an ordinary loop. Under ThreadSanitizer each needs its own clock.
#if !defined(ARD_EMU_TSAN)
    while (error_.empty()) {
      Thread* const next = take_unstarted();
      if (!next) break;
      self->thread = next;
      next->fiber = self;
      run_thread(next);
    }
    idle_.push_back(self);
#endif
    leave();
  }
}

void Engine::resume(Fiber* fiber) {
  running_ = fiber;
  current = fiber->thread;
#if defined(ARD_EMU_ASAN)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack_, fiber->stack, kStackBytes);
#endif
#if defined(ARD_EMU_TSAN)
  __tsan_switch_to_fiber(fiber->tsan, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&scheduler_, &fiber->context);
#if defined(ARD_EMU_ASAN)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack_, nullptr, nullptr);
#endif
}

// What an abandoned fiber did has happened: without this its reads would seem to race with whoever
// frees the memory after the launch has thrown.
void Engine::order_before_scheduler([[maybe_unused]] const Fiber& fiber) {
#if defined(ARD_EMU_TSAN)
  __tsan_switch_to_fiber(fiber.tsan, __tsan_switch_to_fiber_no_sync);
  __tsan_release(&end_sync_);
  __tsan_switch_to_fiber(scheduler_tsan_, __tsan_switch_to_fiber_no_sync);
#endif
}

// From a fiber back to the scheduler; returns when the fiber is resumed.
void Engine::leave() {
  Fiber* const self = running_;
#if defined(ARD_EMU_ASAN)
  __sanitizer_start_switch_fiber(&self->fake_stack, scheduler_stack_, scheduler_stack_bytes_);
#endif
#if defined(ARD_EMU_TSAN)
  __tsan_switch_to_fiber(scheduler_tsan_, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&self->context, &scheduler_);
#if defined(ARD_EMU_ASAN)
  __sanitizer_finish_switch_fiber(self->fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
}

// Unwinds the thread that saw the fault; run_thread notes it and the scheduler throws it on.
void Engine::stop(const std::string& message) { throw LaunchError(message); }

bool Engine::skips(Site site) {
  const auto known =
      std::find_if(sites.begin(), sites.end(), [&](Site s) { return same(s, site); });
  const auto index = known - sites.begin();
  if (known == sites.end()) sites.push_back(site);
  return index == skipped_barrier;
}

void Engine::block_barrier(Site site) {
  if (skips(site)) return;
  Thread* const self = current;
  Block& block = *self->block;
  if (block.at_barrier == 0) {
    block.barrier_site = site;
  } else if (!same(block.barrier_site, site)) {
    stop("divergent barrier: __syncthreads at " + text(site) + ", others wait at " +
         text(block.barrier_site));
  }
  self->site = site;
  self->state = State::kAtBarrier;
  char* const sync = &block.barrier_sync[block.barriers_done & 1];
  tsan_release(sync);
  const std::size_t count = block_size.count();
  if (++block.at_barrier == count) {
    block.at_barrier = 0;
    ++block.barriers_done;
    for (Thread* thread = block.first; thread != block.first + count; ++thread) {
      thread->state = State::kReady;
      if (thread != self) next_ready_.push_back(thread);
    }
  } else {
    leave();
  }
  tsan_acquire(sync);
}

void Engine::cluster_arrive(Site site) {
  Thread* const self = current;
  if (self->cluster_arrivals != self->cluster_waits || self->skipped_arrival) {
    stop("cluster barrier: arrives at " + text(site) + " without having waited since it arrived");
  }
  if (skips(site)) {
    self->skipped_arrival = true;
    return;
  }
  if (at_cluster_ == 0) {
    cluster_site_ = site;
  } else if (!same(cluster_site_, site)) {
    stop("divergent cluster barrier: arrives at " + text(site) + ", others at " +
         text(cluster_site_));
  }
  ++self->cluster_arrivals;
  tsan_release(&cluster_sync_[cluster_barriers_done_ & 1]);
  if (++at_cluster_ == threads_.size()) {
    at_cluster_ = 0;
    ++cluster_barriers_done_;
    for (Thread& thread : threads_) {
      if (thread.state != State::kAtCluster) continue;
      thread.state = State::kReady;
      next_ready_.push_back(&thread);
    }
  }
}

void Engine::cluster_wait(Site site) {
  Thread* const self = current;
  if (self->skipped_arrival) {
    self->skipped_arrival = false;
    return;
  }
  if (self->cluster_arrivals == self->cluster_waits) {
    stop("cluster barrier: waits at " + text(site) + " without having arrived");
  }
  const unsigned barrier = self->cluster_waits++;
  if (cluster_barriers_done_ == barrier) {
    self->site = site;
    self->state = State::kAtCluster;
    leave();
  }
  tsan_acquire(&cluster_sync_[barrier & 1]);
}

// The counterpart in another block of an address in this block's dynamic shared memory.
void* Engine::in_block(void* mine, unsigned block) {
  Thread* const self = current;
  const std::ptrdiff_t offset = static_cast<char*>(mine) - self->block->shared.get();
  if (block >= blocks_.size()) {
    stop("distributed shared memory: block " + std::to_string(block) + " of a cluster of " +
         std::to_string(blocks_.size()));
  }
  if (offset < 0 || static_cast<std::size_t>(offset) >= shared_bytes_) {
    stop("distributed shared memory: the address is not in this block's dynamic shared memory");
  }
  Block& other = blocks_[block];
  if (&other != self->block && self->cluster_waits == 0) {
    stop(
        "distributed shared memory: before a cluster barrier the other block may not have started");
  }
  if (other.finished == block_size.count()) {
    stop("distributed shared memory: the other block may have ended");
  }
  return other.shared.get() + offset;
}

std::uint64_t Engine::warp_operation(std::uint32_t mask, std::uint64_t value, int source, Site site,
                                     bool is_exchange) {
  Thread* const self = current;
  const int lane = self->linear % kWarp;
  Thread* const warp = self - lane;
  const int lanes =
      std::min<int>(kWarp, static_cast<int>(block_size.count()) - (self->linear - lane));
  const auto in_mask = [mask](int l) { return (mask >> l & 1u) != 0; };
  const auto where = [&] {
    return std::string(is_exchange ? "shuffle" : "__syncwarp") + " at " + text(site);
  };

  if (!in_mask(lane)) stop(where() + ": lane " + std::to_string(lane) + " is not in its own mask");
  if (lanes < kWarp && (mask >> lanes) != 0) {
    stop(where() + ": the mask names lanes that do not exist, the warp has " +
         std::to_string(lanes));
  }
  if (is_exchange && (source < 0 || source >= kWarp || !in_mask(source))) {
    stop(where() + ": reads lane " + std::to_string(source) + ", which is not in the mask");
  }
  self->site = site;
  self->is_exchange = is_exchange;
  self->mask = mask;
  self->source = source;
  self->value = value;
  self->state = State::kInWarp;
  if (!is_exchange) tsan_release(&self->warp_sync[self->warp_syncs & 1]);

  bool complete = true;
  for (int l = 0; l < lanes; ++l) {
    if (!in_mask(l)) continue;
    const Thread& peer = warp[l];
    if (peer.state != State::kInWarp) {
      complete = false;
    } else if (peer.mask != mask || peer.is_exchange != is_exchange || !same(peer.site, site)) {
      stop("divergent warp: " + where() + ", lane " + std::to_string(l) + " is at " +
           text(peer.site) + " (or has another mask)");
    }
  }
  if (complete) {
    std::uint64_t results[kWarp] = {};
    std::uint32_t parities = 0;
    for (int l = 0; l < lanes; ++l) {
      if (!in_mask(l)) continue;
      results[l] = warp[is_exchange ? warp[l].source : l].value;
      parities |= (warp[l].warp_syncs & 1u) << l;
    }
    for (int l = 0; l < lanes; ++l) {
      if (!in_mask(l)) continue;
      warp[l].value = results[l];
      warp[l].state = State::kReady;
      if (!is_exchange) {
        warp[l].parities = parities;
        ++warp[l].warp_syncs;
      }
      if (&warp[l] != self) next_ready_.push_back(&warp[l]);
    }
  } else {
    leave();
  }
  // A shuffle moves registers and orders no memory (CUDA C++ programming guide, warp shuffles).
  if (!is_exchange) {
    for (int l = 0; l < lanes; ++l) {
      if (in_mask(l)) tsan_acquire(&warp[l].warp_sync[self->parities >> l & 1u]);
    }
  }
  return self->value;
}

std::string Engine::stuck_report() const {
  std::map<std::string, int> groups;
  for (const Thread& thread : threads_) {
    if (thread.state == State::kDone) ++groups["have returned"];
    if (thread.state == State::kAtBarrier) ++groups["wait at __syncthreads " + text(thread.site)];
    if (thread.state == State::kAtCluster) {
      ++groups["wait at the cluster barrier " + text(thread.site)];
    }
    if (thread.state == State::kInWarp) {
      ++groups[std::string(thread.is_exchange ? "wait in the shuffle " : "wait at __syncwarp ") +
               text(thread.site)];
    }
  }
  std::string out = "deadlock, ";
  const char* separator = "";
  for (const auto& [what, count] : groups) {
    out += separator + std::to_string(count) + " " + what;
    separator = ", ";
  }
  return out;
}

}  // namespace

void set_order(Order order, std::uint64_t seed) {
  engine().order = order;
  engine().seed = seed;
}

void set_skipped_barrier(int index) {
  engine().skipped_barrier = index;
  engine().sites.clear();
}

std::vector<std::string> barrier_sites() {
  std::vector<std::string> out;
  for (const Site& site : engine().sites) out.push_back(text(site));
  return out;
}

void run_grid(Dim3 grid, unsigned cluster, Dim3 block, std::size_t shared_bytes,
              void (*body)(const void*), const void* arguments) {
  engine().run_grid(grid, cluster, block, shared_bytes, body, arguments);
}

const Dim3& thread_index() { return engine().current->index; }
const Dim3& block_index() { return engine().current->block->index; }
const Dim3& block_size() { return engine().block_size; }
const Dim3& grid_size() { return engine().grid_size; }
unsigned cluster_size() { return engine().cluster_size; }
unsigned cluster_block() { return static_cast<unsigned>(engine().block_rank()); }
void* dynamic_shared() { return engine().current->block->shared.get(); }
int lane_index() { return engine().current->linear % kWarp; }
void block_barrier(Site site) { engine().block_barrier(site); }
void cluster_arrive(Site site) { engine().cluster_arrive(site); }
void cluster_wait(Site site) { engine().cluster_wait(site); }
void* in_block(void* mine, unsigned block) { return engine().in_block(mine, block); }

void warp_barrier(std::uint32_t mask, Site site) {
  engine().warp_operation(mask, 0, 0, site, false);
}

std::uint64_t warp_exchange(std::uint32_t mask, std::uint64_t value, int source, Site site) {
  return engine().warp_operation(mask, value, source, site, true);
}

}  // namespace ard::emu
