// Runs a frozen network on the images of a .npy file, from the shell:
//   ddi_run PLAN --input x.npy [--output logits.npy] [--batch N] [--threads N] [--budget-ms MS]
//           [--budget-macs N] [--budget-joules J] [--energy A,B,C] [--confidence P] [--repeat N]
//           [--trace] [--json]
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>

#include "ddi.h"
#include "npy.h"

namespace {

constexpr const char* kUsage =
    "usage: ddi_run PLAN --input FILE.npy [options]\n"
    "  --input FILE       float32 images [N, C, H, W] or one [C, H, W], saved by numpy.save\n"
    "  --output FILE      where to save the logits [N, classes]\n"
    "  --batch N          images a call (default: 1)\n"
    "  --threads N        (default: 1)\n"
    "  --budget-ms MS     deadline of a call: all its samples halt at the exit that still fits\n"
    "  --budget-macs N    multiply-adds of a sample, never exceeded\n"
    "  --budget-joules J  of a sample, by --energy, never exceeded\n"
    "  --energy A,B,C     joules per multiply-add, byte of weights and byte of activations\n"
    "  --confidence P     each image halts at the first exit that gives a class at least P\n"
    "  --repeat N         passes over the images (default: 1)\n"
    "  --trace            milliseconds of each step of the last call\n"
    "  --json             one JSON object instead of text\n";

constexpr const char* kHelp = "; see ddi_run --help";

struct Settings {
  std::string plan, input, output;
  int64_t batch = 1, threads = 1, repeat = 1;
  ddi_options options = ddi_default_options();
  bool trace = false, json = false;
};

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

void check(ddi_status status) {
  if (status != DDI_OK) fail(ddi_last_error());
}

double positive(const std::string& option, const char* text) {
  char* end = nullptr;
  const double value = std::strtod(text, &end);
  if (end == text || *end != '\0' || !(value > 0) || value > 1e15) {
    fail(option + " is '" + text + "'; expected a positive number");
  }
  return value;
}

double probability(const std::string& option, const char* text) {
  const double value = positive(option, text);
  if (value > 1) fail(option + " is '" + text + "'; expected at most 1");
  return value;
}

void read_energy(const std::string& option, const char* text, double* energy) {
  const char* at = text;
  for (int i = 0; i < 3; ++i) {
    char* end = nullptr;
    energy[i] = std::strtod(at, &end);
    const bool ends = *end == (i < 2 ? ',' : '\0');
    if (end == at || !ends || !(energy[i] >= 0) || std::isinf(energy[i])) {
      fail(option + " is '" + text +
           "'; expected three finite numbers from 0 on, as 3e-12,2e-11,0");
    }
    at = end + 1;
  }
}

int64_t count(const std::string& option, const char* text) {
  const double value = positive(option, text);
  if (value != static_cast<double>(static_cast<int64_t>(value))) {
    fail(option + " is '" + text + "'; expected a whole number");
  }
  return static_cast<int64_t>(value);
}

Settings parse(int argc, char** argv) {
  Settings s;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--trace" || option == "--json") {
      (option == "--json" ? s.json : s.trace) = true;
      s.options.trace = s.trace;
      continue;
    }
    if (option.rfind("--", 0) != 0) {
      if (!s.plan.empty()) fail("two plans: " + s.plan + " and " + option);
      s.plan = option;
      continue;
    }
    if (i + 1 >= argc) fail(option + " needs a value, or is unknown" + kHelp);
    const char* value = argv[++i];
    if (option == "--input") {
      s.input = value;
    } else if (option == "--output") {
      s.output = value;
    } else if (option == "--batch") {
      s.batch = count(option, value);
    } else if (option == "--threads") {
      s.threads = count(option, value);
    } else if (option == "--repeat") {
      s.repeat = count(option, value);
    } else if (option == "--budget-ms") {
      s.options.deadline_ms = positive(option, value);
    } else if (option == "--budget-macs") {
      s.options.max_macs = count(option, value);
    } else if (option == "--budget-joules") {
      s.options.max_joules = positive(option, value);
    } else if (option == "--energy") {
      read_energy(option, value, s.options.energy);
    } else if (option == "--confidence") {
      s.options.confidence = probability(option, value);
    } else {
      fail("unknown option " + option + kHelp);
    }
  }
  if (s.plan.empty() || s.input.empty()) fail(std::string("a plan and --input are needed") + kHelp);
  if (s.options.max_joules >= 0 && s.options.energy[0] < 0) {
    fail(std::string("--budget-joules needs --energy") + kHelp);
  }
  return s;
}

struct Free {
  void operator()(ddi_network* network) const { ddi_network_free(network); }
  void operator()(ddi_session* session) const { ddi_session_free(session); }
};

// What all calls together gave.
struct Results {
  Array logits;
  std::vector<int64_t> macs, weight_bytes, activation_bytes, exits;  // of each image
  std::vector<double> joules;                                        // none without --energy
  std::vector<double> call_ms;
  std::string trace;
};

std::string trace_of(const ddi_network* network, const ddi_network_info& info,
                     const ddi_report& report) {
  std::string text;
  char line[160];
  for (int64_t i = 0; i < info.steps; ++i) {
    if (report.step_ms[i] < 0) continue;
    std::snprintf(line, sizeof(line), "%9.4f ms  %.120s\n", report.step_ms[i],
                  ddi_network_step_name(network, i));
    text += line;
  }
  return text;
}

