// The engine for Python. Arrays come through DLPack, so that torch and numpy are served alike and
// nothing is copied; the GIL is released while a network runs.

// The pybind11 of torch 2.11 refuses sources for the stable ABI; this one has nothing of torch.
#undef TORCH_TARGET_VERSION
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>

#include "base/isa.h"
#include "session.h"

namespace py = pybind11;

namespace {

using ddi::engine::Network;
using ddi::engine::Session;

// The structures of DLPack's ABI (dmlc.github.io/dlpack), as producers fill them.
struct DLDevice {
  int32_t type, id;
};
struct DLDataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor*);
};
constexpr int32_t kCpu = 1;
constexpr uint8_t kUnsigned = 1, kFloat = 2, kBool = 6;

std::string type_name(const DLDataType& type) {
  static const char* const names[] = {"int",    "uint",    "float", "handle",
                                      "bfloat", "complex", "bool"};
  return (type.code < 7 ? names[type.code] : "type") + std::to_string(type.bits);
}

// An array in a DLPack capsule, which its owner gets back with the capsule.
class Array {
 public:
  Array(const py::capsule& capsule, const char* name, int32_t ndim) : name_(name) {
    void* managed = PyCapsule_GetPointer(capsule.ptr(), "dltensor");
    if (managed == nullptr) throw py::error_already_set();
    tensor_ = &static_cast<DLManagedTensor*>(managed)->tensor;
    if (tensor_->device.type != kCpu) fail("is not on the CPU; move it there");
    if (tensor_->ndim != ndim) {
      fail("has " + std::to_string(tensor_->ndim) + " dimensions; expected " +
           std::to_string(ndim));
    }
  }

  void check_type(uint8_t code, uint8_t bits, const char* wanted) const {
    const DLDataType& type = tensor_->dtype;
    if (type.code != code || type.bits != bits || type.lanes != 1) {
      fail("is " + type_name(type) + "; expected " + wanted);
    }
  }
  void check_dense(int64_t rows, int64_t columns) const {
    if (size(0) != rows || size(1) != columns) {
      fail("has shape (" + std::to_string(size(0)) + ", " + std::to_string(size(1)) +
           "); expected (" + std::to_string(rows) + ", " + std::to_string(columns) + ")");
    }
    const bool empty = rows == 0 || columns == 0;  // whatever its strides
    const bool dense = (columns == 1 || stride(1) == 1) && (rows == 1 || stride(0) == columns);
    if (!empty && !dense) fail("is not contiguous");
  }

  template <class T>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<char*>(tensor_->data) + tensor_->byte_offset);
  }
  bool is_bits() const {
    const DLDataType& type = tensor_->dtype;
    return type.bits == 8 && (type.code == kBool || type.code == kUnsigned);
  }
  int64_t size(int d) const { return tensor_->shape[d]; }
  int64_t stride(int d) const {
    if (tensor_->strides != nullptr) return tensor_->strides[d];
    int64_t stride = 1;
    for (int i = d + 1; i < tensor_->ndim; ++i) stride *= tensor_->shape[i];
    return stride;
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw py::value_error("engine: " + name_ + " " + what);
  }

 private:
  const std::string name_;
  DLTensor* tensor_;
};

void run(Session& session, const py::capsule& images, const py::capsule& logits, int64_t max_macs,
         double max_joules, const std::array<double, 3>& energy, double deadline_ms,
         double confidence, const std::optional<py::capsule>& decisions, bool trace) {
  const Array x(images, "images", 4), y(logits, "logits", 2);
  x.check_type(kFloat, 32, "float32");
  y.check_type(kFloat, 32, "float32");
  const Network& network = session.network();
  const ddi::engine::Buffer& input = network.input();
  if (x.size(1) != input.channels || x.size(2) != input.h || x.size(3) != input.w) {
    x.fail("has images of (" + std::to_string(x.size(1)) + ", " + std::to_string(x.size(2)) + ", " +
           std::to_string(x.size(3)) + "); the network was frozen for (" +
           std::to_string(input.channels) + ", " + std::to_string(input.h) + ", " +
           std::to_string(input.w) + ")");
  }
  y.check_dense(x.size(0), network.classes());
  ddi::engine::RunOptions options;
  options.max_macs = max_macs;
  options.max_joules = max_joules;
  std::copy(energy.begin(), energy.end(), options.energy);
  options.deadline_ms = deadline_ms;
  options.confidence = confidence;
  options.trace = trace;
  std::optional<Array> bits;
  if (decisions.has_value()) {
    bits.emplace(*decisions, "decisions", 2);
    if (!bits->is_bits()) bits->fail("must be bool or uint8");
    bits->check_dense(x.size(0), network.decision_bytes());
    options.decisions = bits->data<uint8_t>();
  }
  const ddi::engine::Images in = {
      x.data<float>(), x.size(0), {x.stride(0), x.stride(1), x.stride(2), x.stride(3)}};
  const py::gil_scoped_release released;
  session.run(in, y.data<float>(), options);
}

