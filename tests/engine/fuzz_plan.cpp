// libFuzzer over the loader and the executor: whatever a file says, the engine refuses it or runs
// it, within its memory. `make fuzz` builds this with AddressSanitizer and UBSan and starts it on
// tests/engine/corpus. Checksums are made right before a plan is read, or nothing would get past
// them.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "ddi.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

// Of the header (docs/plan_format.md).
constexpr size_t kHeader = 64, kFileBytes = 16, kWords = 24, kBlobOffset = 32, kBlobBytes = 40,
                 kBodyCrc = 48, kHeaderCrc = 60;
constexpr int64_t kMaxBatch = 2;

#define CHECK(condition)                                                                 \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, ddi_last_error()); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (false)

template <class T>
T get(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

template <class T>
void put(uint8_t* at, T value) {
  std::memcpy(at, &value, sizeof(value));
}

__attribute__((no_sanitize("address", "undefined", "coverage"))) uint32_t crc32(const uint8_t* data,
                                                                                size_t bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> t{};
    for (uint32_t i = 0; i < 256; ++i) {
      t[i] = i;
      for (int k = 0; k < 8; ++k) t[i] = (t[i] & 1u) != 0 ? 0xedb88320u ^ (t[i] >> 1) : t[i] >> 1;
    }
    return t;
  }();
  const uint32_t* const t = table.data();
  uint32_t crc = ~0u;
  for (size_t i = 0; i < bytes; ++i) crc = t[(crc ^ data[i]) & 0xffu] ^ (crc >> 8);
  return ~crc;
}

void settle_checksums(std::vector<uint8_t>& plan) {
  if (plan.size() < kHeader) return;
  put(&plan[kBodyCrc], crc32(plan.data() + kHeader, plan.size() - kHeader));
  put(&plan[kHeaderCrc], crc32(plan.data(), kHeaderCrc));
}

// Whether a plan that the engine has read runs in no time: by its image, its multiply-adds, and its
// buffers, whose table is the first of the graph.
bool is_small(const std::vector<uint8_t>& plan, const ddi_network_info& info) {
  const uint8_t* word = &plan[kHeader];
  const int64_t buffers = get<int64_t>(word);
  int64_t numel = 0;
  for (int64_t i = 0; i < buffers; ++i) {
    const uint8_t* row = word + 8 * (4 * i + 2);
    numel += get<int64_t>(row) * get<int64_t>(row + 8) * get<int64_t>(row + 16);
    if (numel > 1 << 14) return false;
  }
  return info.dense_macs <= 1 << 21 && info.steps <= 64 && info.exits <= 8;
}

// One image after the other, the second of them in reach of half the budget.
void run(ddi_session* session, const ddi_network_info& info, const ddi_images& images,
         const ddi_options& options) {
  std::vector<float> logits(static_cast<size_t>(images.n * info.classes));
  const ddi_status status = ddi_session_run(session, &images, logits.data(), &options);
  const bool limited = options.max_macs >= 0 || options.max_joules >= 0;
  CHECK(status == DDI_OK || (status == DDI_REFUSED && limited));
  if (status != DDI_OK) return;
  ddi_report report;
  CHECK(ddi_session_report(session, &report) == DDI_OK);
  CHECK(report.exit >= 0 && report.exit < info.exits);
  for (int64_t n = 0; n < images.n; ++n) {
    CHECK(report.macs[n] >= 0);
    CHECK(report.weight_bytes[n] >= 0 && report.activation_bytes[n] >= 0);
    CHECK(options.max_macs < 0 || report.macs[n] <= options.max_macs);
    CHECK(options.max_joules < 0 || report.joules[n] <= options.max_joules);
  }
}