Results run(const Settings& s, const ddi_network* network, const Array& images) {
  ddi_network_info info;
  check(ddi_network_describe(network, &info));
  const int64_t numel = info.channels * info.height * info.width;
  std::vector<int64_t> shape = images.shape;
  if (shape.size() == 3) shape.insert(shape.begin(), 1);
  const std::vector<int64_t> wanted = {info.channels, info.height, info.width};
  if (shape.size() != 4 || !std::equal(wanted.begin(), wanted.end(), shape.begin() + 1)) {
    fail(s.input + ": expected images [N, " + std::to_string(info.channels) + ", " +
         std::to_string(info.height) + ", " + std::to_string(info.width) + "]");
  }
  ddi_session* opened = nullptr;
  check(ddi_session_open(network, s.batch, s.threads, &opened));
  const std::unique_ptr<ddi_session, Free> session(opened);
  const int64_t n = shape[0];
  Results r;
  r.logits = {{n, info.classes}, std::vector<float>(static_cast<size_t>(n * info.classes))};
  for (auto* values : {&r.macs, &r.weight_bytes, &r.activation_bytes, &r.exits}) {
    values->resize(static_cast<size_t>(n));
  }
  if (s.options.energy[0] >= 0) r.joules.resize(static_cast<size_t>(n));
  for (int64_t pass = 0; pass < s.repeat; ++pass) {
    for (int64_t first = 0; first < n; first += s.batch) {
      const ddi_images batch = {images.data.data() + first * numel,
                                std::min(s.batch, n - first),
                                {numel, info.height * info.width, info.width, 1}};
      float* logits = r.logits.data.data() + first * info.classes;
      const auto start = std::chrono::steady_clock::now();
      check(ddi_session_run(session.get(), &batch, logits, &s.options));
      const std::chrono::duration<double, std::milli> ms = std::chrono::steady_clock::now() - start;
      r.call_ms.push_back(ms.count());
      ddi_report report;
      check(ddi_session_report(session.get(), &report));
      std::copy_n(report.macs, batch.n, r.macs.begin() + first);
      std::copy_n(report.weight_bytes, batch.n, r.weight_bytes.begin() + first);
      std::copy_n(report.activation_bytes, batch.n, r.activation_bytes.begin() + first);
      if (report.joules != nullptr) std::copy_n(report.joules, batch.n, r.joules.begin() + first);
      std::copy_n(report.exits, batch.n, r.exits.begin() + first);
      if (s.trace) r.trace = trace_of(network, info, report);
    }
  }
  return r;
}

double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[static_cast<size_t>(share * (values.size() - 1) + 0.5)];
}

void print_number(int64_t value) { std::printf("%lld", static_cast<long long>(value)); }
void print_number(double value) { std::printf("%.17g", value); }

template <class T>
void print_list(const char* name, const std::vector<T>& values) {
  std::printf("\"%s\": [", name);
  for (size_t i = 0; i < values.size(); ++i) {
    if (i > 0) std::printf(", ");
    print_number(values[i]);
  }
  std::printf("], ");
}

void print(const Settings& s, const Results& r) {
  std::vector<int64_t> top;
  const size_t classes = static_cast<size_t>(r.logits.shape[1]);
  for (size_t n = 0; n < r.macs.size(); ++n) {
    const float* logits = r.logits.data.data() + n * classes;
    top.push_back(std::max_element(logits, logits + classes) - logits);
  }
  const double p50 = quantile(r.call_ms, 0.5), p99 = quantile(r.call_ms, 0.99);
  if (s.json) {
    std::printf("{\"images\": %zu, \"batch\": %lld, \"threads\": %lld, \"isa\": \"%s\", ",
                r.macs.size(), static_cast<long long>(s.batch), static_cast<long long>(s.threads),
                ddi_cpu_isa());
    print_list("class", top);
    print_list("exit", r.exits);
    print_list("macs", r.macs);
    print_list("weight_bytes", r.weight_bytes);
    print_list("activation_bytes", r.activation_bytes);
    if (s.options.energy[0] >= 0) print_list("joules", r.joules);
    std::printf("\"calls\": %zu, \"p50_ms\": %.6g, \"p99_ms\": %.6g}\n", r.call_ms.size(), p50,
                p99);
    return;
  }
  for (size_t n = 0; n < r.macs.size(); ++n) {
    std::printf("image %zu: class %lld, exit %lld, %.3f MMAC", n, static_cast<long long>(top[n]),
                static_cast<long long>(r.exits[n]), 1e-6 * static_cast<double>(r.macs[n]));
    if (!r.joules.empty()) std::printf(", %.6g J", r.joules[n]);
    std::printf("\n");
  }
  std::printf("%zu calls of %lld on %s: median %.4f ms, p99 %.4f ms\n", r.call_ms.size(),
              static_cast<long long>(s.batch), ddi_cpu_isa(), p50, p99);
  std::printf("%s", r.trace.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc > 1 && (std::string(argv[1]) == "--help" || std::string(argv[1]) == "-h")) {
      std::printf("%s", kUsage);
      return 0;
    }
    const Settings settings = parse(argc, argv);
    ddi_network* loaded = nullptr;
    check(ddi_network_load(settings.plan.c_str(), &loaded));
    const std::unique_ptr<ddi_network, Free> network(loaded);
    const Results results = run(settings, network.get(), read_npy(settings.input));
    if (!settings.output.empty()) write_npy(settings.output, results.logits);
    print(settings, results);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "ddi_run: %s\n", error.what());
    return 1;
  }
}
