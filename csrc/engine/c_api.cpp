// ddi.h over Network and Session: pointers are checked, exceptions become codes and messages.
#include <cstring>
#include <new>

#include "base/isa.h"
#include "ddi.h"
#include "session.h"

struct ddi_network {
  std::shared_ptr<const ddi::engine::Network> network;
};

struct ddi_session {
  ddi::engine::Session session;
};

namespace {

using ddi::engine::PlanError;
using ddi::engine::RunError;

thread_local char last_error[1024] = "";

ddi_status fail(ddi_status status, const char* what) {
  std::strncpy(last_error, what, sizeof(last_error) - 1);
  return status;
}

template <class Body>
ddi_status guarded(const Body& body) {
  try {
    body();
    return DDI_OK;
  } catch (const PlanError& error) {
    return fail(DDI_BAD_PLAN, error.what());
  } catch (const RunError& error) {
    return fail(DDI_REFUSED, error.what());
  } catch (const std::bad_alloc&) {
    return fail(DDI_NO_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return fail(DDI_INTERNAL, error.what());
  }
}

ddi_status missing(const char* call, const char* argument) {
  char text[128] = "";
  std::strncat(text, call, 60);
  std::strncat(text, ": NULL passed for ", 30);
  std::strncat(text, argument, 30);
  return fail(DDI_BAD_ARGUMENT, text);
}

void read(const uint8_t* plan, size_t bytes, ddi_network** network) {
  auto owned = std::make_unique<ddi_network>();
  owned->network = std::make_shared<const ddi::engine::Network>(plan, bytes);
  *network = owned.release();
}

}  // namespace

ddi_options ddi_default_options(void) { return {-1, -1, nullptr, 0, -1, {-1, -1, -1}, -1}; }

ddi_status ddi_network_load(const char* path, ddi_network** network) {
  if (path == nullptr || network == nullptr) return missing("ddi_network_load", "an argument");
  *network = nullptr;
  return guarded([&] {
    const std::vector<uint8_t> bytes = ddi::engine::read_file(path);
    read(bytes.data(), bytes.size(), network);
  });
}

ddi_status ddi_network_read(const void* plan, size_t bytes, ddi_network** network) {
  if (plan == nullptr || network == nullptr) return missing("ddi_network_read", "an argument");
  *network = nullptr;
  return guarded([&] { read(static_cast<const uint8_t*>(plan), bytes, network); });
}

void ddi_network_free(ddi_network* network) { delete network; }

ddi_status ddi_network_describe(const ddi_network* network, ddi_network_info* info) {
  if (network == nullptr || info == nullptr) return missing("ddi_network_describe", "an argument");
  const ddi::engine::Network& n = *network->network;
  *info = {n.input().channels,
           n.input().h,
           n.input().w,
           n.classes(),
           static_cast<int64_t>(n.exits().size()),
           static_cast<int64_t>(n.trunk().size()),
           n.decision_bytes(),
           n.exits().back().worst_work.macs};
  return DDI_OK;
}

const char* ddi_network_metadata(const ddi_network* network, size_t* bytes) {
  if (network == nullptr || bytes == nullptr) return nullptr;
  *bytes = network->network->metadata().size();
  return network->network->metadata().c_str();
}

const char* ddi_network_step_name(const ddi_network* network, int64_t step) {
  if (network == nullptr || step < 0) return nullptr;
  const auto& trunk = network->network->trunk();
  const auto i = static_cast<size_t>(step);
  return i < trunk.size() ? trunk[i]->name.c_str() : nullptr;
}

const char* ddi_network_exit_name(const ddi_network* network, int64_t exit) {
  if (network == nullptr || exit < 0) return nullptr;
  const auto& exits = network->network->exits();
  const auto i = static_cast<size_t>(exit);
  return i < exits.size() ? exits[i].name.c_str() : nullptr;
}

ddi_status ddi_session_open(const ddi_network* network, int64_t max_batch, int64_t threads,
                            ddi_session** session) {
  if (network == nullptr || session == nullptr) return missing("ddi_session_open", "an argument");
  *session = nullptr;
  return guarded([&] {
    *session = new ddi_session{ddi::engine::Session(network->network, max_batch, threads)};
  });
}

void ddi_session_free(ddi_session* session) { delete session; }

ddi_status ddi_session_run(ddi_session* session, const ddi_images* images, float* logits,
                           const ddi_options* options) {
  if (session == nullptr) return missing("ddi_session_run", "session");
  if (images == nullptr) return missing("ddi_session_run", "images");
  if (images->n != 0 && images->data == nullptr) return missing("ddi_session_run", "images.data");
  if (images->n != 0 && logits == nullptr) return missing("ddi_session_run", "logits");
  return guarded([&] {
    ddi::engine::Images in = {images->data, images->n, {}};
    std::memcpy(in.stride, images->stride, sizeof(in.stride));
    ddi::engine::RunOptions run;
    if (options != nullptr) {
      run.max_macs = options->max_macs;
      run.deadline_ms = options->deadline_ms;
      run.decisions = options->decisions;
      run.trace = options->trace != 0;
      run.max_joules = options->max_joules;
      std::memcpy(run.energy, options->energy, sizeof(run.energy));
      run.confidence = options->confidence;
    }
    session->session.run(in, logits, run);
  });
}

ddi_status ddi_session_report(const ddi_session* session, ddi_report* report) {
  if (session == nullptr || report == nullptr) return missing("ddi_session_report", "an argument");
  const ddi::engine::Session& s = session->session;
  *report = {s.exit(),    s.macs(),         s.decisions(),
             s.step_ms(), s.weight_bytes(), s.activation_bytes(),
             s.joules(),  s.exits()};
  return DDI_OK;
}

int64_t ddi_session_memory(const ddi_session* session) {
  return session == nullptr ? 0 : session->session.memory_bytes();
}

const char* ddi_last_error(void) { return last_error; }

const char* ddi_cpu_isa(void) { return ddi::isa_name(ddi::current_isa()); }