std::shared_ptr<const Network> load(const std::string& path) {
  const py::gil_scoped_release released;
  const std::vector<uint8_t> plan = ddi::engine::read_file(path);
  return std::make_shared<const Network>(plan.data(), plan.size());
}

std::shared_ptr<const Network> read(const py::bytes& plan) {
  const std::string_view view(plan);
  return std::make_shared<const Network>(reinterpret_cast<const uint8_t*>(view.data()),
                                         view.size());
}

template <class T>
py::list to_list(const T* values, int64_t count) {
  py::list list;
  for (int64_t i = 0; i < count; ++i) list.append(values[i]);
  return list;
}

// Of a plan, as energy models call it.
const char* type_name(ddi::engine::PlanType type) {
  static const char* const names[] = {"fp32", "bf16", "int8"};
  return names[static_cast<int64_t>(type)];
}

template <class Steps>
py::list names(const Steps& steps) {
  py::list list;
  for (const auto& step : steps) list.append(step->name);
  return list;
}

}  // namespace

PYBIND11_MODULE(_engine, m) {
  py::register_exception<ddi::engine::PlanError>(m, "PlanError", PyExc_ValueError);
  py::register_exception<ddi::engine::RunError>(m, "RunError", PyExc_ValueError);
  m.def("cpu_isa", [] { return ddi::isa_name(ddi::current_isa()); });

  py::class_<Network, std::shared_ptr<Network>>(m, "Network")
      .def_static("load",
                  [](const std::string& p) { return std::const_pointer_cast<Network>(load(p)); })
      .def_static("read",
                  [](const py::bytes& b) { return std::const_pointer_cast<Network>(read(b)); })
      .def_property_readonly("metadata", &Network::metadata)
      .def_property_readonly("input_shape",
                             [](const Network& n) {
                               const auto& b = n.input();
                               return py::make_tuple(b.channels, b.h, b.w);
                             })
      .def_property_readonly("classes", &Network::classes)
      .def_property_readonly("dtype", [](const Network& n) { return type_name(n.graph().type); })
      .def_property_readonly("decision_bytes", &Network::decision_bytes)
      .def_property_readonly("steps", [](const Network& n) { return names(n.trunk()); })
      .def_property_readonly("exit_worst_work", [](const Network& n) {
        py::list list;
        for (const auto& exit : n.exits()) {
          const ddi::engine::Work& work = exit.worst_work;
          list.append(py::make_tuple(work.macs, work.weight_bytes, work.activation_bytes));
        }
        return list;
      });

  py::class_<Session>(m, "Session")
      .def(py::init([](std::shared_ptr<Network> network, int64_t max_batch, int64_t threads) {
             const py::gil_scoped_release released;
             return std::make_unique<Session>(std::move(network), max_batch, threads);
           }),
           py::arg("network"), py::arg("max_batch"), py::arg("threads"))
      .def("run", &run, py::arg("images"), py::arg("logits"), py::arg("max_macs"),
           py::arg("max_joules"), py::arg("energy"), py::arg("deadline_ms"), py::arg("confidence"),
           py::arg("decisions"), py::arg("trace"))
      .def_property_readonly("memory_bytes", &Session::memory_bytes)
      .def_property_readonly("exit", &Session::exit)
      .def("exits", [](const Session& s, int64_t n) { return to_list(s.exits(), n); })
      .def("macs", [](const Session& s, int64_t n) { return to_list(s.macs(), n); })
      .def("weight_bytes", [](const Session& s, int64_t n) { return to_list(s.weight_bytes(), n); })
      .def("activation_bytes",
           [](const Session& s, int64_t n) { return to_list(s.activation_bytes(), n); })
      .def("joules",
           [](const Session& s, int64_t n) -> py::object {
             if (s.joules() == nullptr) return py::none();
             return to_list(s.joules(), n);
           })
      .def("decisions",
           [](const Session& s, int64_t n) {
             const auto* bits = reinterpret_cast<const char*>(s.decisions());
             return py::bytes(bits, static_cast<size_t>(n * s.network().decision_bytes()));
           })
      .def_property_readonly("step_ms", [](const Session& s) {
        return to_list(s.step_ms(), static_cast<int64_t>(s.network().trunk().size()));
      });
}