void run_all(const ddi_network* network, const ddi_network_info& info) {
  ddi_session* session = nullptr;
  const ddi_status status = ddi_session_open(network, kMaxBatch, 1, &session);
  CHECK(status == DDI_OK || status == DDI_REFUSED || status == DDI_NO_MEMORY);
  if (status != DDI_OK) return;
  const int64_t plane = info.height * info.width, numel = info.channels * plane;
  std::vector<float> data(static_cast<size_t>(kMaxBatch * numel));
  // Exits are certain of the first image sooner than of the second, which then takes its place.
  for (size_t i = 0; i < data.size(); ++i) {
    const float scale = i < static_cast<size_t>(numel) ? 30.0f : 0.01f;
    data[i] = scale * (static_cast<float>(i % 7) - 3);
  }
  const ddi_images planes = {data.data(), kMaxBatch, {numel, plane, info.width, 1}};
  const ddi_images pixels = {data.data(), 1, {numel, 1, info.width * info.channels, info.channels}};
  std::vector<uint8_t> bits(static_cast<size_t>(kMaxBatch * info.decision_bytes) + 1);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = i % 3 != 0;
  ddi_options options = ddi_default_options();
  run(session, info, planes, options);
  options.decisions = bits.data();
  run(session, info, planes, options);
  options.max_macs = info.dense_macs / 2;
  run(session, info, pixels, options);
  options.max_joules = 1e-12 * static_cast<double>(info.dense_macs);
  options.energy[0] = options.energy[1] = options.energy[2] = 1e-12;
  options.confidence = 0.5;
  options.max_macs = -1;
  run(session, info, planes, options);
  options.max_joules = -1;
  run(session, info, planes, options);
  options = ddi_default_options();
  options.deadline_ms = 0;
  run(session, info, pixels, options);
  CHECK(ddi_session_memory(session) >= 0);
  ddi_session_free(session);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<uint8_t> plan(data, data + size);
  plan.reserve(size + 1);  // data() of nothing is no pointer
  settle_checksums(plan);
  ddi_network* network = nullptr;
  const ddi_status status = ddi_network_read(plan.data(), plan.size(), &network);
  CHECK(status == DDI_OK ||
        ((status == DDI_BAD_PLAN || status == DDI_NO_MEMORY) && *ddi_last_error()));
  if (status != DDI_OK) return 0;
  ddi_network_info info;
  CHECK(ddi_network_describe(network, &info) == DDI_OK);
  CHECK(info.dense_macs >= 0 && info.decision_bytes >= 0 && info.classes > 0);
  for (int64_t i = 0; i < info.steps; ++i) CHECK(ddi_network_step_name(network, i) != nullptr);
  if (is_small(plan, info)) run_all(network, info);
  ddi_network_free(network);
  return 0;
}

// Half of the time the words of the graph are changed as a broken writer would: numbers next to
// others' ranges, and words in the place of other words. A file that grows says so in its header.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned int seed) {
  std::minstd_rand random(seed);
  const auto draw = [&](size_t count) { return static_cast<size_t>(random() % count); };
  const size_t most = size < kHeader ? 0 : (size - kHeader) / 8;
  const size_t words =
      most == 0 ? 0 : static_cast<size_t>(std::min<uint64_t>(get<uint64_t>(data + kWords), most));
  if (words == 0 || draw(8) == 0) {
    size = LLVMFuzzerMutate(data, size, max_size);
    if (size < kHeader) return size;
    put<uint64_t>(data + kFileBytes, size);
    put<uint64_t>(data + kBlobBytes, size - get<uint64_t>(data + kBlobOffset));
    return size;
  }
  constexpr int64_t kHuge[] = {INT64_MAX, INT64_MIN, INT64_C(1) << 31, 65536, 65535, 8192, 64, -2};
  for (size_t edits = 1 + draw(4); edits > 0; --edits) {
    uint8_t* word = data + kHeader + 8 * draw(words);
    uint8_t* other = data + kHeader + 8 * draw(words);
    const int64_t old = get<int64_t>(word);
    switch (draw(8)) {
      case 0:
        put<int64_t>(word, -1);
        break;
      case 1:
        put<int64_t>(word, kHuge[draw(std::size(kHuge))]);
        break;
      case 2:
        put<int64_t>(word, get<int64_t>(other));
        break;
      case 3:
        put<int64_t>(word, get<int64_t>(other));
        put<int64_t>(other, old);
        break;
      case 4: {
        const size_t left = static_cast<size_t>(data + kHeader + 8 * words - std::max(word, other));
        std::memmove(word, other, std::min(left, 8 * (1 + draw(16))));
        break;
      }
      case 5:
        put<uint64_t>(word, static_cast<uint64_t>(old) + (draw(2) == 0 ? 1 : ~uint64_t{0}));
        break;
      default:
        put<int64_t>(word, static_cast<int64_t>(draw(10)));
    }
  }
  return size;
}
